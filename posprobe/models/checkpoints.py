"""Find a model's files by bundled name, folder, hub id or GGUF file.

A GGUF file is converted once, with transformers' own reader, into a float32 checkpoint in the cache
folder (``POSPROBE_CACHE``, else ``~/.cache/posprobe``), where it is found again by its SHA-256.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from posprobe.errors import ModelError
from posprobe.models.bundled import PACKAGED, TOKENIZER, ZOO, file_digest, zoo_folder
from posprobe.models.gguf_conversion import convert

__all__ = ["Checkpoint", "find_checkpoint"]

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
# Formats of weights that are pickles: reading one may run what it contains.
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Git leaves a pointer in place of a large file that was not fetched.
POINTER, POINTER_SIZE = b"version https://git-lfs", 1024
# Version of the conversion; increase it with every change, since conversions stay in the cache.
CONVERSION = 3


@dataclass(frozen=True)
class Checkpoint:
    """A model's files in a form that transformers loads.

    Parameters
    ----------
    name : str
        Name of the model as the user gave it.
    location : str
        A folder or a hub id.
    quantization : str, default="none"
        Quantisation of the weights, for example ``"Q4_1"`` or ``"F16"``.
    tokenizer : str or None, default=None
        Folder of the tokenizer. None means that it is in `location`.
    """

    name: str
    location: str
    quantization: str = "none"
    tokenizer: str | None = None


def find_checkpoint(name: str) -> Checkpoint:
    """Find a model by bundled name, GGUF file, folder or hub id, in this order.

    Parameters
    ----------
    name : str
        Name of the model, as in `posprobe.load_model`.

    Returns
    -------
    Checkpoint

    Raises
    ------
    ModelError
        If `name` is a path without a model, a broken GGUF file, a bundled model that is not
        installed or whose files are not the expected ones, or nearly the name of one.
    """
    if not name:
        raise ModelError("no model was named; give a hub id, a folder, a .gguf file or 'smollm2'")
    if name in PACKAGED:
        return _from_gguf(name, PACKAGED[name].paths(name), PACKAGED[name].sha256)
    if name.startswith(ZOO):
        folder = zoo_folder(name)
        return Checkpoint(name, str(folder), "F16", str(folder / TOKENIZER))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"model {name!r}: there is no such file; check the path")
        _refuse_pointers(name, [path])
        return _from_gguf(name, [path])
    if path.is_dir():
        _check_folder(name, path)
        return Checkpoint(name, str(path))
    if path.is_file():
        raise ModelError(f"model {name!r} is a file but not a GGUF file; give its folder")
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"model {name!r}: there is no such folder; check the path")
    _refuse_typo(name)
    return Checkpoint(name, name)


def _refuse_typo(name: str) -> None:
    """Refuse a name without an organisation that is nearly that of a bundled model."""
    if "/" in name:
        return
    near = difflib.get_close_matches(name.lower(), PACKAGED, n=1, cutoff=0.75)
    if near:
        raise ModelError(
            f"model {name!r} is unknown; did you mean {near[0]!r}? A hub id has the form org/model"
        )


def _check_folder(name: str, path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ModelError(f"model {name!r}: the folder has no config.json; is it the right one?")
    if not _first(path, WEIGHTS):
        if pickled := _first(path, PICKLED):
            raise ModelError(
                f"model {name!r}: its weights are pickled ({pickled.name}), and a pickle can run "
                "code; save them as safetensors"
            )
        raise ModelError(
            f"model {name!r}: the folder has no weights (no *.safetensors); download them into it"
        )
    _refuse_pointers(name, sorted(path.iterdir()))


def _first(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    return min((path for pattern in patterns for path in folder.glob(pattern)), default=None)


def _refuse_pointers(name: str, paths: list[Path]) -> None:
    pointers = [path.name for path in paths if _is_pointer(path)]
    if pointers:
        raise ModelError(
            f"model {name!r}: {', '.join(pointers[:3])} is a Git LFS pointer, not the file that it "
            "stands for; run git lfs pull in the folder"
        )


def _is_pointer(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size > POINTER_SIZE:
        return False
    return path.read_bytes().startswith(POINTER)


def _from_gguf(name: str, parts: list[Path], expected: str | None = None) -> Checkpoint:
    """Convert a GGUF file, given whole or in parts, unless its conversion is in the cache."""
    digest = file_digest(parts)
    if expected not in (None, digest):
        raise ModelError(
            f"bundled model {name!r}: {parts[0].name} is damaged (SHA-256); install it again"
        )
    target = _cache_folder() / f"{digest[:16]}-{CONVERSION}"
    if not target.is_dir():
        _convert(name, parts, digest, target)
    notes = json.loads((target / "posprobe.json").read_text())
    return Checkpoint(name, str(target), notes["quantization"])


def _cache_folder() -> Path:
    return Path(os.environ.get("POSPROBE_CACHE") or Path.home() / ".cache" / "posprobe")


def _convert(name: str, parts: list[Path], digest: str, target: Path) -> None:
    """Write the checkpoint next to its final location, then move it there in one step."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    except OSError as error:
        raise ModelError(
            f"cache folder {str(target.parent)!r} is not writable; set POSPROBE_CACHE"
        ) from error
    path = parts[0]
    try:
        if len(parts) > 1:
            path = _join(parts, work / "joined.gguf")
        quantization = convert(path, work)
        (work / "joined.gguf").unlink(missing_ok=True)
        notes = {"source": path.name, "sha256": digest, "quantization": quantization}
        (work / "posprobe.json").write_text(json.dumps(notes, indent=1))
        try:
            work.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process has converted the same file
                raise
    except ModelError as error:
        raise ModelError(f"model {name!r}: {error}") from error
    except Exception as error:  # any failure of the reader means that the file is not usable
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"model {name!r}: {path.name} is not a complete GGUF file of a supported architecture "
            f"({type(error).__name__}: {reason}); download it again"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _join(parts: list[Path], target: Path) -> Path:
    """Join the bytes of some files in one file."""
    with target.open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole, 1 << 20)
    return target
