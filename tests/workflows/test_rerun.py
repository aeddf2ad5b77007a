"""A capture repeated from what its file records: the same bytes, or a refusal that names why."""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import study_child as child
import synthetic
from transformers import AutoModelForCausalLM

import posprobe
from posprobe.captures import CaptureOptions, capture_stimulus, draw
from posprobe.errors import ModelError, StimulusError, StoreError
from posprobe.models import Intervention, load_model
from posprobe.store import ActivationStore, StoreWriter
from posprobe.workflows import rerun as workflow
from posprobe.workflows.rerun import Rerun, rerun

SIZES = {"n": 3, "length": 48, "progress": False}
FORMAT_1 = Path(__file__).parents[1] / "store" / "data" / "format-1.h5"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return str(child.save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def text_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "words.txt"
    path.write_text(child.make_text())
    return path


def captured(model, text, path="a.h5", **options):
    posprobe.capture(model, path, text=text, **SIZES | options).close()
    return Path(path)


def altered(path, source, *, token=0, **fields):
    """The file again, with other fields in its header or another token."""
    with ActivationStore(source) as store:
        header = dataclasses.replace(store.header, **fields)
        index = {name: store.read(name).copy() for name in header.index}
        index["tokens"][0, 3] += token
        with StoreWriter.create(path, header, index) as writer:
            writer.write({name: store.read(name) for name in header.quantities})
            return writer.finish()


def repeated(path, target="b.h5", **options):
    return rerun(path, target, progress=False, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"design": "shifted", "bos": "force", "position0": "mean", "seed": 5},
        {"design": "shifted", "position0": "content", "window": 8, "prefixes": (1, 40)},
        {"design": "shifted", "first_item": 4},
        {"design": "shifted", "window": 8, "bands": 2, "zero_band": (0,)},
        {"design": "iid", "batch_tokens": 48, "dtype": "float16", "offsets": (0, 3)},
        {"residual_layers": "1,last", "residual_positions": (0, 4), "quantities": ("residual",)},
        {"residual_layers": tuple(np.arange(2)), "residual_positions": "all/16"},
        {"intervention": Intervention(cut_sink=((0, 1),), fixed_denominator=((1, 0, 2.5),))},
    ],
    ids=["default", "mean", "content", "more", "bands", "iid", "some", "numbers", "changed"],
)
def test_a_repeated_capture_has_the_same_bytes(options, model_folder, text_file):
    found = repeated(captured(model_folder, text_file, **options))
    assert found == Rerun(Path("b.h5").absolute())
    assert Path("b.h5").read_bytes() == Path("a.h5").read_bytes()
    assert found.in_words() == "same bytes"


def test_a_variant_and_a_type_are_repeated(model_folder, text_file):
    model = load_model(model_folder, variant="window(16)", dtype="bfloat16", name="ours")
    assert repeated(captured(model, text_file)).in_words() == "same bytes"
    with ActivationStore("b.h5") as store:
        assert (store.model, store.compute_type) == ("ours", "bfloat16")
        assert store.header.variant == "window(16)"


def test_what_a_number_of_items_was_planned_for_is_kept(model_folder, text_file):
    model = load_model(model_folder)
    planned = {"quantity": "V_R", "target": 0.1, "pilot": 3, "most": 9, "assurance": 0.8}
    drawn = draw(model, text_file, design="shifted", n=3, length=48)
    capture_stimulus(model, dataclasses.replace(drawn, precision=planned), "a.h5").close()
    assert repeated("a.h5").in_words() == "same bytes"


def test_a_bundled_and_shuffled_text_is_read_again(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert repeated(captured("zoo/rope-0", "shuffled:french")).in_words() == "same bytes"


def test_model_and_text_may_be_elsewhere(model_folder, text_file, tmp_path):
    path = captured(model_folder, text_file)
    (tmp_path / "there").mkdir()
    text = Path(shutil.move(text_file, tmp_path / "there" / "words.txt"))
    said = r"a\.h5: its text cannot be read again \(.*words\.txt.*\); --text says where it is now"
    with pytest.raises(StimulusError, match=said):
        repeated(path)
    assert repeated(path, text=[text]).in_words() == "same bytes"
    moved = shutil.copytree(model_folder, tmp_path / "moved")
    found = repeated(path, "c.h5", text=[text], model=str(moved))
    assert (found.part, found.path.name) == (None, "c.h5")
    assert re.fullmatch(r"same data; attribute 'options\.model\.model' is .*", found.in_words())


def test_a_text_that_changed_is_refused_by_its_name(model_folder, text_file):
    path = captured(model_folder, text_file)
    text_file.write_text(text_file.read_text() + " word1")
    said = r"a\.h5 cannot be repeated: text 'words\.txt' has changed \(its digest was \w{12}, and"
    with pytest.raises(StoreError, match=said):
        repeated(path)
    assert not Path("b.h5").exists()


def test_a_text_that_python_gave_is_asked_for(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = child.make_text()
    path = captured(model_folder, text)
    with pytest.raises(StimulusError, match="its text 'a text without a name' was given in Python"):
        repeated(path)
    assert repeated(path, text=text).in_words() == "same bytes"


def test_weights_that_changed_are_refused(model_folder, text_file, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    path = captured(str(folder), text_file)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.lm_head.weight.data += 1
    model.save_pretrained(folder)
    with pytest.raises(StoreError, match=r"cannot be repeated: model '.*' has changed"):
        repeated(path)
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="there is no such folder"):
        repeated(path)


def test_a_model_in_memory_is_refused(model_folder, text_file):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    path = captured(model, text_file, tokenizer=child.make_tokenizer())
    with pytest.raises(StoreError, match=r"its model '.*' was in memory, which no file records"):
        repeated(path)


def test_other_tokens_are_refused(model_folder, text_file):
    other = altered("other.h5", captured(model_folder, text_file), token=1)
    with pytest.raises(StoreError, match="the tokens drawn now are others; its tokenizer or"):
        repeated(other)


def test_what_no_file_can_ask_for_is_refused(model_folder, text_file):
    path = captured(model_folder, text_file)
    with ActivationStore(path) as store:
        recorded, stimulus = store.header.options, dict(store.header.stimulus)
    code = {**recorded, "model": {**recorded["model"], "trust_remote_code": True}}
    with pytest.raises(StoreError, match="ran code of its own, which a file cannot ask for"):
        repeated(altered("code.h5", path, options=code))
    later = {**recorded, "capture": {"colour": 1}}
    with pytest.raises(StimulusError, match="option 'colour' is unknown; install the release"):
        repeated(altered("later.h5", path, options=later))
    for old in (FORMAT_1, altered("old.h5", path, options={})):
        with pytest.raises(StoreError, match="does not record how it was captured, as files of ea"):
            repeated(old)
    del stimulus["bos"]
    with pytest.raises(StoreError, match="attribute 'stimulus' has no 'bos', so it cannot be draw"):
        repeated(altered("drawn.h5", path, stimulus=stimulus))


def test_data_that_differ_are_named(model_folder, text_file, monkeypatch):
    path = captured(model_folder, text_file)
    real = workflow.capture_stimulus

    def other(model, stimulus, path, options, **given):
        cut = options.changed(intervention=Intervention(cut_sink=((1, 0),)))
        return real(model, stimulus, path, cut, **given)

    monkeypatch.setattr(workflow, "capture_stimulus", other)
    found = repeated(path)
    assert found.part == "normalizer, layer 1"
    assert found.in_words().startswith(
        "other data, first in normalizer, layer 1; attribute 'interv"
    )


def test_an_old_capture_is_resumed_and_not_overwritten(model_folder, text_file):
    path = captured(model_folder, text_file)
    repeated(path)
    with pytest.raises(StoreError, match=r"b\.h5 exists"):
        repeated(path)
    assert repeated(path, overwrite=True).in_words() == "same bytes"
    assert repeated(path, resume=True).in_words() == "same bytes"


def test_options_are_recorded_in_full(model_folder, text_file):
    path = captured(model_folder, text_file, position0="zero")
    with ActivationStore(path) as store:
        recorded = store.header.options
    assert recorded["model"] == {
        "model": model_folder,
        "name": "",
        "variant": "standard",
        "dtype": "float32",
        "device": "cpu",
        "revision": None,
        "trust_remote_code": False,
    }
    options = CaptureOptions(position0="zero", residual_layers=(0, 1, 2), batch_tokens=2048)
    assert CaptureOptions.from_description(recorded["capture"]) == options


def test_options_of_another_kind_are_refused(tmp_path):
    for options, said in (
        ({"model": {"device": 3}}, r"'options\.model\.device' is 3, expected a string"),
        ({"capture": {"offsets": [-1]}}, r"'options\.capture\.offsets\[0\]' is -1, expected a cou"),
        ({"capture": {"residual_layers": 2.5}}, r"'options\.capture\.residual_layers' is 2\.5"),
        ({"capture": {"intervention": {"window": 0}}}, r"'options\.capture\.intervention\.window'"),
    ):
        with pytest.raises(StoreError, match=said):
            synthetic.write(
                tmp_path / "a.h5", {"normalizer": np.zeros((1, 2, 3, 1))}, options=options
            )
