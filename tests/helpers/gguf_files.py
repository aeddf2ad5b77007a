"""Tiny GGUF files, written as llama.cpp's converter writes them, and what they mean.

`write` turns a transformers model into a file; `normalizers` computes the log-normalizers of a file
in float64 NumPy, with the rotation as ggml defines it, and shares no code with the package.
"""

import gguf
import numpy as np

# Architecture of the file: how its rotary embedding pairs dimensions, and whether norms are stored
# as 1 + w. "norm" turns neighbours (2k, 2k + 1), "neox" turns (k, k + n / 2).
PAIRING = {"llama": "norm", "phi3": "neox"}
SHIFTED_NORMS = ("gemma2", "gemma3", "nemotron")
EPSILON = {"gpt2": "layer_norm_epsilon", "stablelm": "layer_norm_epsilon"} | {
    "starcoder2": "layer_norm_epsilon",
    "nemotron": "layer_norm_epsilon",
}
# Keys that have the name of the configuration's attribute, or nearly.
SAME = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
ALPHABET = [chr(code) for code in range(33, 127)]  # bytes that a byte-level vocabulary spells alike
TOKENS = [*ALPHABET, "Ġ", "th", "<s>"]  # 97, as `tiny.COMMON` has


def keys_of(model, architecture):
    """The keys that llama.cpp's converter writes for a model, without the architecture's name."""
    config = model.config
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    epsilon = EPSILON.get(architecture, "layer_norm_rms_epsilon")
    names = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
    width = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    keys = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": width,
        "attention.head_count": heads,
        f"attention.{epsilon}": next(getattr(config, n) for n in names if hasattr(config, n)),
    }
    if hasattr(config, "num_key_value_heads"):
        keys["attention.head_count_kv"] = config.num_key_value_heads
    for key, attribute in SAME.items():
        if (value := getattr(config, attribute, None)) is not None:
            keys[key] = value
    if rope:
        keys["rope.freq_base"] = float(rope["rope_theta"])
        keys["rope.dimension_count"] = int(size * rope.get("partial_rotary_factor", 1.0))
        keys |= {"attention.key_length": size, "attention.value_length": size}
    return keys


def tensors_of(model, architecture):
    """The tensors that llama.cpp's converter writes for a model, by their names in the file."""
    config = model.config
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    tied = config.tie_word_embeddings
    tensors = {}
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        if "mlp.experts." in name:
            tensors |= experts(name, weight.float().numpy())
            continue
        stem, _, suffix = name.rpartition(".")
        if suffix not in ("weight", "bias"):
            stem, suffix = name, "weight"
        found = names.get_name(stem)
        if found is None:
            raise KeyError(name)
        array = weight.float().numpy()
        if "shared_expert_gate" in name:
            array = array[0]
        if architecture in SHIFTED_NORMS and "norm" in found and suffix == "weight":
            array = array + 1
        if architecture == "gpt2" and array.ndim == 2 and ("attn" in found or "ffn" in found):
            array = array.T
        if architecture == "llama" and "attn_q" in found:
            array = interleave(array, config.num_attention_heads)
        if architecture == "llama" and "attn_k" in found:
            array = interleave(array, config.num_key_value_heads)
        tensors[f"{found}.{suffix}"] = np.ascontiguousarray(array, dtype=np.float32)
    return tensors


def experts(name, stacked):
    """Weights of all experts of a layer, gate and up apart: each (expert, out, in)."""
    layer = name.split(".")[2]
    if name.endswith("down_proj"):
        return {f"blk.{layer}.ffn_down_exps.weight": stacked}
    gate, up = np.split(stacked, 2, axis=1)
    halves = {"gate": np.ascontiguousarray(gate), "up": np.ascontiguousarray(up)}
    return {f"blk.{layer}.ffn_{half}_exps.weight": array for half, array in halves.items()}


def interleave(rows, heads):
    """Put the two halves of each head's rows next to one another, as llama.cpp stores them."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write(path, architecture, keys, tensors, *, general=(), tokens=TOKENS, ends=()):
    """Write a file; `keys` are those of the architecture, `general` any others, by full name.

    `ends`: for "bos" and "eos", whether the tokenizer puts the token around every text.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_file_type(0)
    for name, value in {f"{architecture}.{k}": v for k, v in keys.items()}.items():
        _add(writer, name, value)
    for name, value in dict(general).items():
        _add(writer, name, value)
    if tokens:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens)
        writer.add_token_types([1] * (len(tokens) - 1) + [3])
        writer.add_token_merges(["t h"])
        writer.add_bos_token_id(len(tokens) - 1)
        writer.add_eos_token_id(len(tokens) - 1)
        for end, added in dict(ends).items():
            writer.add_bool(f"tokenizer.ggml.add_{end}_token", added)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer, name, value):
    kinds = {str: "string", bool: "bool", int: "uint32", float: "float32", list: "array"}
    getattr(writer, f"add_{kinds[type(value)]}")(name, value)


# --- the reference ---


def angles(keys, positions, factors=None):
    """Angles (token, pair) and the factor of cosines and sines, as ggml's rope computes them."""
    n = keys["rope.dimension_count"]
    base = keys.get("rope.freq_base", 10_000.0)
    kind = keys.get("rope.scaling.type", "linear")
    scale = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 1.0)) or 1.0
    scale = 1.0 if kind == "none" else scale
    pair = np.arange(n // 2)
    full = positions[:, None] * base ** (-2.0 * pair / n)
    if factors is not None:
        full = full / factors
    divided = full / scale
    factor = keys.get("rope.scaling.attn_factor", 1.0)
    if kind != "yarn":
        return divided, factor
    original = keys.get("rope.scaling.original_context_length", keys["context_length"])
    fast = keys.get("rope.scaling.yarn_beta_fast", 32.0)
    slow = keys.get("rope.scaling.yarn_beta_slow", 1.0)

    def dimension(turns):
        return n * np.log(original / (turns * 2 * np.pi)) / (2 * np.log(base))

    low = max(0.0, np.floor(dimension(fast)))
    high = min(n - 1.0, np.ceil(dimension(slow)))
    kept = 1 - np.clip((pair - low) / max(0.001, high - low), 0, 1)
    return divided * (1 - kept) + full * kept, factor * (1 + 0.1 * np.log(scale))


def rotate(x, angle, factor, pairing):
    """Turn the first 2 * pairs dimensions of x (head, token, size) by angle (token, pair)."""
    n = 2 * angle.shape[1]
    first = slice(0, n, 2) if pairing == "norm" else slice(0, n // 2)
    second = slice(1, n, 2) if pairing == "norm" else slice(n // 2, n)
    cos, sin = factor * np.cos(angle), factor * np.sin(angle)
    turned = x.copy()
    turned[..., first] = x[..., first] * cos - x[..., second] * sin
    turned[..., second] = x[..., first] * sin + x[..., second] * cos
    return turned


def normalizers(architecture, keys, tensors, ids):
    """Log-normalizers z (layer, head, query) of one sequence of token ids, in float64."""
    weights = {name: array.astype(np.float64) for name, array in tensors.items()}
    length, heads = len(ids), keys["attention.head_count"]
    groups, size = keys["attention.head_count_kv"], keys["attention.key_length"]
    factors = weights.get("rope_freqs.weight")
    if "rope_factors_long.weight" in weights:
        original = keys["rope.scaling.original_context_length"]
        factors = weights[f"rope_factors_{'long' if length > original else 'short'}.weight"]
    angle, factor = angles(keys, np.arange(length, dtype=float), factors)
    distance = np.arange(length)[:, None] - np.arange(length)
    hidden = (distance < 0) | (distance >= keys.get("attention.sliding_window", length))

    def norm(x, name):
        size = np.sqrt((x**2).mean(-1, keepdims=True) + keys["attention.layer_norm_rms_epsilon"])
        return x / size * weights[f"{name}.weight"]

    def split(x, count):
        return x.reshape(length, count, size).transpose(1, 0, 2)

    stream, found = weights["token_embd.weight"][ids], []
    for layer in range(keys["block_count"]):
        block = {
            name.removeprefix(f"blk.{layer}.").removesuffix(".weight"): array
            for name, array in weights.items()
            if name.startswith(f"blk.{layer}.")
        }
        if "attn_qkv" in block:
            ends = (heads * size, (heads + groups) * size)
            block["attn_q"], block["attn_k"], block["attn_v"] = np.split(block["attn_qkv"], ends)
            block["ffn_gate"], block["ffn_up"] = np.split(block["ffn_up"], 2)
        x = norm(stream, f"blk.{layer}.attn_norm")
        q = split(x @ block["attn_q"].T, heads)
        k, v = (split(x @ block[f"attn_{name}"].T, groups) for name in "kv")
        q, k = (rotate(y, angle, factor, PAIRING[architecture]) for y in (q, k))
        k, v = (np.repeat(y, heads // groups, axis=0) for y in (k, v))
        scores = np.where(hidden, -np.inf, q @ k.transpose(0, 2, 1) / np.sqrt(size))
        top = scores.max(-1, keepdims=True)
        z = top + np.log(np.exp(scores - top).sum(-1, keepdims=True))
        found.append(z[..., 0])
        mixed = (np.exp(scores - z) @ v).transpose(1, 0, 2).reshape(length, -1)
        stream = stream + mixed @ block["attn_output"].T
        x = norm(stream, f"blk.{layer}.ffn_norm")
        gate = x @ block["ffn_gate"].T
        stream = (
            stream + (gate / (1 + np.exp(-gate)) * (x @ block["ffn_up"].T)) @ block["ffn_down"].T
        )
    return np.stack(found)
