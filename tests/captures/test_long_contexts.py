"""Long contexts: nothing grows with the square of the length, and who is past training says so."""

import capture_child as child
import numpy as np
import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from posprobe.captures import capture_stimulus
from posprobe.errors import StimulusError
from posprobe.models import ObservableModel, parse_variant

SHORT, LONG = 512, 1024


class Sizes(TorchDispatchMode):
    """The largest tensor, in elements, that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return made


def take(model, path, length, **options):
    stimulus = child.stimulus("iid", n=2, length=length, prefixes=None)
    options = dict(past_training=True, progress=False) | options
    return capture_stimulus(model, stimulus, path / f"{length}.h5", **options)


@pytest.mark.parametrize(
    ("family", "variant"),
    [("llama", "standard"), ("llama", "window(40)"), ("mistral", "standard"), ("gemma2", "ntk(8)")],
)
@pytest.mark.parametrize("fused", [True, False])
def test_no_tensor_grows_faster_than_the_length(family, variant, fused, tmp_path, monkeypatch):
    if not fused:
        monkeypatch.setattr("posprobe.models.kernels.fused_kernel", lambda *_: None)
    changed = parse_variant(variant)
    config = tiny.tiny_config(family)
    changed.change_config(config)
    found = tiny.tiny_model(
        family, dtype=torch.float32, rope_parameters=config.rope_parameters,
        **{k: v for k, v in config.to_dict().items() if k == "posprobe_standard_rope"},
    )  # fmt: skip
    model = ObservableModel(found, variant=changed)
    sizes = []
    for length in (SHORT, LONG):
        with Sizes() as seen:
            take(model, tmp_path, length)
        sizes.append(seen.largest)
    assert sizes[1] <= 2.05 * sizes[0]
    assert sizes[1] < LONG**2


def test_past_training_is_refused_unless_asked_for(tmp_path):
    model = child.model()
    with pytest.raises(StimulusError, match=r"65 exceeds the 64 positions .*or --past-training"):
        take(model, tmp_path, 65, past_training=False)
    assert not list(tmp_path.iterdir())
    header = take(model, tmp_path, 65).header
    assert (header.length, header.trained_length) == (65, 64)


def test_a_scaled_rotation_reaches_further(tmp_path):
    model = child.model()
    model.variant = parse_variant("ntk(3)")
    model.variant_evidence = lambda length: {}
    with pytest.raises(StimulusError, match=r"64 positions .*, and the 192 that ntk\(3\) makes of"):
        take(model, tmp_path, 193, past_training=False)
    assert take(model, tmp_path, 192, past_training=False).header.trained_length == 64


@pytest.mark.parametrize("variant", ["standard", "window(8)", "no_causal"])
def test_what_does_not_scale_the_rotation_reaches_no_further(variant, tmp_path):
    assert parse_variant(variant).reach == 1
    model = child.model()
    model.variant = parse_variant(variant)
    with pytest.raises(StimulusError, match=r"65 exceeds the 64 positions"):
        take(model, tmp_path, 65, past_training=False)


def test_llama3_reaches_as_far_as_its_factor():
    assert parse_variant("llama3").reach == 8


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_table_of_positions_has_an_end(family, tmp_path):
    with pytest.raises(StimulusError, match=r"65 exceeds the 64 .*no embedding of later ones"):
        take(child.model(family), tmp_path, 65)
    assert take(child.model(family), tmp_path, 64).length == 64


def test_values_past_training_are_those_of_the_model(tmp_path):
    """The last query's normalizer, against eager attention of transformers."""
    plain = tiny.tiny_model("llama", dtype=torch.float32, attention="eager")
    store = take(child.model(), tmp_path, 200)
    ids = torch.tensor(store.tokens.astype(np.int64))
    with torch.no_grad():
        weights = plain(ids[:1], output_attentions=True).attentions[1][0, :, -1]
    shares = store.read("offset_score", 1)[0, -1] - store.normalizer(1)[0, -1][:, None]
    expected = weights[:, [-1 - d for d in store.offsets]]
    np.testing.assert_allclose(np.exp(shares), expected, atol=2e-6)
