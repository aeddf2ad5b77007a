"""Distributed captures: the file of one machine, whatever happens to the workers."""

import gc
import itertools
import logging
import os
import sys
import weakref

import dask
import distributed
import joblib
import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner
from cluster_child import LOG, dying, logged, replace_fill
from distributed.comm import CommClosedError
from readings import GROUPS, make_data
from stored import assert_same_bits, everything, make_tokenizer

from posprobe.captures import capture, capture_distributed, cluster, connect
from posprobe.captures.run import fill
from posprobe.cli import main
from posprobe.errors import ClusterError, ModelError, PosprobeWarning, StoreError
from posprobe.models import load_model
from posprobe.probes import ClusterGram, VariancePartition
from posprobe.probes.ridge import refit
from posprobe.store import ActivationStore

OPTIONS = dict(n=12, length=24, window=5, batch_tokens=48, seed=2)  # six batches of two sequences
TEXT = " ".join(f"word{n}" for n in np.random.default_rng(0).integers(0, 94, 700))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model on disk."""
    path = tmp_path_factory.mktemp("model")
    tiny.tiny_model("llama", dtype=torch.float32).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The file of one machine."""
    path = tmp_path_factory.mktemp("whole") / "whole.h5"
    capture(load_model(folder), path, text=TEXT, progress=False, **OPTIONS).close()
    return path


@pytest.fixture(scope="module")
def client():
    """A cluster of threads, in this process: what a worker does can be replaced."""
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client


@pytest.fixture
def take(client, folder, tmp_path):
    def function(**options):
        path = tmp_path / "new.h5"
        values = {"text": TEXT, "progress": False} | OPTIONS | options
        return capture_distributed(folder, path, client, **values)

    return function


@pytest.fixture
def log(tmp_path, monkeypatch):
    path = tmp_path / "log"
    monkeypatch.setenv(LOG, str(path))
    return lambda: [tuple(map(int, line.split())) for line in path.read_text().splitlines()]


# --- processes ---


@pytest.fixture(scope="module")
def processes():
    with connect("local:2") as client:
        yield client


def test_killed_worker_loses_nothing(processes, folder, whole, tmp_path, log):
    workers = list(processes.scheduler_info()["workers"])
    pids = [
        processes.run(replace_fill, function, os.environ[LOG], workers=[worker])[worker]
        for function, worker in zip((dying, logged), workers, strict=True)
    ]
    path = tmp_path / "killed.h5"
    store = capture_distributed(folder, path, processes, text=TEXT, progress=False, **OPTIONS)
    assert_same_bits(everything(store), everything(ActivationStore(whole)))
    assert path.read_bytes() == whole.read_bytes()
    assert not path.with_name("killed.h5.shards").exists()
    begun = log()
    assert len([pid for *_, pid in begun if pid == pids[0]]) == 1  # the second it did not survive
    assert all(n == 2 for _, n, _ in begun)
    items = [
        item for item, *_ in begun
    ]  # the worker that stands in for the killed one logs nothing
    assert len(items) == len(set(items))


def test_command_line_writes_the_same_file(processes, folder, whole, tmp_path):
    path, corpus = tmp_path / "cli.h5", tmp_path / "corpus.txt"
    corpus.write_text(TEXT)
    address = processes.scheduler.address
    arguments = ["capture", folder, "-o", path, "--dask", address, "--text", corpus, "--quiet"]
    arguments += itertools.chain(
        *((f"--{k}", OPTIONS[k]) for k in ("n", "length", "window", "seed"))
    )
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert (result.exit_code, result.output) == (0, f"{path}\n")
    again = CliRunner().invoke(main, list(map(str, arguments)))
    assert (again.exit_code, again.output.count("\n")) == (2, 1)
    assert "exists" in again.output
    with ActivationStore(path) as found, ActivationStore(whole) as expected:
        assert np.array_equal(found.tokens, expected.tokens)
        assert found.header.n_sequences == OPTIONS["n"]
    arguments += ["--overwrite", "--length", "500"]
    for options, said in (
        ([], "length 500 exceeds the 64 positions"),
        (["--past-training"], "12 chunks of 499 need 5988"),
    ):
        too_long = CliRunner().invoke(main, [*map(str, arguments), *options])
        assert (too_long.exit_code, too_long.output.count("\n")) == (2, 1)
        assert said in too_long.output


# --- threads: what a worker does, step by step ---


@pytest.mark.parametrize("size", [1, 2, 5])
def test_parts_of_any_size_give_the_same_bytes(size, take, whole, monkeypatch):
    monkeypatch.setattr(cluster, "SHARDS_PER_WORKER", 6 // size)
    assert take().path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        dict(design="shifted", prefixes=(1, 3, 8, 19), n=5),
        dict(design="repeated", bos="force"),
        dict(position0="content"),
        dict(position0="noise", loading={"variant": "window(7)"}),
        dict(quantities=("residual",), residual_layers=(0, 2), dtype="float16"),
        dict(residual_layers="1,last", residual_positions="0-7,last"),
    ],
)
def test_designs_and_treatments_are_those_of_one_machine(options, take, folder, tmp_path):
    plain = dict(options)
    model = load_model(folder, **plain.pop("loading", {}))
    path = tmp_path / "one.h5"
    capture(model, path, text=TEXT, progress=False, **OPTIONS | plain).close()
    assert take(**options).path.read_bytes() == path.read_bytes()


def fail_after(count, error):
    calls = itertools.count()

    def failing(*arguments):
        if next(calls) >= count:
            raise error
        fill(*arguments)

    return failing


def test_error_is_raised_and_resume_captures_only_the_rest(take, whole, tmp_path, log, monkeypatch):
    monkeypatch.setattr(cluster, "fill", fail_after(3, ModelError("layer 1 is odd: mend it")))
    with pytest.raises(ModelError, match="layer 1 is odd"):
        take()
    assert not (tmp_path / "new.h5").exists()
    monkeypatch.setattr(cluster, "fill", logged)
    monkeypatch.setattr(cluster, "SHARDS_PER_WORKER", 1)  # cut otherwise than before
    assert take(resume=True).path.read_bytes() == whole.read_bytes()
    assert sum(n for _, n, _ in log()) == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "new.h5"]
    count = len(log())
    take(resume=True)
    assert len(log()) == count


def test_one_machine_and_a_cluster_resume_each_other(take, whole, folder, tmp_path, monkeypatch):
    one = dict(text=TEXT, progress=False, **OPTIONS)
    model, path = load_model(folder), tmp_path / "new.h5"
    run, calls = model.run, itertools.count()

    def interrupted(*arguments, **keywords):
        if next(calls) == 4:
            raise KeyboardInterrupt
        run(*arguments, **keywords)

    monkeypatch.setattr(model, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        capture(model, path, **one)
    monkeypatch.setattr(cluster, "fill", fail_after(2, ModelError("stop")))
    with pytest.raises(ModelError, match="stop"):
        take(resume=True)
    monkeypatch.undo()
    assert capture(model, path, resume=True, **one).path.read_bytes() == whole.read_bytes()


def test_shard_that_is_there_is_not_captured_again(take, client, log, monkeypatch, whole):
    """As when a worker is lost between its shard and its answer."""
    submit, as_completed = client.submit, distributed.as_completed
    submitted, again = {}, []

    def remember(*arguments, **keywords):
        future = submit(*arguments, **keywords)
        submitted[future] = arguments
        return future

    def forgetful(futures):
        for future in as_completed(futures):
            again.append(submit(*submitted[future], pure=False).result())
            yield future

    monkeypatch.setattr(client, "submit", remember)
    monkeypatch.setattr(distributed, "as_completed", forgetful)
    monkeypatch.setattr(cluster, "fill", logged)
    assert take().path.read_bytes() == whole.read_bytes()
    assert len(log()) == len(again) == 6
    assert again == [None] * 6


def test_model_is_loaded_once_per_process_and_makes_room_for_the_next(take, monkeypatch, folder):
    loaded, models = [], []

    def load(name, **keywords):
        loaded.append(keywords)
        model = load_model(name, **keywords)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(cluster, "load_model", load)
    windows = [{"variant": "window(6)"}, {"variant": "window(7)"}]
    take(loading=windows[0])
    take(overwrite=True, loading=windows[0])
    assert loaded == windows[:1]
    take(overwrite=True, loading=windows[1])
    assert loaded == windows
    gc.collect()
    assert [model() is None for model in models] == [True, False]


def test_worker_with_other_weights_is_refused(take, monkeypatch):
    recipes = itertools.count()
    load = cluster.Recipe.load

    def other(self):
        model, digest = load(self)
        return model, digest if next(recipes) == 0 else "0" * 64

    monkeypatch.setattr(cluster.Recipe, "load", other)
    with pytest.raises(ClusterError, match=r"worker on .*'weights_digest'.*the same model"):
        take()


def test_worker_with_other_versions_is_refused(take, monkeypatch):
    monkeypatch.setattr(cluster, "versions", lambda: {"torch": "0.1"})
    with pytest.raises(ClusterError, match=r"worker on .*'versions\.posprobe'.*same installation"):
        take()


def test_bar_counts_every_token_once(take, monkeypatch):
    counted = []

    class Bar:
        update = counted.append

    monkeypatch.setattr(cluster, "fill", fail_after(3, ModelError("stop")))
    with pytest.raises(ModelError, match="stop"):
        take(progress=Bar)
    counted.clear()
    monkeypatch.undo()
    take(progress=Bar, resume=True)
    assert sum(counted) == OPTIONS["n"] * OPTIONS["length"]


def test_repeated_items_are_named_here_and_not_only_where_workers_are(take, tmp_path):
    first, second = (" ".join(TEXT.split()[start : start + 23]) for start in (0, 300))
    sizes = dict(design="natural", n=3, length=24, prefixes=None, bos="force")
    with pytest.warns(PosprobeWarning, match=r"1 of 3 items repeats another token for token"):
        take(text=[first, second, first], **sizes)


def test_a_default_that_fits_the_model_is_said_here_too(take):
    said = r"sequences have 64 tokens instead of 256: model .* was made for no more"
    with pytest.warns(PosprobeWarning, match=said):
        take(length=None, n=2)


def test_a_model_in_memory_is_not_sent_to_workers(client, tmp_path):
    with pytest.raises(ClusterError, match="a LlamaForCausalLM is in the memory of this process"):
        capture_distributed(tiny.tiny_model(), tmp_path / "a.h5", client)


def test_existing_file_and_leftover_shards_are_spared(take, tmp_path):
    take().close()
    with pytest.raises(StoreError, match="exists"):
        take()
    (tmp_path / "new.h5").unlink()
    (tmp_path / "new.h5.shards").mkdir()
    (tmp_path / "new.h5.shards" / "00000000-00000002.h5").touch()
    with pytest.raises(StoreError, match="holds 1 shards"):
        take()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (distributed.CancelledError("x"), "scheduler is gone.*--resume"),
        (CommClosedError("x"), "scheduler is gone.*--resume"),
        (distributed.KilledWorker("x", None, 3), "4 workers died over one.*memory.*--resume"),
    ],
)
def test_lost_cluster_is_one_line(error, message, take, monkeypatch):
    def lost(futures):
        raise error

    monkeypatch.setattr(distributed, "as_completed", lost)
    with pytest.raises(ClusterError, match=message):
        take()


# --- statistics ---


def test_refitted_replicates_through_joblib_on_dask_are_the_serial_ones(client, monkeypatch):
    monkeypatch.setattr(refit, "BATCH_BYTES", 1)  # one task per replicate
    X, y, groups = make_data()
    partition = VariancePartition(GROUPS).fit(X, y, groups=groups)
    serial = partition.replicates("refit", n_resamples=6)
    begun = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.task_prefixes))
    with joblib.parallel_config("dask"):
        assert np.array_equal(partition.replicates("refit", n_resamples=6, n_jobs=-1), serial)
    ended = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.task_prefixes))
    assert ended > begun  # it did not fall back on processes of its own


def test_grams_of_shards_add_up_to_the_grams_of_all(client):
    X, y, groups = make_data()
    serial = ClusterGram.from_arrays(X, y, groups)
    cut = [np.isin(groups, part) for part in np.array_split(np.unique(groups), 4)]
    parts = [
        client.submit(ClusterGram.from_arrays, X[c], y[c], groups[c], shift=serial.shift)
        for c in cut
    ]
    total = client.submit(sum, parts[1:], parts[0]).result()
    assert np.array_equal(total.grams, serial.grams)
    assert np.array_equal(total.groups, serial.groups)


# --- addresses ---


@pytest.mark.parametrize("address", ["local:0", "local:x", "local:-1"])
def test_bad_number_of_processes_is_one_line(address):
    with pytest.raises(ClusterError, match=f"--dask {address}: give a number"), connect(address):
        pass


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://x", "tcp://"])
def test_address_without_a_scheduler_is_one_line(address):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}),
        pytest.raises(ClusterError, match=f"--dask {address}: no scheduler answers"),
        connect(address),
    ):
        pass


def test_dask_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterError, match=r"pip install 'posprobe\[dask\]'"), connect("local"):
        pass


def test_what_clients_log_of_a_lost_scheduler_stays_off_the_terminal():
    log = logging.getLogger("distributed.client")
    before = log.level
    local = dict(n_workers=0, processes=False, dashboard_address=None, protocol="tcp")
    with distributed.LocalCluster(**local) as found, connect(found.scheduler_address):
        assert not log.isEnabledFor(logging.CRITICAL)
    assert log.level == before
