"""Every decoder type of transformers: measured as brute force has it, or refused with a reason."""

import re
from pathlib import Path

import decoder_types
import pytest
import transformers

PAGE = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text()
ROWS = dict(
    re.findall(r"^\| (\S+) \| (measured|not split|refused|not built) \|", PAGE, re.MULTILINE)
)
# One or two of each kind: rotations, windows, learned positions and sinks, caps, latent vectors,
# experts, norms of q and k, encoders turned decoders, parts of a larger model, and refusals.
QUICK = re.findall(
    r"\S+",
    """
apertus bart beam bert biogpt bloom blt cohere2 ctrl deepseek_v2 deepseek_v3 deepseek_v32 diffllama
doge electra exaone4 falcon falcon_h1 gemma gemma2 gemma3 gemma4 git glm4 gpt2 gpt_bigcode gpt_neox
gpt_oss granite granite_swa helium hunyuan_v1_dense inkling_text jamba laguna lfm2 llama llama4
longcat_flash mamba mimo_v2_flash minicpm3 mistral mixtral modernbert-decoder moshi nanochat
nemotron olmo2 opt persimmon phi phi3 qwen2 qwen3 qwen3_next roberta smollm3 stablelm starcoder2
whisper xglm zaya
""",
)
PINNED = f"transformers {transformers.__version__} " in PAGE


@pytest.fixture(autouse=True)
def quiet():
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def marked(name):
    return name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.filterwarnings("ignore")  # of transformers, on what its defaults do to small models
@pytest.mark.parametrize("model_type", [marked(name) for name in decoder_types.TYPES])
def test_type_is_measured_right_or_refused_with_a_reason(model_type, tmp_path):
    found = decoder_types.outcome(model_type, tmp_path)
    if found.errors:
        assert found.errors["eager"] < 2e-5  # else brute force itself is something else
        assert found.error < found.tolerance, found.errors
    else:
        assert found.reason.isprintable()
        assert len(found.reason) > 20
    if PINNED:
        assert found.kind == ROWS[model_type]


def test_every_type_has_a_row():
    assert not PINNED or set(ROWS) == set(decoder_types.TYPES)
    assert set(QUICK) <= set(decoder_types.TYPES)
