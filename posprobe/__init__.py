"""Find out where decoder-only language models get absolute position from.

Importing the package costs nothing: each public name (they are listed in ``__init__.pyi``) brings
its module with it on first use, so statistics on a stored file never load torch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
