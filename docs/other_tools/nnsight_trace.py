"""Probe a trace of nnsight for position, and check it against a capture.

Run from the folder of this file, with a small model of the repository:

    pip install nnsight 'posprobe[models]'
    python nnsight_trace.py

Run by hand with nnsight 0.8.1; no test runs it.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from nnsight import TransformersModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import posprobe
from posprobe.probes import features

ZOO = Path(__file__).resolve().parents[2] / "data" / "zoo"
LAYER = 2


def main() -> None:
    """Trace the sequences of a capture, and probe what enters block `LAYER`."""
    own = AutoModelForCausalLM.from_pretrained(ZOO / "rope-0", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "tokenizer")
    model = posprobe.load_model(own, tokenizer=tokenizer, name="rope-0")
    path = Path(tempfile.mkdtemp()) / "natural.h5"
    store = posprobe.capture(model, path, n=24, length=96, text="english", progress=False)

    traced = TransformersModel(own, tokenizer=tokenizer)
    with torch.no_grad(), traced.trace(torch.from_numpy(store.tokens.astype("i8"))):
        stream = traced.model.layers[LAYER].input.save()
    stream = stream.numpy()  # (sequence, position, width)
    expected = store.residual(LAYER)
    print("largest difference to the capture:", np.abs(stream - expected).max())

    position = np.broadcast_to(np.arange(stream.shape[1]), stream.shape[:2])
    groups = np.broadcast_to(np.arange(len(stream))[:, np.newaxis], stream.shape[:2])
    later = np.s_[:, 1:]  # position 0 is an outlier, and no probe needs to read it
    X = stream[later].reshape(-1, stream.shape[-1])
    X = X / np.sqrt((X**2).mean(axis=1, keepdims=True))  # as the next norm reads it
    probe = posprobe.PositionProbe().fit(X, position[later].ravel(), groups=groups[later].ravel())
    print("from the trace:  R2", probe.interval(estimand="fixed_probe"))

    X, y, groups, _ = features(store, LAYER, which="residual")
    probe = posprobe.PositionProbe().fit(X, y, groups=groups)
    print("from the capture: R2", probe.interval(estimand="fixed_probe"))


if __name__ == "__main__":
    main()
