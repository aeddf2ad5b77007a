"""Captures that were interrupted, once or often, have the same bits."""

import subprocess
import sys
from pathlib import Path

import capture_child as child
import numpy as np
import pytest
import tiny
import torch
from stored import assert_same_bits, everything

from posprobe.captures import CaptureOptions, capture_stimulus
from posprobe.captures.plan import plan_capture
from posprobe.errors import StoreError
from posprobe.models import (
    Intervention,
    ObservableModel,
)
from posprobe.store import StoreWriter


@pytest.mark.parametrize("calls", [0, 1, 2, 7])
def test_capture_resumed_after_an_error_has_the_same_bits(calls, take, tmp_path, monkeypatch):
    options = dict(batch_tokens=50, progress=False)
    expected = everything(take(child.stimulus(), batch_tokens=50))
    model, path = child.model(), tmp_path / "resumed.h5"
    run, counter = model.run, iter(range(1000))

    def failing(tokens, observer, **keywords):
        if next(counter) == calls:
            emit = observer.emit

            def half(name, layer, tensor):
                if layer == 2:
                    raise KeyboardInterrupt
                emit(name, layer, tensor)

            observer.emit = half
        run(tokens, observer, **keywords)

    monkeypatch.setattr(model, "run", failing)
    with pytest.raises(KeyboardInterrupt):
        capture_stimulus(model, child.stimulus(), path, **options)
    assert not path.exists()
    monkeypatch.undo()
    store = capture_stimulus(child.model(), child.stimulus(), path, resume=True, **options)
    assert_same_bits(everything(store), expected)
    again = capture_stimulus(child.model(), child.stimulus(), path, resume=True, **options)
    assert_same_bits(everything(again), expected)


def test_killed_capture_resumed_has_the_same_bits(take, tmp_path):
    expected = everything(take(child.stimulus(), batch_tokens=50))
    path = tmp_path / "killed.h5"
    command = [sys.executable, child.__file__, str(path), "5"]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert not path.exists()
    assert path.with_name("killed.h5.partial").exists()
    store = capture_stimulus(child.model(), path=path, **child.plan())
    assert_same_bits(everything(store), expected)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (dict(position0="zero"), "position0_treatment"),
        (dict(intervention=Intervention(cut_sink="all")), "interventions"),
        (dict(batch_tokens=60), "batch_tokens"),
        (dict(stimulus=child.stimulus(seed=4)), "stimulus"),
        (dict(model=child.model(hidden_act="relu")), "config"),
        (dict(model=child.model(attention_dropout=0.1)), "config"),
    ],
)
def test_another_capture_is_not_resumed(change, name, tmp_path):
    path = tmp_path / "a.h5"
    capture_stimulus(child.model(), path=path, **child.plan())
    options = child.plan() | dict(model=child.model(), path=path) | change
    with pytest.raises(StoreError, match=name):
        capture_stimulus(**options)


def test_other_weights_are_not_resumed(tmp_path):
    path = tmp_path / "a.h5"
    capture_stimulus(child.model(), path=path, **child.plan())
    other = ObservableModel(tiny.tiny_model("llama", dtype=torch.float32, seed=1))
    other.name = "tiny-llama"
    with pytest.raises(StoreError, match="weights_digest"):
        capture_stimulus(other, path=path, **child.plan())


def test_a_journal_that_ends_within_a_batch_is_refused(tmp_path):
    path, options = tmp_path / "a.h5", dict(batch_tokens=50, progress=False)
    plan = plan_capture(child.model(), child.stimulus(), CaptureOptions(batch_tokens=50))
    header = plan.header
    with StoreWriter.create(path, header, plan.index) as writer:
        shapes = {name: header.shape(name) for name in header.quantities}
        writer.write({name: np.zeros((s[0], 1, *s[2:]), "f4") for name, s in shapes.items()})
    with pytest.raises(StoreError, match=r"sequences, which is not the end of a batch"):
        capture_stimulus(child.model(), child.stimulus(), path, resume=True, **options)
