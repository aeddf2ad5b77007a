"""The whole study on a tiny model: what it writes, what it refuses, and how it is interrupted."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import study_child as child
from numpy.testing import assert_allclose
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from posprobe.channels import decompose
from posprobe.errors import (
    DesignError,
    ModelError,
    PosprobeError,
    PosprobeWarning,
    StimulusError,
    StoreError,
)
from posprobe.models import load_model
from posprobe.report import drawings
from posprobe.report.words import VERDICTS
from posprobe.store import ActivationStore, JoinedStore, open_stores
from posprobe.workflows import analyze as analyze_module
from posprobe.workflows import audit as study
from posprobe.workflows.analyze import analyze
from posprobe.workflows.audit import audit

NUMBER = re.compile(r"[\d.]+(e[-+]?\d+)?")
FILES = {"natural.h5", "shifted.h5", "replaced_mean.h5", "replaced_content.h5"}
FILES |= {"repeated.h5", "bos_repeated.h5", "shifted_bos.h5", "replaced_mean_bos.h5"}
FIELDS = ["id", "statement", "estimate", "unit", "ci_low", "ci_high", "ci_level", "ci_method"]
FIELDS += ["n", "verdict", "p_value", "p_adjusted", "p_note", "verdict_adjusted", "family"]
FIELDS += ["reference", "protocol", "condition", "scope", "conditions"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return str(child.save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def text():
    return child.make_text()


@pytest.fixture(scope="module")
def audited(model_folder, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit") / "out"
    report = audit(model_folder, folder, text=text, **child.SIZES)
    assert report == folder / "report.html"
    return folder


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def results(folder):
    """What is made of the captured files, byte by byte."""
    return {
        name: (folder / name).read_bytes() for name in names(folder) if not name.endswith(".h5")
    }


# --- what it writes ---


def test_a_model_in_memory_is_audited_as_its_folder_is(model_folder, audited, text, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    attention = model.config._attn_implementation
    out = tmp_path / "out"
    page = audit(model, out, tokenizer=child.make_tokenizer(), text=text, **child.SIZES)
    assert model.config._attn_implementation == attention
    for name in names(audited):
        if name.endswith(".csv"):
            assert (out / name).read_bytes() == (audited / name).read_bytes(), name
    shown = page.read_text(encoding="utf-8")
    origin = f"in memory (class LlamaForCausalLM; name or path {Path(model_folder).name})"
    assert origin in shown
    (commands,) = re.findall("<pre>(.*?)</pre>", shown, re.DOTALL)
    assert commands.splitlines() == ["posprobe analyze *.h5 -o REPORT --seed 2"]  # nothing loads it


def test_folder_holds_report_claims_tables_figures_and_files(audited):
    written = names(audited)
    assert FILES | {"report.html", "claims.json"} <= written
    assert any(name.startswith("tables/") for name in written)
    assert any(name.startswith("figures/") and name.endswith(".svg") for name in written)
    loose = {n for n in written if not n.startswith(("tables/", "figures/"))}
    assert loose == FILES | {"report.html", "claims.json"}  # no journal, lock or temporary file
    assert "http" not in "".join(
        line for line in (audited / "report.html").read_text().splitlines() if "<script" in line
    )


def test_a_name_is_that_of_all_files(model_folder, text, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "analyze", lambda paths, *_, **__: paths)
    sizes = child.SIZES | {"length": None}
    with pytest.warns(PosprobeWarning, match="64 tokens instead of 256: model 'Mine' was made for"):
        paths = audit(model_folder, tmp_path, name="Mine", text=text, **sizes)
    assert {ActivationStore(path).model for path in paths} == {"Mine"}  # the title of the report


def test_claims_have_the_fields_that_scripts_read(audited):
    claims = json.loads((audited / "claims.json").read_text())
    assert len(claims) > 10
    for claim in claims:
        assert list(claim) == FIELDS
        assert claim["verdict"] in VERDICTS
        if claim["verdict"] in ("supported", "contradicted"):
            assert None not in (claim["ci_low"], claim["ci_high"], claim["estimate"])


def test_a_rotary_model_without_training_isolates_the_mask(audited):
    claims = {c["id"]: c for c in json.loads((audited / "claims.json").read_text())}
    assert claims["mask_isolated"]["verdict"] == "supported"
    assert claims["closed_system"]["verdict"] == "supported"
    assert claims["fingerprint_constant"]["verdict"] == "supported"
    assert claims["fingerprint_varies"]["verdict"] == "supported"


def test_tables_can_be_read(audited):
    for path in sorted((audited / "tables").iterdir()):
        assert len(pd.read_csv(path)) > 0, path.name


def test_weights_are_digested_once_an_audit(model_folder, text, tmp_path, monkeypatch):
    counted = []
    sha256 = hashlib.sha256
    monkeypatch.setattr(
        "posprobe.models.observable.hashlib",
        mock.Mock(sha256=lambda: counted.append(1) or sha256()),
    )
    monkeypatch.setattr(study, "analyze", lambda paths, *args, **keywords: paths)
    audit(model_folder, tmp_path / "out", text=text, **child.SIZES)
    assert counted == [1]


def test_files_are_captured_as_planned(audited):
    stores = {name: ActivationStore(audited / name) for name in FILES}
    assert {s.header.stimulus["corpus"] for s in stores.values()} == {"a text without a name"}
    assert {s.header.seed for s in stores.values()} == {2}
    assert {s.length for s in stores.values()} == {64}
    assert stores["natural.h5"].n_sequences == 6
    assert len(set(stores["shifted.h5"].tokens[:, 0])) > 1  # its tokenizer puts no BOS
    assert set(stores["shifted_bos.h5"].tokens[:, 0]) == {1}  # the BOS is forced
    assert stores["repeated.h5"].n_sequences == study.N_REPEATED
    kept = {name for name, s in stores.items() if "residual" in s.header.quantities}
    assert kept == {"natural.h5"}
    treatments = {s.header.position0_treatment for s in stores.values()}
    assert treatments == {"native", "mean", "content"}


def test_the_answer_is_of_the_native_condition_and_says_where_another_differs(audited):
    page = (audited / "report.html").read_text()
    answer = page[page.index('class="answer"') :].partition("</div>")[0]
    assert "Measured with a token of the text, no BOS, at position 0, on 6 items" in answer
    assert "of 2 conditions" in answer or "too small to speak of" in answer
    numbers = page[page.index("<summary>In numbers</summary>") :].partition("</details>")[0]
    assert "Used as its tokenizer has it, with a token of the text, and no BOS," in numbers
    assert "This depends on the condition" in numbers or "in each of the 2 conditions" in numbers
    claims = {c["id"]: c for c in json.loads((audited / "claims.json").read_text())}
    tested = claims["mask_channel"]["conditions"]
    assert [(c["position0"], c["native"]) for c in tested] == [("text", True), ("BOS", False)]
    assert claims["mask_channel"]["scope"].endswith("conditions")
    assert tested[0]["estimate"] > 0


def test_conditions_are_crossed_and_each_is_captured_once(
    model_folder, text, tmp_path, monkeypatch
):
    monkeypatch.setattr(study, "analyze", lambda paths, *args, **keywords: paths)
    conditions = {"position0": ("native", "none", "bos"), "length": (64, 48)}
    paths = audit(model_folder, tmp_path, text=text, conditions=conditions, **child.SIZES)
    added = [path.name for path in paths[len(FILES) - 2 :]]
    endings = ("_bos", "_48", "_48_bos")
    assert added == [f"{name}{end}.h5" for end in endings for name in ("shifted", "replaced_mean")]


def test_another_first_token_and_some_layers(model_folder, text, tmp_path):
    asked = {"bos": "force", "residual_layers": "1", "full": True}
    audit(model_folder, tmp_path / "out", text=text, **asked, **child.SIZES)
    stores = [ActivationStore(path) for path in (tmp_path / "out").glob("*.h5")]
    begins = {store.header.stimulus["bos"] for store in stores}
    assert begins == {"force", "none"}  # none: the repeated token
    assert not (tmp_path / "out" / "shifted_bos.h5").exists()
    natural = ActivationStore(tmp_path / "out" / "natural.h5")
    assert natural.header.residual_layers == (1,)
    probed = pd.read_csv(tmp_path / "out" / "tables" / "probes.csv")
    assert set(probed["layer"]) == {1}


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ({"tokens": ("a",)}, "'tokens' is not a condition: choose position0, text, length"),
        ({"position0": ("zero",)}, "position0='zero' is not a condition: choose native, bos, none"),
        ({"position0": ()}, "condition 'position0' has no level"),
        ({"length": (30_000,)}, "length|tokens|positions"),
    ],
)
def test_conditions_that_cannot_be_are_refused_before_the_first_pass(
    conditions, said, model_folder, text, tmp_path
):
    with pytest.raises(PosprobeError, match=said):
        audit(model_folder, tmp_path / "out", text=text, conditions=conditions, **child.SIZES)
    assert not list((tmp_path / "out").glob("*.h5*"))


def test_a_bos_that_the_tokenizer_does_not_have_is_no_condition(model_folder, text, tmp_path):
    loaded = load_model(model_folder)
    loaded.tokenizer.bos_token = None
    with pytest.raises(DesignError, match="position0=bos needs a BOS token, and the tokenizer of"):
        audit(loaded, tmp_path, text=text, conditions={"position0": ("bos",)}, **child.SIZES)


# --- again, and interrupted ---


def test_a_second_run_captures_nothing_and_claims_the_same(
    audited, model_folder, text, tmp_path, monkeypatch
):
    folder = tmp_path / "out"
    shutil.copytree(audited, folder)
    before = results(folder)
    (folder / "claims.json").unlink()
    model = load_model(model_folder)

    def refuse(*args, **keywords):
        raise AssertionError("a forward pass in a folder that has everything")

    monkeypatch.setattr(model, "run", refuse)
    audit(model, folder, text=text, **child.SIZES)
    assert results(folder) == before


def test_killed_in_the_middle_and_run_again(audited, model_folder, text, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    command = [sys.executable, child.__file__, model_folder, str(folder), "11"]
    killed = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert killed.returncode == -9, killed.stderr.decode()
    left = names(folder)
    assert any(name.endswith(".partial") for name in left)
    assert "claims.json" not in left
    kept = {name: (folder / name).read_bytes() for name in left if name.endswith(".h5")}
    monkeypatch.setattr(drawings, "draw", lambda name, tables: None)  # slow, and not asked
    audit(model_folder, folder, text=text, **child.SIZES)
    assert kept
    assert all((folder / name).read_bytes() == before for name, before in kept.items())
    # Another process may round float32 sums otherwise, by the alignment of its memory.
    for name in FILES:
        one, other = ActivationStore(folder / name), ActivationStore(audited / name)
        assert one.header.datasets() == other.header.datasets()
        for quantity in one.header.datasets():
            assert_allclose(one.read(quantity), other.read(quantity), atol=1e-5, err_msg=quantity)
    one, other = (json.loads((path / "claims.json").read_text()) for path in (folder, audited))
    assert [claim["id"] for claim in one] == [claim["id"] for claim in other]
    for claim, expected in zip(one, other, strict=True):
        # digits may differ: the rounding that a file records is that of its process
        one_text, other_text = (NUMBER.sub("#", c["protocol"]) for c in (claim, expected))
        assert one_text == other_text
        estimates = [np.nan if c["estimate"] is None else c["estimate"] for c in (claim, expected)]
        assert_allclose(*estimates, rtol=1e-3, atol=1e-4, err_msg=claim["id"])


def test_files_of_other_arguments_are_not_taken_over(audited, model_folder, text, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(audited, folder)
    said = r"resume: attribute .* in the file, .* now .*natural\.h5.* choose another output \(-o, "
    with pytest.raises(StoreError, match=said + r"--out\), or delete natural\.h5$"):
        audit(model_folder, folder, text=text, **child.SIZES | {"seed": 3})


def test_progress_is_shown_and_ends_at_its_total(audited, tmp_path, monkeypatch, capsys):
    bars = []

    def bar_of(shown, **options):
        assert shown
        bars.append(tqdm(**options))
        return bars[-1]

    monkeypatch.setattr(analyze_module, "progress_bar", bar_of)
    analyze([audited / "repeated.h5"], tmp_path / "out")
    (bar,) = bars
    assert bar.n == bar.total == 2
    assert "analyze: report" in capsys.readouterr().err


# --- other models, other calls ---


def test_model_without_a_bos_has_none_forced(model_folder, text, tmp_path, monkeypatch):
    loaded = load_model(model_folder)
    loaded.tokenizer.bos_token = None
    monkeypatch.setattr(study, "analyze", lambda paths, *args, **keywords: paths)
    paths = audit(loaded, tmp_path / "out", text=text, replacements=(), **child.SIZES)
    assert [path.name for path in paths] == ["natural.h5", "shifted.h5", "repeated.h5"]
    assert len(set(ActivationStore(paths[1]).tokens[:, 0])) > 1


@pytest.mark.parametrize(
    ("names", "tested"),
    [
        (["shifted.h5"], "mask_channel"),
        (["natural.h5"], "closed_system"),
        (["repeated.h5"], "mask_isolated"),
        (["replaced_mean.h5", "bos_repeated.h5"], "residual_opened"),
    ],
)
def test_analyze_takes_any_subset(names, tested, audited, tmp_path):
    analyze([audited / name for name in names], tmp_path / "out", progress=False)
    claims = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert tested in {c["id"] for c in claims if c["verdict"] != "not_applicable"}


# --- refusals leave nothing behind ---


def refused(kind, match, tmp_path, model, **changes):
    out = tmp_path / "new" / "out"
    with pytest.raises(kind, match=match) as caught:
        audit(model, out, **child.SIZES | changes)
    assert isinstance(caught.value, PosprobeError)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("n", [0, 1, 4, -3])
def test_refuses_too_few_sequences(n, model_folder, text, tmp_path):
    said = f"n={n} is too few: probes need 5 folds of sequences, so raise n"
    refused(DesignError, said, tmp_path, model_folder, n=n, text=text)


def test_refuses_what_cannot_be_captured(model_folder, text, tmp_path):
    cases = [
        (StimulusError, "the text is empty", {"text": ""}),
        (StimulusError, r"the text has \d+ tokens and .* pass a longer text", {"text": text[:139]}),
        (StimulusError, r"length 65 exceeds the 64 positions that model", {"length": 65}),
        (StimulusError, r"length=8 is too short for a window", {"length": 8}),
        (ModelError, "variant 'spiral' is unknown", {"variant": "spiral"}),
        (DesignError, "bos='some' is unknown: choose native, force, none", {"bos": "some"}),
    ]
    for kind, match, changes in cases:
        refused(kind, match, tmp_path, model_folder, **{"text": text} | changes)
    refused(ModelError, "there is no such folder", tmp_path, "./nowhere", text=text)


def test_refuses_a_folder_that_cannot_be_written(model_folder, audited, text, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    for folder in (blocked, blocked / "out"):
        with pytest.raises(StoreError, match=r"output folder .* cannot be written \(.*\); choose"):
            audit(model_folder, folder, text=text, **child.SIZES)
        with pytest.raises(StoreError, match=r"output folder .* cannot be written"):
            analyze([audited / "repeated.h5"], folder, progress=False)


def test_a_refusal_removes_no_folder_that_was_there(model_folder, text, tmp_path):
    out = tmp_path / "there"
    out.mkdir()
    with pytest.raises(StimulusError):
        audit(model_folder, out, text=text, **child.SIZES | {"length": 65})
    assert out.is_dir()
    assert not list(out.iterdir())


def test_analyze_refuses_files_before_it_makes_a_folder(audited, tmp_path):
    for files in ([tmp_path / "none.h5"], [audited / "shifted.h5"] * 2, []):
        with pytest.raises(PosprobeError):
            analyze(files, tmp_path / "out", progress=False)
        assert not (tmp_path / "out").exists()


def test_analysis_that_fails_leaves_no_empty_folder(audited, tmp_path, monkeypatch):
    def fail(*args, **keywords):
        raise DesignError("no")

    monkeypatch.setattr(analyze_module, "analyze_files", fail)
    with pytest.raises(DesignError, match="no"):
        analyze([audited / "repeated.h5"], tmp_path / "a" / "b", progress=False)
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_in_full_key_0_is_hidden_and_denominators_are_fixed(model_folder, text, tmp_path):
    folder = Path(tmp_path / "out")
    audit(model_folder, folder, text=text, full=True, **child.SIZES)
    assert {"cut_all.h5", "fixed_denominator.h5", "replaced_zero.h5"} <= names(folder)
    assert {"no_causal.h5", "no_causal_natural.h5", "window.h5"} <= names(folder)
    claims = {c["id"]: c for c in json.loads((folder / "claims.json").read_text())}
    assert claims["sink_hidden_everywhere"]["verdict"] != "not_applicable"
    assert claims["mask_removed"]["verdict"] == "supported"
    assert claims["window_closes_mask"]["verdict"] == "supported"
    # without training nothing reads position 0: behind the window no position is left
    assert claims["residual_behind_window"]["verdict"] in ("inconclusive", "negligible")
    first = results(folder)
    audit(model_folder, folder, text=text, full=True, **child.SIZES)
    assert results(folder) == first
    audit(model_folder, folder, text=text, **child.SIZES)  # not in full: nothing of it is left
    assert not {"tables/cut_sink.csv", "tables/masks.csv", "figures/cut_sink.svg"} & names(folder)
    assert "cut_all.h5" in names(folder)


# --- a wanted precision


PRECISE = child.SIZES | dict(n=8, max_items=60)


@pytest.fixture(scope="module")
def precise(model_folder, tmp_path_factory):
    """An audit that began with a pilot of eight windows."""
    folder = tmp_path_factory.mktemp("precise") / "out"
    audit(model_folder, folder, text=child.make_text(6000), precision=("V_T", 0.12), **PRECISE)
    return folder


def half_width(claim):
    return (claim["ci_high"] - claim["ci_low"]) / 2 / abs(claim["estimate"])


def test_windows_are_added_until_the_precision_is_reached_and_the_report_says_so(precise):
    paths = [precise / "shifted.h5", *sorted(precise.glob("shifted_more_*.h5"))]
    assert len(paths) == 3
    assert ActivationStore(paths[0]).n_items == 8
    total = JoinedStore(paths).n_items
    found = {one["id"]: one for one in json.loads((precise / "claims.json").read_text())}
    claim = found["position_in_attention"]
    assert claim["n"] == total < 60
    assert half_width(claim) <= 0.12
    said = "Windows were added to a pilot of 8 until half of the interval of V_T is at most 0.12 of"
    assert said in claim["protocol"]
    assert f"Half of its interval is {half_width(claim):.3g} of its estimate." in claim["protocol"]
    assert "Half of its" not in found["mask_channel"]["protocol"]
    page = (precise / "report.html").read_text()
    assert said in page
    assert "--precision V_T=0.12 --max-items 60" in page


def test_without_its_last_windows_the_precision_was_not_reached(precise):
    paths = [precise / "shifted.h5", *sorted(precise.glob("shifted_more_*.h5"))][:-1]
    (store,) = open_stores(paths)
    row = decompose(store, seed=2).overall.iloc[0]
    assert not (row["V_T_high"] - row["V_T_low"]) / 2 <= 0.12 * abs(row["V_T"])


def test_an_audit_with_a_precision_goes_on_where_it_stopped(precise, model_folder):
    before = {p.name: p.stat().st_mtime_ns for p in precise.glob("*.h5")}
    audit(model_folder, precise, text=child.make_text(6000), precision=("V_T", 0.12), **PRECISE)
    assert {p.name: p.stat().st_mtime_ns for p in precise.glob("*.h5")} == before


def test_a_text_ends_the_search_for_a_precision(model_folder, tmp_path):
    text = child.make_text(63 * 11 + 20)  # eleven chunks, of which ten windows have one before them
    asked = dict(text=text, precision=1e-4, progress=False, length=64, n=8)
    audit(model_folder, tmp_path / "out", replacements=(), **asked)
    assert ActivationStore(tmp_path / "out" / "shifted_more_1.h5").n_items == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "the most that --max-items and the text allow (10)" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": ("V_X", 0.1)}, "precision of 'V_X' is unknown: use one of V_R, V_M"),
        ({"precision": 0.0}, "precision=0.0 must be above 0"),
        (
            {"precision": 0.1, "n": 7},
            "n=7 windows cannot begin a search for a precision: give at",
        ),
        ({"precision": 0.1, "n": 9, "max_items": 8}, "at most max_items=8"),
    ],
)
def test_a_precision_that_cannot_be_searched_is_refused(
    options, message, model_folder, text, tmp_path
):
    with pytest.raises(DesignError, match=message):
        audit(model_folder, tmp_path / "out", text=text, **child.SIZES | options)
    assert not list(tmp_path.glob("out/*.h5"))
