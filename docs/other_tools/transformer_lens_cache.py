"""Probe a cache of TransformerLens for position, and check it against a capture.

Run from the folder of this file, with a small model of the repository:

    pip install transformer-lens 'posprobe[models]'
    python transformer_lens_cache.py

Run by hand with transformer-lens 4.3.0; no test runs it.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import posprobe
from posprobe.probes import features

ZOO = Path(__file__).resolve().parents[2] / "data" / "zoo"
LAYER = 2
HOOK = f"blocks.{LAYER}.hook_resid_pre"


def main() -> None:
    """Cache the sequences of a capture, and probe what enters block `LAYER`."""
    own = AutoModelForCausalLM.from_pretrained(ZOO / "rope-0", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "tokenizer")
    model = posprobe.load_model(own, tokenizer=tokenizer, name="rope-0")
    path = Path(tempfile.mkdtemp()) / "natural.h5"
    store = posprobe.capture(model, path, n=24, length=96, text="english", progress=False)

    bridge = TransformerBridge.boot_transformers(
        str(ZOO / "rope-0"), hf_model=own, tokenizer=tokenizer
    )
    tokens = torch.from_numpy(store.tokens.astype("i8"))
    with torch.no_grad():
        _, cache = bridge.run_with_cache(tokens)
    stream = cache[HOOK].numpy()  # (sequence, position, width)
    print("largest difference to the capture:", np.abs(stream - store[HOOK]).max())

    position = np.broadcast_to(np.arange(stream.shape[1]), stream.shape[:2])
    groups = np.broadcast_to(np.arange(len(stream))[:, np.newaxis], stream.shape[:2])
    later = np.s_[:, 1:]  # position 0 is an outlier, and no probe needs to read it
    X = stream[later].reshape(-1, stream.shape[-1])
    X = X / np.sqrt((X**2).mean(axis=1, keepdims=True))  # as the next norm reads it
    probe = posprobe.PositionProbe().fit(X, position[later].ravel(), groups=groups[later].ravel())
    print("from the cache:   R2", probe.interval(estimand="fixed_probe"))

    X, y, groups, _ = features(store, LAYER, which="residual")
    probe = posprobe.PositionProbe().fit(X, y, groups=groups)
    print("from the capture: R2", probe.interval(estimand="fixed_probe"))


if __name__ == "__main__":
    main()
