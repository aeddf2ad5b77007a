"""The scripts in analyses/, imported as modules; their names are not those of modules."""

import importlib.util
import sys
from functools import cache
from pathlib import Path

ANALYSES = Path(__file__).parents[2] / "analyses"


@cache
def load(name):
    folder = str((ANALYSES / name).parent)
    if folder not in sys.path:
        sys.path.append(folder)  # as Python does for a script
    spec = importlib.util.spec_from_file_location(f"analyses_{name}", ANALYSES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # data classes look their module up
    spec.loader.exec_module(module)
    return module
