"""Capture on many machines: Dask workers capture shards, which are merged into one file.

One worker decides everything once, in a `posprobe.captures.plan.CapturePlan`. The plan is cut into
shards between its batches, so every forward pass is one that a single machine would also make. Dask
schedules the shards and replaces lost workers. The shards are exchanged through a file system that
all machines share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from posprobe.captures.options import CaptureOptions
from posprobe.captures.plan import (
    CapturePlan,
    plan_capture,
    versions,
    warn_of_length,
    warn_of_repeats,
)
from posprobe.captures.run import draw, fill, token_bar
from posprobe.errors import ClusterError, PosprobeError, quieted, signals_blocked
from posprobe.models import ModelSource, ObservableModel, load_model
from posprobe.stimuli import Text, TextSource, read_text
from posprobe.store import (
    RESUME,
    ActivationStore,
    ShardFolder,
    StoreWriter,
    difference,
    missing_parts,
    write_shard,
)

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["capture_distributed", "connect"]

SHARDS_PER_WORKER = 4
_MODELS: dict[Recipe, tuple[ObservableModel, str]] = {}
_LOCK = threading.Lock()  # a model is observed by one pass at a time


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The arguments of `posprobe.load_model` with which a worker loads the model."""

    name: str
    keywords: tuple[tuple[str, Any], ...]

    def load(self) -> tuple[ObservableModel, str]:
        """Return the model and the digest of its weights; each process loads it only once."""
        if self not in _MODELS:
            _MODELS.clear()  # free the memory of the last model before the next one is loaded
            model = load_model(self.name, **dict(self.keywords))
            _MODELS[self] = model, model.weights_digest()
        return _MODELS[self]


@contextlib.contextmanager
def connect(address: str) -> Iterator[Client]:
    """Connect to a Dask scheduler, or start worker processes on this machine.

    Parameters
    ----------
    address : str
        Address of a scheduler (``tcp://HOST:PORT`` or ``tls://HOST:PORT``), or ``local:N`` for N
        processes on this machine; ``local`` lets Dask choose the number. Local processes divide the
        cores among themselves, unless ``OMP_NUM_THREADS`` is set.

    Yields
    ------
    distributed.Client
        A client that is closed, with any local processes, when the context is left.

    Raises
    ------
    ClusterError
        If Dask is not installed, the address is malformed, or no scheduler answers there.
    """
    try:
        import dask.system
        import distributed
    except ImportError as error:
        raise ClusterError(
            f"--dask {address}: dask is not installed: pip install 'posprobe[dask]'"
        ) from error
    kind, _, count = address.partition(":")
    if kind != "local":
        try:
            client = distributed.Client(address)
        except (OSError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ClusterError(
                f"--dask {address}: no scheduler answers there ({reason}): give the address that "
                "dask scheduler printed, or local:N"
            ) from error
        with quieted("distributed.client", logging.CRITICAL + 1), client:
            yield client
        return
    if count and (not count.isdecimal() or int(count) == 0):
        raise ClusterError(f"--dask {address}: give a number of processes, as in local:2")
    cores = dask.system.CPU_COUNT
    processes = int(count) if count else distributed.deploy.utils.nprocesses_nthreads(cores)[0]
    threads = max(1, cores // processes)
    settings = {"distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": threads}
    with dask.config.set(settings):
        with signals_blocked("SIGINT"):  # workers would get it from the terminal too
            cluster = distributed.LocalCluster(
                n_workers=processes,
                threads_per_worker=1,
                memory_limit=None,  # an equal share may be too little for a model
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.ERROR,
            )
        with cluster, distributed.Client(cluster) as client:
            yield client


def capture_distributed(
    model: ModelSource,
    path: str | Path,
    client: Client,
    *,
    loading: Mapping[str, Any] | None = None,
    text: TextSource = None,
    options: CaptureOptions = CaptureOptions(),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | tqdm = True,
    **given: Any,
) -> ActivationStore:
    """Capture on a cluster, into the same file that `posprobe.capture` writes on one machine.

    The workers capture shards of whole batches into ``PATH.shards``, where each is either complete
    or absent. Shards are copied into ``PATH`` in order, while others are still being captured. If a
    worker is lost, only its current shard is lost, and Dask gives that to another worker.

    Parameters
    ----------
    model : str
        Name of the model, as `posprobe.load_model` takes it; every worker loads it once.
    path : str or Path
        File to write, on a file system that this process and all workers share.
    client : distributed.Client
        Client of the cluster, for example from `connect`.
    loading : mapping, optional
        Further arguments of `posprobe.load_model`: ``variant``, ``dtype``, ...
    text : None, Text, str, Path, or a sequence of these, optional
        Text to draw from, as in `posprobe.capture`. It is read here, not by the workers.
    options : CaptureOptions, default=CaptureOptions()
        What to keep and what to change.
    resume : bool, default=False
        Whether to continue an interrupted capture, distributed or not, by capturing only the
        missing sequences.
    overwrite : bool, default=False
        Whether to replace an existing file.
    progress : bool or tqdm, default=True
        Whether to show a progress bar on standard error, or a bar to update, which counts tokens.
    **given
        Arguments of `posprobe.capture` that define the stimulus (``design``, ``n``, ``length``,
        ...), and single fields of `options`.

    Returns
    -------
    ActivationStore
        The completed capture, open for reading.

    Raises
    ------
    ClusterError
        If the model is not a name, workers die repeatedly on one shard, the scheduler is lost, or a
        worker has different weights or versions from the worker that made the plan.
    ModelError, StimulusError, StoreError
        As in `posprobe.capture`.

    Notes
    -----
    The batches do not depend on the number of workers. The data equal those of a single machine bit
    for bit if the forward passes do, that is with the same processor, number of threads and
    libraries.
    """
    if not isinstance(model, str):
        raise ClusterError(
            f"a {type(model).__name__} is in the memory of this process; workers load a model by "
            "name, so save it with save_pretrained and give the folder"
        )
    options, drawing = options.split(given)
    drawing |= {"past_training": options.past_training}
    words = read_text(text)
    recipe = Recipe(model, tuple(sorted((loading or {}).items())))
    with _lost_cluster():
        plan = _answer(client.submit(_plan, recipe, words, drawing, options, pure=False))
    warn_of_length(plan.header.model, drawing.get("length"), plan.header.length)
    warn_of_repeats(plan)
    begin = StoreWriter.resume if resume else StoreWriter.create
    extra = {} if resume else {"overwrite": overwrite}
    with begin(path, plan.header, plan.index, **extra) as writer:
        shards = ShardFolder(writer.path)
        finished = shards.open(resume=resume, overwrite=overwrite)
        with token_bar(progress, plan) as bar, _lost_cluster():
            bar.update(plan.n_tokens(slice(writer.done)))
            _fill_from_shards(writer, shards, finished, client, recipe, plan, bar)
        writer.finish()
        shards.remove()
    return ActivationStore(path)


def _fill_from_shards(
    writer: StoreWriter,
    shards: ShardFolder,
    finished: list[slice],
    client: Client,
    recipe: Recipe,
    plan: CapturePlan,
    bar: tqdm,
) -> None:
    """Have the missing shards captured, and copy each once all shards before it are copied."""
    n_workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    batches = list(plan.batches(writer.done))
    size = max(1, len(batches) // (SHARDS_PER_WORKER * n_workers))
    kept, missing = missing_parts(batches, finished, size)
    ready: dict[int, slice] = {}

    def arrived(part: slice) -> None:
        bar.update(plan.n_tokens(part))
        ready[part.start] = part
        while (first := ready.pop(writer.done, None)) is not None:
            shards.merge(writer, first, plan.part(first).index)

    for part in kept:
        arrived(part)
    tasks = {
        client.submit(_capture_shard, recipe, plan.part(p), shards.path(p), pure=False): p
        for p in missing
    }
    _gather(client, tasks, arrived)


def _answer(future: Future) -> Any:
    """Return the result of a task, or raise the refusal that it returned."""
    result = future.result()
    if isinstance(result, PosprobeError):
        raise result
    return result


def _gather(client: Client, tasks: dict[Future, slice], arrived: Callable[[slice], None]) -> None:
    """Take tasks in the order in which they finish; on an error, cancel the remaining ones."""
    from distributed import as_completed

    try:
        for future in as_completed(list(tasks)):
            _answer(future)
            arrived(tasks.pop(future))
            future.release()  # or Dask would have the shard captured again if its worker is lost
    finally:
        client.cancel(list(tasks))


def _plan(
    recipe: Recipe, text: Text, drawing: Mapping[str, Any], options: CaptureOptions
) -> CapturePlan | PosprobeError:
    """Draw the stimulus and make the plan (runs on a worker)."""
    try:
        with _LOCK:
            model, _ = recipe.load()
            return plan_capture(model, draw(model, text, **drawing), options)
    except PosprobeError as error:
        return error  # if it were raised here, Dask would print a traceback to standard error


def _capture_shard(recipe: Recipe, plan: CapturePlan, path: Path) -> PosprobeError | None:
    """Capture one shard, unless another worker has already done so (runs on a worker)."""
    try:
        with _LOCK:
            if not path.exists():
                model, digest = recipe.load()
                _check_worker(plan, digest)
                with write_shard(path, plan.header, plan.index) as writer:
                    fill(writer, model, plan, tqdm(disable=True))
    except PosprobeError as error:
        return error
    return None


def _check_worker(plan: CapturePlan, digest: str) -> None:
    """Refuse a worker whose weights or versions differ from those in the plan's header."""
    here = dataclasses.replace(plan.header, weights_digest=digest, versions=versions())
    if changed := difference(plan.header.attributes(), here.attributes()):
        raise ClusterError(
            f"worker on {socket.gethostname()}: {changed}: give all workers the same model and "
            "the same installation"
        )


@contextlib.contextmanager
def _lost_cluster() -> Iterator[None]:
    """Turn the loss of the scheduler or of workers into a one-line ClusterError."""
    from distributed import CancelledError, KilledWorker
    from distributed.comm import CommClosedError

    try:
        yield
    except KilledWorker as error:
        raise ClusterError(
            f"{error.allowed_failures + 1} workers died over one shard, likely for want of memory: "
            f"give workers more, or fewer tokens to a batch, then {RESUME}"
        ) from error
    except (CancelledError, CommClosedError) as error:
        raise ClusterError(f"the Dask scheduler is gone: start it again, then {RESUME}") from error
