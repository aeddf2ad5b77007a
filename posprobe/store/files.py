"""Names, locks and atomic replacement of a capture's files, and one-line refusals."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from posprobe.errors import StoreError

__all__ = [
    "LOCKING",
    "REPLACE",
    "RESUME",
    "check_place",
    "journal_path",
    "lock",
    "partial_path",
    "refusing",
    "remove_shards",
    "replace_file",
    "shard_folder",
    "suffixed",
    "sync",
    "without_locks",
]

RESUME = "run the same capture again with --resume"
REPLACE = "replace it with --overwrite"
LOCKING = "POSPROBE_LOCKING"  # environment variable; "off" is for file systems without locks


def suffixed(path: Path, suffix: str) -> Path:
    """Return `path` with `suffix` appended to its whole name."""
    return path.with_name(path.name + suffix)


def partial_path(path: Path) -> Path:
    """Return the name of the unfinished capture of `path`."""
    return suffixed(path, ".partial")


def journal_path(path: Path) -> Path:
    """Return the name of the journal, which records what is safely on disk."""
    return suffixed(path, ".journal")


def shard_folder(path: Path) -> Path:
    """Return the name of the folder that holds the shards of `path`."""
    return suffixed(path, ".shards")


def remove_shards(path: Path) -> None:
    """Remove the shards of a complete file and whatever killed workers left in their folder."""
    folder = shard_folder(path)
    for shard in folder.glob("*-*.h5*"):
        shard.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it does not exist, or a lost worker still writes into it
        folder.rmdir()


@contextlib.contextmanager
def refusing(path: Path, action: str) -> Iterator[None]:
    """Turn an error of the operating system into a one-line StoreError that names `path`."""
    try:
        yield
    except OSError as error:
        remedy = "check the folder and permissions"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = f"free some space, then {RESUME}"
        elif error.errno == errno.EFBIG:
            remedy = f"allow larger files (ulimit -f), then {RESUME}"
        elif error.errno == errno.ENOENT and not path.parent.exists():
            remedy = f"make the folder first (mkdir -p {path.parent})"
        reason = error.strerror or str(error).splitlines()[0]
        raise StoreError(f"{path}: cannot {action} ({reason}): {remedy}") from error


def check_place(path: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse a place for a new file in time, before a model is loaded for it.

    Raises
    ------
    StoreError
        If there is no such folder, or the file, or an unfinished one, exists and is neither to be
        resumed nor to be overwritten.
    """
    path = Path(path).absolute()
    with refusing(path, "write the file"):
        os.stat(f"{path.parent}{os.sep}")
    if resume or overwrite:
        return
    for existing in (path, partial_path(path)):
        if existing.exists():
            raise StoreError(f"{existing} exists: choose another name, {RESUME}, or {REPLACE}")


def replace_file(path: Path, content: bytes) -> None:
    """Write a small file durably, either completely or not at all."""
    temporary = suffixed(path, ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: Path) -> int:
    """Lock ``PATH.lock`` as the only writer of `path`.

    The operating system releases the lock when the process ends.

    Parameters
    ----------
    path : Path
        Name of the complete file.

    Returns
    -------
    int
        File descriptor that holds the lock until it is closed.

    Raises
    ------
    StoreError
        If `path` is reserved for unfinished captures, another writer holds the lock, the file
        system has no locks, or the folder cannot be written.
    """
    for ending in (".partial", ".journal", ".lock"):
        if path.name.endswith(ending):
            raise StoreError(
                f"{path.name} is a name of posprobe's own for unfinished captures: choose one that "
                f"does not end in {ending}"
            )
    import fcntl  # only writers need it; Windows, where stores can only be read, does not have it

    name = suffixed(path, ".lock")
    while True:
        with refusing(path, "write the file"):
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(name)):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise StoreError(
                f"{path} is being written by another process: wait for it, or choose another name"
            ) from error
        except FileNotFoundError:
            pass
        except OSError as error:
            if os.environ.get(LOCKING) == "off":
                return descriptor
            os.close(descriptor)
            name.unlink(missing_ok=True)
            raise without_locks(path, error) from error
        os.close(descriptor)  # the previous holder removed this file, so open the new one


def without_locks(path: Path, error: OSError) -> StoreError:
    """Return the refusal of a file whose file system cannot lock it."""
    return StoreError(
        f"{path}: its file system has no locks ({_file_system(path)}: "
        f"{error.strerror}): use another, or set {LOCKING}=off where "
        "nothing else writes this file"
    )


def _file_system(path: Path) -> str:
    """Describe the file system of `path` by type and mount point, if the system lists them."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    around = [(where, kind) for _, where, kind, *_ in mounts if path.is_relative_to(where)]
    where, kind = max(around, key=lambda mount: len(mount[0]), default=("", ""))
    return f"{kind} on {where}" if where else "unknown"
