"""One tool at one length in a process of its own; `benchmarks/peers.py` starts it and says when.

    python peer.py TOOL MODEL_FOLDER TOKENS.npy RESULT.npz

It loads the model, then answers each line "first" or "run" on standard input with one line of
JSON. Both observe the tokens once. "first" also measures memory and writes what was observed:
`normalizer` and `sink` (the attention to key 0), both (layer, head, query), and `residual`, the
stream that enters each block, (layer, query, width).
"""

import ctypes
import gc
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

WARM_UP = 48


def plain(folder, sink):
    """The floor: a forward pass with fused attention, nothing observed."""
    model = _load(folder, "sdpa")
    return lambda ids: model.base_model(input_ids=ids, use_cache=False) and None


def posprobe_memory(folder, sink):
    """posprobe records the three quantities and keeps them in memory."""
    from posprobe.models import Observation, Observer, load_model

    model = load_model(folder)

    def observe(ids):
        seen = {}
        model.run(
            ids,
            Observer(
                lambda name, layer, tensor: seen.update({(name, layer): tensor[0]}),
                Observation(ids.shape[1]),
            ),
        )
        for layer in range(model.n_layers):
            normalizer = seen["normalizer", layer].T
            sink(normalizer, (seen["sink_score", layer].T - normalizer).exp())
            sink(residual=seen["residual", layer])

    return observe


def posprobe_file(folder, sink):
    """A whole default capture to a file, with all that it records; two sequences, one to a pass."""
    from posprobe.captures import capture_stimulus
    from posprobe.captures.run import draw
    from posprobe.models import load_model
    from posprobe.store import ActivationStore

    model = load_model(folder)
    scratch = tempfile.TemporaryDirectory()
    path = Path(scratch.name) / "capture.h5"
    stimuli = {}

    def prepare(ids):
        stimuli["natural"] = draw(model, n=observe.sequences, length=ids.shape[1])

    def observe(ids):
        capture_stimulus(
            model,
            stimuli["natural"],
            path,
            batch_tokens=ids.shape[1],
            overwrite=True,
            progress=False,
        ).close()

    def fetch(ids):
        with ActivationStore(path) as store:
            if not np.array_equal(store["tokens"][:1], ids):
                raise SystemExit("the capture drew other tokens than the peers got")
            for layer in range(model.n_layers):
                normalizer = torch.from_numpy(store.read("normalizer", layer)[0].T.copy())
                score = torch.from_numpy(store.read("sink_score", layer)[0].T.copy())
                sink(normalizer, (score - normalizer).exp())
                sink(residual=torch.from_numpy(store.read("residual", layer)[0].copy()))

    observe.prepare, observe.fetch = prepare, fetch
    observe.scratch = scratch  # deleted with the tool
    observe.sequences = 2  # the fewest that a capture takes
    return observe


def eager(folder, sink):
    """transformers with output_attentions and output_hidden_states, z from weights and scores.

    Attention weights do not hold z. A hook per layer forms the one score per query that is needed,
    that of the key with the largest weight: z = s - log a.
    """
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model = _load(folder, "eager")

    def hook(module, args, kwargs, output):
        hidden, weights = kwargs["hidden_states"], output[1][0]
        shape = *hidden.shape[:-1], -1, module.head_dim
        query, key = apply_rotary_pos_emb(
            module.q_proj(hidden).view(shape).transpose(1, 2),
            module.k_proj(hidden).view(shape).transpose(1, 2),
            *kwargs["position_embeddings"],
        )
        largest, at = weights.max(-1)
        heads = torch.arange(len(weights)) // module.num_key_value_groups
        score = (query[0] * key[0][heads[:, None], at]).sum(-1) * module.scaling
        sink(score - largest.log(), weights[..., 0].clone())

    for block in model.base_model.layers:
        block.self_attn.register_forward_hook(hook, with_kwargs=True)

    def observe(ids):
        output = model.base_model(
            input_ids=ids, use_cache=False, output_attentions=True, output_hidden_states=True
        )
        for residual in output.hidden_states[:-1]:
            sink(residual=residual[0])
        return output

    return observe


def lens_cache(folder, sink):
    """TransformerLens run_with_cache, restricted to the scores and the residual stream."""
    model = _bridge(folder)
    wanted = ("attn.hook_attn_scores", "hook_resid_pre")

    def observe(ids):
        _, cache = model.run_with_cache(
            ids, names_filter=lambda name: name.endswith(wanted), logits_to_keep=1
        )
        for layer in range(model.cfg.n_layers):
            sink(*_reduce(cache[f"blocks.{layer}.attn.hook_attn_scores"][0]))
            sink(residual=cache[f"blocks.{layer}.hook_resid_pre"][0])
        return cache

    return observe


def lens_hooks(folder, sink):
    """TransformerLens run_with_hooks, each layer's scores reduced and let go at once."""
    model = _bridge(folder)
    hooks = [
        (lambda name: name.endswith("attn.hook_attn_scores"), lambda x, hook: sink(*_reduce(x[0]))),
        (lambda name: name.endswith("hook_resid_pre"), lambda x, hook: sink(residual=x[0])),
    ]

    def observe(ids):
        model.run_with_hooks(ids, fwd_hooks=hooks, logits_to_keep=1)

    return observe


def nnsight(folder, sink):
    """nnsight's trace into the source of eager attention, each layer's scores reduced at once."""
    from nnsight import TransformersModel

    model = TransformersModel(
        folder,
        task="text-generation",
        attn_implementation="eager",
        dtype=torch.float32,
        device_map="cpu",
        dispatch=True,
    )

    def observe(ids):
        with model.trace(ids, use_cache=False, logits_to_keep=1):
            seen = list().save()
            for block in model.model.layers:
                residual = block.input
                inner = block.self_attn.source.attention_interface_1.source
                scores = inner.nn_functional_softmax_0.inputs[0][0][0]
                normalizer = scores.logsumexp(-1)
                seen.append((residual, normalizer, (scores[..., 0] - normalizer).exp()))
        for residual, normalizer, first in seen:
            sink(normalizer, first, residual[0])

    return observe


TOOLS = {
    "plain": plain,
    "posprobe": posprobe_memory,
    "posprobe-file": posprobe_file,
    "eager": eager,
    "lens-cache": lens_cache,
    "lens-hooks": lens_hooks,
    "nnsight": nnsight,
}


def _load(folder, attention):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=attention, dtype=torch.float32
    ).eval()


def _bridge(folder):
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(folder, dtype=torch.float32, device="cpu")


def _reduce(scores):
    """z and the attention to key 0 of masked scores (head, query, key)."""
    normalizer = scores.logsumexp(-1)
    return normalizer, (scores[..., 0] - normalizer).exp()


class Sink:
    """Keeps what a tool hands over, as a user would: all layers, in memory."""

    def __init__(self):
        self.clear()

    def clear(self):
        self.parts = {"normalizer": [], "sink": [], "residual": []}

    def __call__(self, normalizer=None, sink=None, residual=None):
        for name, tensor in (("normalizer", normalizer), ("sink", sink), ("residual", residual)):
            if tensor is not None:
                self.parts[name].append(tensor)

    def save(self, path):
        np.savez(path, **{name: torch.stack(part).numpy() for name, part in self.parts.items()})


def resident(field):
    """VmRSS (now) or VmHWM (the peak) of this process, in bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if field in x)
    return int(line.split()[1]) * 1024


def settle():
    """Give free memory back, forget the peak so far, and return what is still resident."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def timed(observe, ids, sink):
    """Wall and processor seconds of one observation."""
    sink.clear()
    start, used = time.perf_counter(), time.process_time()
    kept = observe(ids)
    wall, used = time.perf_counter() - start, time.process_time() - used
    del kept
    sequences = getattr(observe, "sequences", 1)
    return wall / sequences, used / sequences


@torch.inference_mode()
def main():
    tool, folder, tokens, result = sys.argv[1:]
    ids = torch.from_numpy(np.load(tokens)).long()
    sink = Sink()
    observe = TOOLS[tool](folder, sink)
    if hasattr(observe, "prepare"):  # a capture draws its own tokens
        observe.prepare(ids)
    else:
        observe(ids[:, :WARM_UP])  # touches the weights
    print("READY", flush=True)
    for line in sys.stdin:
        answer = {"threads": torch.get_num_threads()}
        if line.strip() == "first":
            before = settle()
        wall, used = timed(observe, ids, sink)
        answer |= {"wall": wall, "processor": used}
        if line.strip() == "first":
            answer |= {"beyond": resident("VmHWM") - before, "peak": resident("VmHWM")}
            if hasattr(observe, "fetch"):
                observe.fetch(ids)
            if sink.parts["normalizer"]:
                sink.save(result)
        sink.clear()
        print("ANSWER " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
