"""One capture on many machines: shards of its sequences on Dask workers, merged into its one file.

Everything is decided once, by one worker, in a `posprobe.captures.plan.CapturePlan`; shards are cut
between the batches of that plan, so every forward pass is one that a single machine would
make. Dask brings scheduling and survival; the file system that all share brings the shards home.
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
from posprobe.captures.plan import CapturePlan, plan_capture, versions
from posprobe.captures.run import draw, fill, token_bar
from posprobe.errors import ClusterError, PosprobeError, signals_blocked
from posprobe.models import ObservableModel, load_model
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
    """How a worker loads the model: arguments of `posprobe.load_model`."""

    name: str
    keywords: tuple[tuple[str, Any], ...]

    def load(self) -> tuple[ObservableModel, str]:
        """The model and the digest of its weights, loaded once per process."""
        if self not in _MODELS:
            _MODELS.clear()  # the memory of the last one is needed for the next
            model = load_model(self.name, **dict(self.keywords))
            _MODELS[self] = model, model.weights_digest()
        return _MODELS[self]


@contextlib.contextmanager
def connect(address: str) -> Iterator[Client]:
    """A client of a Dask scheduler, or of processes on this machine.

    Parameters
    ----------
    address : str
        ``tcp://HOST:PORT`` or ``tls://HOST:PORT`` of a scheduler; ``local`` for processes on this
        machine, as many as Dask thinks fit for its cores, ``local:N`` for N of them. The cores are
        divided among them, unless ``OMP_NUM_THREADS`` is set.

    Yields
    ------
    distributed.Client

    Raises
    ------
    ClusterError
        If Dask is not installed, the address is not one, or nobody answers there.
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
        with _quiet_clients(), client:
            yield client
        return
    if count and (not count.isdecimal() or int(count) == 0):
        raise ClusterError(f"--dask {address}: give a number of processes, as in local:2")
    cores = dask.system.CPU_COUNT
    processes = int(count) if count else distributed.deploy.utils.nprocesses_nthreads(cores)[0]
    threads = max(1, cores // processes)
    settings = {"distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": threads}
    with dask.config.set(settings):
        with signals_blocked("SIGINT"):  # which workers get from the terminal, as this process does
            cluster = distributed.LocalCluster(
                n_workers=processes,
                threads_per_worker=1,
                memory_limit=None,  # a share of the machine's may be too little for a model
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.ERROR,
            )
        with cluster, distributed.Client(cluster) as client:
            yield client


@contextlib.contextmanager
def _quiet_clients() -> Iterator[None]:
    """Keep what clients log of a lost scheduler off the terminal, since it is said in one line."""
    log = logging.getLogger("distributed.client")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(before)


def capture_distributed(
    model: str,
    path: str | Path,
    client: Client,
    *,
    loading: Mapping[str, Any] | None = None,
    text: str | None = None,
    options: CaptureOptions = CaptureOptions(),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | tqdm = True,
    **given: Any,
) -> ActivationStore:
    """Capture on a cluster: the same file as `posprobe.capture` writes on one machine.

    Shards of whole batches are captured by the workers into ``PATH.shards``, each complete or
    absent, and copied from there into ``PATH``, in order, while others are still being captured.
    A worker that is lost costs the shard it was at, which Dask gives to another one.

    Parameters
    ----------
    model : str
        What `posprobe.load_model` takes; every worker loads it once, by this name.
    path : str or Path
        The file to write, on a file system that this process and all workers share.
    client : distributed.Client
        Client of the cluster, see `connect`.
    loading : mapping or None
        Further arguments of `posprobe.load_model`: ``variant``, ``dtype``, ...
    text : str or None
        The text to draw from (None: the Python language reference that comes with CPython).
    resume : bool
        Continue an interrupted capture, distributed or not: only what is missing is captured.
    overwrite : bool
        Replace an existing file.
    progress : bool or tqdm
        Show a progress bar on standard error; or a bar of the caller's, which counts tokens.
    options : CaptureOptions
        What is kept and what is changed.
    **given
        As in `posprobe.capture`: the stimulus (``design``, ``n``, ``length``, ...), and fields of
        `options` by themselves.

    Returns
    -------
    ActivationStore

    Raises
    ------
    ClusterError
        If a shard takes down one worker after another, the scheduler is lost, or a worker has
        other weights or other versions than the one that made the plan.
    ModelError, StimulusError, StoreError
        As in `posprobe.capture`.

    Notes
    -----
    The data equal those of one machine bit for bit if the workers' forward passes do: same
    processor, same number of threads, same libraries. Batches are the same always.
    """
    options, drawing = options.split(given)
    recipe = Recipe(model, tuple(sorted((loading or {}).items())))
    with _lost_cluster():
        plan = _answer(client.submit(_plan, recipe, text, drawing, options, pure=False))
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
    """Have all shards captured that are missing, and copy each as soon as those before it are."""
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
    """What a task returned; a refusal is raised."""
    result = future.result()
    if isinstance(result, PosprobeError):
        raise result
    return result


def _gather(client: Client, tasks: dict[Future, slice], arrived: Callable[[slice], None]) -> None:
    """Wait for tasks in the order in which they end; on an error, cancel those that are left."""
    from distributed import as_completed

    try:
        for future in as_completed(list(tasks)):
            _answer(future)
            arrived(tasks.pop(future))
            future.release()  # or the shard would be captured again when its worker goes
    finally:
        client.cancel(list(tasks))


def _plan(
    recipe: Recipe, text: str | None, drawing: Mapping[str, Any], options: CaptureOptions
) -> CapturePlan | PosprobeError:
    """On a worker: draw the stimulus and decide everything else."""
    try:
        with _LOCK:
            model, _ = recipe.load()
            return plan_capture(model, draw(model, text, **drawing), options)
    except PosprobeError as error:
        return error  # raised here, it would come with Dask's traceback on standard error


def _capture_shard(recipe: Recipe, plan: CapturePlan, path: Path) -> PosprobeError | None:
    """On a worker: capture one shard, unless another worker has done so."""
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
    """Refuse to compute with other weights or versions than those that the file will name."""
    here = dataclasses.replace(plan.header, weights_digest=digest, versions=versions())
    if changed := difference(plan.header.attributes(), here.attributes()):
        raise ClusterError(
            f"worker on {socket.gethostname()}: {changed}: give all workers the same model and "
            "the same installation"
        )


@contextlib.contextmanager
def _lost_cluster() -> Iterator[None]:
    """Say in one line that the cluster, not the capture, failed."""
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
