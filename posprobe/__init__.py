"""Find out where decoder-only language models get absolute position from.

Importing the package costs nothing: each public name (they are listed in ``__init__.pyi``) brings
its module with it on first use, so statistics on a stored file never load torch.
"""

import lazy_loader

__version__ = "0.1.0"

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """Import a public name; where torch is missing, say how to install it."""
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        from posprobe.errors import missing_package

        known = missing_package(error)
        if known is None:
            raise
        raise known from error
