"""Every decoder type of transformers, built small from its configuration's own defaults.

`python tests/helpers/decoder_types.py > docs/architectures.md` writes the table of all of them.
"""

import copy
import inspect
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import brute_force
import numpy as np
import tiny
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from posprobe.captures import capture_stimulus
from posprobe.channels import channel_effects
from posprobe.errors import DesignError, ModelError
from posprobe.models import ObservableModel
from posprobe.stimuli import make_stimulus

TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY, LENGTH = 97, 30
CORPUS = np.random.default_rng(0).integers(3, VOCABULARY, 500)
# What is made small, under every name that configurations have for it.
SIZES = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input n_vocab encoder_hash_byte_group_vocab",
    64: "hidden_size d_model n_embd dim emb_dim embed_dim word_embed_proj_dim dim_model lru_width "
    "decoder_hidden_size decoder_input_dim attention_hidden_size intermediate_size d_ff dim_ff "
    "ffn_dim encoder_ffn_dim decoder_ffn_dim ffn_hidden_size intermediate_size_mlp mamba_d_ssm "
    "feed_forward_hidden_size moe_intermediate_size shared_expert_intermediate_size "
    "expert_ffn_hidden_size moe_shared_expert_intermediate_size shared_intermediate_size "
    "max_position_embeddings max_seq_len n_positions n_ctx ctx_len context_length "
    "max_target_positions max_source_positions hidden_size_global",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
    "decoder_attention_heads attention_heads mamba_n_heads",
    2: "num_key_value_heads num_kv_heads n_head_kv n_groups num_experts_per_tok top_k moe_topk "
    "num_experts_per_token moe_top_k moe_k num_key_value_heads_swa num_linear_key_heads "
    "num_linear_value_heads",
    16: "head_dim attention_head_dim kv_channels v_head_dim kv_lora_rank q_lora_rank laurel_rank "
    "hidden_size_per_layer_input mamba_d_state state_size linear_key_head_dim mamba_d_head "
    "linear_value_head_dim index_head_dim",
    8: "qk_rope_head_dim qk_nope_head_dim num_experts num_local_experts n_routed_experts "
    "moe_num_experts rotary_dim",
    3: "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers "
    "encoder_layers num_encoder_layers",
    9: "sliding_window attention_window_size",
}
BY_NAME = {name: size for size, names in SIZES.items() for name in names.split()}
# None stands for a size that follows from others; these are given all the same.
ALWAYS = {"head_dim", "num_key_value_heads"}
LATENT = dict(head_dim=8, num_key_value_heads=4)  # of attention through a latent vector
OTHERWISE = {
    **{name: LATENT for name in ("deepseek_v3", "youtu", "longcat_flash")},
    **{name: dict(mamba_n_heads=8) for name in ("bamba", "granitemoehybrid")},
    "axk1": LATENT | dict(n_group=1, topk_group=1),
    "bailing_hybrid": dict(n_group=1, topk_group=1),
    "cohere_compass_text": dict(
        rope_parameters={kind: tiny.WHOLE for kind in ("full_attention", "sliding_attention")}
    ),
    "dbrx": dict(
        attn_config=dict(kv_n_heads=2, rope_theta=1e4, clip_qkv=2.0),
        ffn_config=dict(ffn_hidden_size=64, moe_num_experts=4, moe_top_k=2),
    ),
    "deepseek_v2": LATENT | dict(num_experts_per_tok=2, n_group=1, topk_group=1),
    "dots1": dict(n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2),
    "gemma3n_text": dict(num_kv_shared_layers=0, layer_types=["full_attention"] * 3),
    "gpt_neo": dict(num_layers=2, attention_types=[[["global", "local"], 1]]),
    "lfm2_moe": dict(layer_types=["full_attention"] * 3),
    "mamba2": dict(num_heads=8, head_dim=16, n_groups=2),
    "reformer": dict(axial_pos_embds=False, is_decoder=True),
    "xmod": dict(default_language="en_XX"),
    "zamba2": dict(layers_block_type=["mamba", "mamba", "hybrid"]),
    "zaya": dict(num_experts_per_tok=1),
}


def small_config(model_type):
    """The type's own configuration with small sizes; its parts for images and sound likewise."""
    return _small(transformers.CONFIG_MAPPING[model_type], OTHERWISE.get(model_type, {}))


def _small(kind, otherwise):
    default = kind()
    names = sorted({*default.to_dict(), *inspect.signature(kind.__init__).parameters})
    old = {name: _value(default, name) for name in names}
    kept = [n for n in names if n in BY_NAME and (old[n] is not None or n in ALWAYS)]
    values = {name: BY_NAME[name] for name in kept}
    for name, value in old.items():
        if name.endswith("_token_id") and isinstance(value, int) and value >= VOCABULARY:
            values[name] = 1
    if old.get("is_decoder") is False and not old.get("is_encoder_decoder"):
        values["is_decoder"] = True
    if "kv_lora_rank" in values:
        values["num_key_value_heads"] = 4
    parts = {
        name: _small(type(old[name]), {})
        for name in sorted({*kind.sub_configs} - {*otherwise})
        if isinstance(old.get(name), transformers.PreTrainedConfig)
    }
    return kind(**values | parts | otherwise)


def _value(config, name):
    """A configuration's value; one that differs between layers raises an error of its own."""
    try:
        return getattr(config, name, None)
    except Exception:
        return ...


class NotBuiltError(Exception):
    """transformers makes no such model."""


def small_model(model_type, dtype=torch.float64):
    """A random model of the type, in evaluation mode."""
    try:
        config = small_config(model_type)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=dtype, experts_implementation="eager"
            )
    except Exception as error:
        raise NotBuiltError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    return tiny.scramble(model)


class Outcome(NamedTuple):
    """What became of a type: measured, measured in part, refused, or not built; and why."""

    kind: str
    reason: str = ""
    errors: Mapping[str, float] = MappingProxyType({})
    size: float = 1.0  # the largest score in nats, by which numbers round
    dtype: torch.dtype = torch.float64

    @property
    def error(self):
        """The largest error of what was measured, in nats."""
        return max(error for name, error in self.errors.items() if name != "eager")

    @property
    def tolerance(self):
        """What rounding explains: files are in float32, whatever the model computes in."""
        return 1e-6 + self.size * (2e-7 if self.dtype == torch.float64 else 1e-5)


def outcome(model_type, folder):
    """Capture the type, natural and shifted, and compare all of it with brute force.

    In float64, and in float32 where the type's own code cannot do without it.
    """
    try:
        found = _outcome(small_model(model_type), folder)
        if found.kind == "refused":
            found = _outcome(small_model(model_type, torch.float32), folder)
    except NotBuiltError as error:
        return Outcome("not built", str(error))
    return found


def _outcome(model, folder):
    plain = copy.deepcopy(model)
    try:
        observable = ObservableModel(model, name=model.config.model_type)
        gap = brute_force.distance_from_eager(plain, CORPUS[:LENGTH])
        found = Outcome("measured", "", brute_force.Errors(eager=gap), dtype=model.dtype)
        for design in ("natural", "shifted"):
            found = _compared(observable, plain, design, folder, found)
    except ModelError as error:
        return Outcome("refused", str(error))
    return found


def _compared(observable, plain, design, folder, found):
    """Add what a capture of the design shows."""
    sizes = dict(n=2, length=LENGTH, window=6, prefixes=(1, 4, 8, LENGTH - 6))
    stimulus = make_stimulus(design, CORPUS, **sizes)
    path = folder / f"{design}.h5"
    store = capture_stimulus(observable, stimulus, path, progress=False, overwrite=True)
    layers_of = [brute_force.all_layers(plain, row[row >= 0]) for row in store.tokens]
    brute_force.stored_errors(store, layers_of, found.errors)
    scores = [np.abs(layer.scores).max() for layer in layers_of[0].values()]
    found = found._replace(size=max(found.size, *scores))
    try:
        if design == "shifted":
            compare_effects(store, layers_of, found.errors)
    except DesignError as error:
        return found._replace(kind="not split", reason=str(error))
    return found


def compare_effects(store, layers_of, errors):
    for layer in range(store.n_layers):
        found = channel_effects(store, layer)
        for name, expected in brute_force.effects(store, layers_of, layer).items():
            errors.add(name, getattr(found, name), expected)


HEAD = """# Decoder types

Every decoder type of transformers {version} (`MODEL_FOR_CAUSAL_LM_MAPPING`) was built with small
random weights and put through a natural and a shifted capture. z, the scores of key 0 and of fixed
offsets, and T, M and R were compared with brute force: every score of every pair, from the model's
own queries and keys in float64, which in turn was compared with the model's eager attention.
`python tests/helpers/decoder_types.py` writes this page, and `tests/models/test_decoder_types.py`
compares it with what happens today.

- **measured** ({measured}): the table has the largest error of all these quantities. Files are in
  float32, in which a score of 20 nats rounds by 1e-6.
- **not split** ({not split}): z and scores are right. T is not split into two channels, since
  scores move with position by themselves.
- **refused** ({refused}): posprobe says why, in one line, before anything is measured.
- **not built** ({not built}): transformers makes no small model of the type by itself.

Sizes are small, and all else is the default of the type's configuration. A hybrid whose attention
comes every fourth layer is refused for its other layers.

| type | outcome | largest error (nats) or reason |
|---|---|---|"""


def table_row(model_type, found):
    """One row of docs/architectures.md."""
    said = found.reason.removeprefix(f"model {model_type!r}").removeprefix(":").strip()
    said = said.removeprefix("shifted.h5 ").replace("|", "\\|")
    if found.errors:
        rounded = "" if found.dtype == torch.float64 else " (in float32)"
        said = f"{found.error:.1e}{rounded}" + (f"; {said}" if said else "")
    return f"| {model_type} | {found.kind} | {said[:230]} |"


def main():
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        found = {name: outcome(name, Path(folder)) for name in sorted(TYPES)}
    kinds = Counter(each.kind for each in found.values())
    kinds = {name: kinds[name] for name in ("measured", "not split", "refused", "not built")}
    print(HEAD.format(version=transformers.__version__, **kinds))
    for name, each in found.items():
        print(table_row(name, each))


if __name__ == "__main__":
    main()
