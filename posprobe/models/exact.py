"""A pass as the model computes it, and again in float64: how far rounding moves what is observed.

One block at a time is copied and widened, so memory grows by one block and the model is not
touched. Norms, softmax and rotations, which models compute in float32 whatever their own type,
are computed in float64 too.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from posprobe.errors import ModelError
from posprobe.models.interventions import Intervention
from posprobe.models.observation import Observer, observing
from posprobe.models.rotary import rotary_modules
from posprobe.models.scores import Observation

if TYPE_CHECKING:
    from posprobe.models.observable import ObservableModel

__all__ = ["Seen", "computed_and_exact"]

TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Seen = dict[tuple[str, int], Tensor]


def computed_and_exact(
    model: ObservableModel,
    tokens: Tensor,
    observation: Observation,
    intervention: Intervention,
    *,
    embedding0: Tensor | None = None,
) -> tuple[Seen, Seen]:
    """What one pass shows as the model computes it, and what it shows in float64.

    Both passes have the same weights and the same embeddings.

    Parameters
    ----------
    model, tokens, embedding0
        As in `ObservableModel.run`.
    observation, intervention
        As in `Observer`.

    Returns
    -------
    computed, exact : dict of (name, layer) to Tensor
        What `Observer` and `ObservableModel.run` emit, in float64 on the CPU.

    Raises
    ------
    ModelError
        If there is no float64 of this model, with the reason: its weights are quantised, its code
        or its device does not compute in float64, or something happens between its blocks.
    """
    computed, exact = _Kept(), _Kept()
    model.check()  # whose own passes are not among the calls
    with model.undisturbed():
        with _calls_of(model) as calls:
            observer = Observer(computed.emit, observation, intervention)
            model.run(tokens, observer, embedding0=embedding0)
        _check_stream(model, calls)
        again = Observer(exact.emit, observation, intervention)
        again.gains = model.gains
        _again(model, calls, again)
    return computed.seen, exact.seen


def _again(model: ObservableModel, calls: _Calls, observer: Observer) -> None:
    """Run the noted calls in float64, or say why there is none."""
    assert observer.observation is not None
    try:
        with torch.inference_mode(), _InFloat64(), observing(observer):
            _run_exactly(model, calls, observer, observer.observation.n_queries)
    except ModelError:
        raise
    except Exception as error:  # of the model's own code, or of a kernel without float64
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"no float64 on {model.name!r} ({type(error).__name__}: {reason})"
        ) from error


class _Kept:
    """Takes what is emitted."""

    def __init__(self) -> None:
        self.seen: Seen = {}

    def emit(self, name: str, layer: int, tensor: Tensor) -> None:
        self.seen[name, layer] = tensor.to("cpu", torch.float64, copy=True)


@dataclass
class _Calls:
    """How each block and each rotary module of a model was called, and what it returned."""

    blocks: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = field(default_factory=list)
    rotary: list[tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any], Any]] = field(
        default_factory=list
    )


@contextlib.contextmanager
def _calls_of(model: ObservableModel) -> Iterator[_Calls]:
    """Note all calls for a while."""
    calls = _Calls()

    def block(_: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.blocks.append((args, kwargs, output))

    def rotary(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.rotary.append((module, args, kwargs, output))

    hooks = [part.register_forward_hook(block, with_kwargs=True) for part in model.blocks]
    hooks += [
        part.register_forward_hook(rotary, with_kwargs=True) for part in rotary_modules(model.model)
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _run_exactly(model: ObservableModel, calls: _Calls, observer: Observer, n_queries: int) -> None:
    """Run the blocks on, in float64, from the stream that entered the first."""
    assert observer.emit is not None
    turned = _exact_rotations(calls)
    stream = _stream(calls.blocks[0][:2]).double()
    for layer, (args, kwargs, _) in enumerate(calls.blocks):
        _emit_stream(observer.emit, layer, stream, n_queries)
        widened = {name: _widened(value, turned) for name, value in kwargs.items()}
        if args:
            rest = (_widened(value, turned) for value in args[1:])
            output = _wide(model.blocks[layer])(stream, *rest, **widened)
        else:
            output = _wide(model.blocks[layer])(**widened | {"hidden_states": stream})
        stream = _first(output)
    _emit_stream(observer.emit, model.n_layers, stream, n_queries)


def _emit_stream(
    emit: Callable[[str, int, Tensor], None], layer: int, stream: Tensor, n_queries: int
) -> None:
    emit("position0", layer, stream[:, 0])
    emit("residual", layer, stream[:, stream.shape[1] - n_queries :])


def _exact_rotations(calls: _Calls) -> dict[int, Tensor]:
    """The rotations in float64, by the identity of the tensors that the model made of them."""
    turned: dict[int, Tensor] = {}
    for module, args, kwargs, output in calls.rotary:
        again = _wide(module)(
            *_widened(args, {}), **{name: _widened(value, {}) for name, value in kwargs.items()}
        )
        pairs = zip(output, again, strict=True) if isinstance(output, tuple) else [(output, again)]
        turned |= {id(rounded): exact for rounded, exact in pairs}
    return turned


def _wide(module: torch.nn.Module) -> torch.nn.Module:
    """A copy in float64."""
    weights = [*module.parameters(), *module.buffers()]
    if any(weight.is_meta for weight in weights):
        raise ModelError("its weights are offloaded")
    odd = {w.dtype for w in weights} - {*TYPES, torch.int64, torch.int32, torch.bool}
    if odd:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in odd))
        raise ModelError(f"its weights are quantised ({names})")
    return copy.deepcopy(module).double()


def _widened(value: Any, turned: dict[int, Tensor]) -> Any:
    """A value of a call with all of its tensors in float64."""
    if isinstance(value, Tensor):
        exact = turned.get(id(value), value)
        return exact.double() if exact.is_floating_point() else exact
    if isinstance(value, tuple | list):
        return type(value)(_widened(each, turned) for each in value)
    if isinstance(value, dict):
        return {key: _widened(each, turned) for key, each in value.items()}
    return value


def _stream(call: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
    args, kwargs = call
    return args[0] if args else kwargs["hidden_states"]


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _check_stream(model: ObservableModel, calls: _Calls) -> None:
    """Each block must get what the one before it returned: nothing else is run again."""
    for layer, (before, after) in enumerate(zip(calls.blocks, calls.blocks[1:], strict=False), 1):
        left, entered = _first(before[2]), _stream(after[:2])
        if not torch.equal(left.to(entered.device), entered):
            raise ModelError(f"the stream changes between blocks {layer - 1} and {layer}")


class _InFloat64(TorchFunctionMode):
    """Compute in float64 what a model's code says to compute in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if a is torch.float32 else a for k, a in (kwargs or {}).items()}
        return func(*args, **kwargs)
