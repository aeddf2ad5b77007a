"""Two emulated accelerators, "emulated:0" and "emulated:1": the CPU behind another device's rules.

Every operation refuses operands of different devices, as CUDA does, and goes nowhere but where its
operands or its own `device` say. What runs here mixes no devices; that a GPU's kernels compute the
same numbers is not shown. To be imported in a process of its own: torch has one such back end.
"""

import functools

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

COPIES = {"aten::_to_copy", "aten::copy_", "aten::_copy_from"}
FACTORIES = ("_to_copy.default", "empty.memory_format", "empty_strided.default")


class Two(backend_registration._DummyBackendModule):
    """What torch asks of a device's module."""

    def device_count(self):
        return 2


class Emulated(torch.Tensor):
    """A tensor that says it is elsewhere; `held` has its numbers."""

    @staticmethod
    def __new__(cls, held, device):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )

    def __init__(self, held, device):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


def compute(operation, args, kwargs):
    """An operation on the held numbers; what it makes is where its operands are."""
    if operation._can_decompose():
        return operation.decompose(*args, **kwargs)
    flat, shape = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in flat if isinstance(leaf, torch.Tensor)]
    name = operation._schema.name
    if name not in COPIES:
        places = {str(leaf.device) for leaf in tensors if leaf.ndim}
        if len(places) > 1:
            raise RuntimeError(f"{name} got tensors on {' and '.join(sorted(places))}")
    emulated = [leaf for leaf in tensors if isinstance(leaf, Emulated)]
    place = tensors[0].device if name == "aten::copy_" else kwargs.get("device")
    if place is None and emulated:
        place = max(emulated, key=torch.Tensor.dim).device
    place = torch.device(place or "cpu")
    ours = {id(leaf.held): leaf for leaf in emulated}

    def hold(leaf):
        if isinstance(leaf, torch.device):
            return torch.device("cpu")
        return leaf.held if isinstance(leaf, Emulated) else leaf

    def wrap(found):
        if not isinstance(found, torch.Tensor) or place.type == "cpu":
            return found
        return ours[id(found)] if id(found) in ours else Emulated(found, place)

    args, kwargs = pytree.tree_unflatten([hold(leaf) for leaf in flat], shape)
    return pytree.tree_map(wrap, operation(*args, **kwargs))


def register():
    """Tell torch of the devices; the libraries must be kept alive."""
    backend_registration._setup_privateuseone_for_python_backend("emulated", backend_module=Two())
    everything = torch.library.Library("_", "IMPL")
    factories = torch.library.Library("aten", "IMPL")
    everything.fallback(lambda op, *args, **kwargs: compute(op, args, kwargs), "PrivateUse1")
    for name in FACTORIES:
        operation = functools.reduce(getattr, name.split("."), torch.ops.aten)

        def kernel(*args, operation=operation, **kwargs):
            return compute(operation, args, kwargs)

        factories.impl(name.removesuffix(".default"), kernel, "PrivateUse1")
    return everything, factories
