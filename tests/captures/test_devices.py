"""Where a model computes: what is not there is refused, and a GPU gives the numbers of a CPU."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import accelerate
import capture_child as child
import device_child
import numpy as np
import pytest
import tiny
import torch
import transformers
from torch.utils import backend_registration

from posprobe.captures import CaptureOptions, capture_stimulus
from posprobe.captures.plan import BATCH_TOKENS, plan_capture
from posprobe.errors import ModelError
from posprobe.models import ObservableModel, load_model
from posprobe.store import ActivationStore

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny.tiny_model("mistral", dtype=torch.float32).save_pretrained(path)
    return str(path)


def take(model, path, **options):
    return capture_stimulus(model, child.stimulus(), path, progress=False, **options)


def assert_close(found, expected, tolerance):
    """Every quantity of one file against that of another, in units of its largest value."""
    for name in expected.header.quantities:
        one, other = found.read(name), expected.read(name)
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
        scale = np.nanmax(np.abs(other))
        assert np.nanmax(np.abs(one - other)) <= tolerance * scale, name


def assert_like_cpu(folder, tmp_path, tolerance, **loading):
    """A capture against that of the CPU in float32."""
    with (
        take(load_model(folder, device="cpu"), tmp_path / "cpu.h5") as expected,
        take(load_model(folder, **loading), tmp_path / "other.h5", batch_tokens=2048) as found,
    ):
        assert_close(found, expected, tolerance)


def test_auto_leaves_the_places_of_layers_to_transformers(folder, tmp_path, monkeypatch):
    plain, seen = transformers.AutoModelForCausalLM.from_pretrained, []

    def spy(*args, **keywords):
        seen.append(keywords.get("device_map"))
        return plain(*args, **keywords)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", spy)
    load_model(folder, device="auto")
    load_model(folder, device="cpu")
    assert seen == ["auto", None]
    tolerance = 1e-4 if torch.cuda.is_available() else 1e-6
    assert_like_cpu(folder, tmp_path, tolerance, device="auto")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "mps", "meta"])
def test_unknown_devices_are_refused(device, folder):
    with pytest.raises(ModelError, match=f"device '{device}' is unknown; use cpu, cuda, cuda:N"):
        load_model(folder, device=device)


def test_devices_that_are_not_there_are_refused(folder):
    number = torch.cuda.device_count()
    with pytest.raises(ModelError, match=f"device 'cuda:{number}' is not there: torch sees"):
        load_model(folder, device=f"cuda:{number}")


def test_a_model_that_does_not_fit_is_refused_with_its_size(folder, monkeypatch):
    weights = tiny.tiny_model("mistral", dtype=torch.float32).parameters()
    needed = sum(weight.nbytes for weight in weights)
    memory = SimpleNamespace(available=needed)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    load_model(folder, device="cpu")
    memory.available = needed - 1
    load_model(folder, device="cpu", dtype="bfloat16")
    load_model(folder, device="auto")
    monkeypatch.setattr("posprobe.models.loading.GIB", 1024)
    words = (
        f"takes {needed / 1024:.1f} GiB in float32, and cpu has .* GiB free; use a smaller dtype"
    )
    with pytest.raises(ModelError, match=words):
        load_model(folder, device="cpu")


@pytest.fixture(params=["cpu_offload", "disk_offload", "auto"])
def offloaded(request, folder, tmp_path, monkeypatch):
    """A model with weights that accelerate keeps elsewhere."""
    plain = transformers.AutoModelForCausalLM.from_pretrained
    if request.param == "cpu_offload":
        return load_model(accelerate.cpu_offload(plain(folder)), name=folder)
    if request.param == "disk_offload":
        return load_model(accelerate.disk_offload(plain(folder), tmp_path / "away"), name=folder)
    # as if memory had room for the embeddings alone
    some = partial(plain, max_memory={"cpu": 60_000})
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", some)
    return load_model(folder, device="auto")


def test_an_offloaded_model_gives_the_bits_of_the_whole_one(offloaded, folder, tmp_path):
    weights = dict(offloaded.model.named_parameters())
    assert any(weight.is_meta for weight in weights.values())
    whole = take(load_model(folder, device="cpu"), tmp_path / "whole.h5")
    found = take(offloaded, tmp_path / "found.h5")
    for name in whole.header.quantities:
        np.testing.assert_array_equal(found.read(name), whole.read(name), err_msg=name)
    assert found.header.weights_digest == whole.header.weights_digest
    assert found.header.rounding == {"unknown": "its weights are offloaded"}
    if offloaded.borrowed:
        assert all(weights[name] is now for name, now in offloaded.model.named_parameters())


def batch_tokens(model, free):
    model.free_memory = lambda: free
    return plan_capture(model, child.stimulus(), CaptureOptions()).header.batch_tokens


def test_a_pass_takes_what_fits_into_a_gpu():
    model = child.model()
    assert model.free_memory() is None or torch.cuda.is_available()
    sizes = [batch_tokens(model, free) for free in (1, 2**28, 2**30, 2**34)]
    assert sizes[0] == BATCH_TOKENS
    assert BATCH_TOKENS < sizes[1] < sizes[2] < sizes[3]
    assert sizes[3] / sizes[2] == 16
    assert batch_tokens(model, None) == BATCH_TOKENS


def test_a_wider_model_takes_fewer_tokens():
    narrow, wide = child.model(), child.model(intermediate_size=480)
    assert batch_tokens(wide, 2**30) < batch_tokens(narrow, 2**30)


def assert_emulated_like_cpu(folder, family, places, case):
    with (
        ActivationStore(folder / f"{family}-cpu-{case}.h5") as expected,
        ActivationStore(folder / f"{family}-{places}-{case}.h5") as found,
    ):
        assert_close(found, expected, 2e-5)


FAMILIES = ("llama", "mistral", "gemma2", "nope")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """Captures on emulated accelerators, which refuse operands of different devices."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no back ends in Python")
    out = tmp_path_factory.mktemp("emulated")
    folders = [out / family for family in FAMILIES]
    for folder in folders:
        tiny.tiny_model(folder.name, dtype=torch.float32).save_pretrained(folder)
        device_child.take(device_child.observable(folder), out, f"{folder.name}-cpu")
    command = [
        sys.executable,
        Path(__file__).parents[1] / "helpers" / "device_child.py",
        out,
        *folders,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "aten::add got tensors on emulated:0 and emulated:1",
        "llama _scaled_dot_product_cudnn_attention",
        "mistral _efficient_attention_forward",
        "nope _flash_attention_forward",
    ]
    return out


@pytest.mark.parametrize("case", device_child.CASES)
@pytest.mark.parametrize("places", ["one", "two"])
@pytest.mark.parametrize("family", FAMILIES)
def test_devices_are_never_mixed(family, places, case, emulated):
    assert_emulated_like_cpu(emulated, family, places, case)


@pytest.mark.parametrize("case", device_child.CASES)
@pytest.mark.parametrize("family", device_child.FUSED)
def test_the_layout_of_kernels_of_a_gpu_is_understood(family, case, emulated):
    assert_emulated_like_cpu(emulated, family, "fused", case)


@gpu
def test_a_gpu_gives_the_numbers_of_the_cpu(folder, tmp_path):
    assert_like_cpu(folder, tmp_path, 1e-4, device="cuda")


@gpu
def test_bfloat16_on_a_gpu_is_near_float32(folder, tmp_path):
    assert_like_cpu(folder, tmp_path, 5e-2, device="cuda", dtype="bfloat16")


@gpus
def test_layers_on_several_gpus_give_the_numbers_of_one(folder, tmp_path):
    model = load_model(folder, device="cpu")
    found = tiny.tiny_model("mistral", dtype=torch.float32)
    last = torch.cuda.device_count() - 1
    places = {"model.embed_tokens": 0, "model.norm": last, "lm_head": last, "model.rotary_emb": 0}
    places |= {f"model.layers.{layer}": min(layer, last) for layer in range(3)}
    spread = ObservableModel(accelerate.dispatch_model(found, places), name=model.name)
    one, other = take(model, tmp_path / "a.h5"), take(spread, tmp_path / "b.h5", batch_tokens=2048)
    np.testing.assert_allclose(other.normalizer(2), one.normalizer(2), atol=1e-4)
    np.testing.assert_allclose(other.residual(3), one.residual(3), rtol=1e-3, atol=1e-3)
