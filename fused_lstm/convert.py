"""`convert(model)` and `revert(model)`: a model's nn.LSTM and nn.LSTMCell are made ours, and back.

A module is not replaced: its class is, as `torch.nn.utils.parametrize` and lazy modules do it. So
the object stays, with whatever it holds and whoever holds it: parameters and the optimizers that
know them, buffers, hooks and their handles, other attributes, names, every place in the model.

A subclass of nn.LSTM becomes a subclass of itself in which ours stands just before nn.LSTM:
`super().forward(...)` leads to our kernels, all else remains what it was, `isinstance` too. What
cannot be swapped without changing what it computes stays as it is, and the reason is reported.
"""

import functools
import inspect
import types
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from .modules import LSTM, LSTMCell

__all__ = ["Outcome", "convert", "revert"]

Model = TypeVar("Model", bound=nn.Module)


class Outcome(NamedTuple):
    """What happened to one LSTM of a model; `str` of it is a line to print."""

    name: str  # the module's first name in the model, "" for the model itself
    before: type
    after: type  # the same as before where the module stayed what it was
    reason: str  # why it stayed, "" where it was swapped

    def __str__(self) -> str:
        name = self.name or "the model itself"
        if self.reason:
            return f"{name}: {_full_name(self.before)} stays, {self.reason}"
        return f"{name}: {_full_name(self.before)} is now {_full_name(self.after)}"


def convert(model: Model, *, report: Callable[[Outcome], object] | None = None) -> Model:
    """Makes every nn.LSTM and nn.LSTMCell in a model one of ours, in place.

    Args:
        model: any module, also an nn.LSTM itself. Modules that it keeps in plain lists or dicts are
            not found; convert those by themselves.
        report: called with an `Outcome` for each LSTM found: `print` shows them, `[].append`
            collects them. Without it, one warning names those that stay and why.

    Returns:
        The model that was passed. What is ours already stays; on an error nothing has changed.

    Subclasses of nn.LSTM are converted if their forward, where they have one, calls
    `super().forward`, and parametrized modules together with their parametrizations. TorchScript
    modules, quantised ones, uninitialised ones, those with a forward replaced on the instance and
    those wrapped alone by fully_shard stay.

    Raises:
        TypeError: model is no nn.Module.
    """
    return _swap_all(model, _fused_class, report)


def revert(model: Model, *, report: Callable[[Outcome], object] | None = None) -> Model:
    """Makes every LSTM and LSTMCell of ours in a model one of torch.nn, in place.

    That takes `convert` back exactly. LSTMs that were made as ours become torch.nn's as well: the
    model then needs this package no more, wherever it is loaded. A subclass that was written on
    `fused_lstm.LSTM` stays, and so does an LSTM with `extras`; both are reported.

    Args, Returns, Raises: as for `convert`.
    """
    return _swap_all(model, _original_class, report)


class _KeptError(Exception):
    """A module has to stay what it is; the text says why."""


def _swap_all(
    model: Model,
    class_for: Callable[[nn.Module], type],
    report: Callable[[Outcome], object] | None,
) -> Model:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {_full_name(type(model))}")
    outcomes: list[Outcome] = []
    swaps: list[tuple[nn.Module, type]] = []
    for name, module in model.named_modules():
        before = type(module)
        try:
            after = class_for(module)
        except _KeptError as kept:
            outcomes.append(Outcome(name, before, before, str(kept)))
            continue
        if after is not before:
            outcomes.append(Outcome(name, before, after, ""))
            swaps.append((module, after))
    _swap(swaps)
    kept_lines = [str(outcome) for outcome in outcomes if outcome.reason]
    if report is not None:
        for outcome in outcomes:
            report(outcome)
    elif kept_lines:
        warnings.warn("fused_lstm: " + "\n  ".join(["not swapped:", *kept_lines]), stacklevel=3)
    return model


def _swap(swaps: list[tuple[nn.Module, type]]) -> None:
    """Gives each module its class; after an error all have the one that they had."""
    done: list[tuple[nn.Module, type, dict[str, Any]]] = []
    try:
        for module, after in swaps:
            done.append((module, type(module), dict(module.__dict__)))
            _become(module, after)
    except BaseException:
        for module, before, attributes in reversed(done):
            object.__setattr__(module, "__class__", before)
            module.__dict__.update(attributes)
        raise


def _become(module: nn.Module, after: type) -> None:
    object.__setattr__(module, "__class__", after)  # a subclass may have a __setattr__ of its own
    if isinstance(module, nn.RNNBase):
        with torch.no_grad():  # where it is parametrized, a weight is computed here
            module._init_flat_weights()  # nn.LSTM keeps references to its weights, ours does not


# What a module becomes


def _fused_class(module: nn.Module) -> type:
    """The class that converts a module, its own for what is no LSTM or ours already."""
    cls = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        if module.original_name in ("LSTM", "LSTMCell"):
            raise _KeptError("TorchScript has compiled it: convert the model before it is scripted")
        return cls
    if cls.__name__ in ("LSTM", "LSTMCell") and cls.__module__.startswith("torch.ao."):
        raise _KeptError("it is prepared or quantised by torch.ao, which computes it by itself")
    if not isinstance(module, nn.LSTM | nn.LSTMCell) or _is_ours(cls):
        return cls
    _check_instance(module)
    return _map_class(module, cls, _fused_subclass)


def _original_class(module: nn.Module) -> type:
    """The class that reverts a module, its own for what is not ours."""
    cls = type(module)
    if isinstance(module, torch.jit.ScriptModule) or not _is_ours(cls):
        return cls
    _check_instance(module)
    if getattr(module, "_frozen", None) is not None:
        raise _KeptError("it is frozen: call its thaw() first")
    if getattr(module, "extras", None) is not None:
        raise _KeptError(f"torch.nn.LSTM has no {module.extras}")
    return _map_class(module, cls, _original_subclass)


def _is_ours(cls: type) -> bool:
    return issubclass(cls, LSTM | LSTMCell | _LSTMOverTorch | _LSTMCellOverTorch)


def _map_class(module: nn.Module, cls: type, to: Callable[[type], type]) -> type:
    """`to(cls)`, made anew on `to` of its base where cls is one that `parametrize` made.

    remove_parametrizations puts the first base in place, and later ones add properties to the
    class: so the new one is again parametrized directly, with the same properties.
    """
    if not (parametrize.is_parametrized(module) and cls.__name__.startswith("Parametrized")):
        return to(cls)
    base = to(cls.__bases__[0])
    own = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{base.__name__}", (base,), own)


@functools.cache
def _fused_subclass(cls: type) -> type:
    """The class of ours for nn.LSTM, nn.LSTMCell or a subclass of theirs."""
    if cls is nn.LSTM:
        return LSTM
    if cls is nn.LSTMCell:
        return LSTMCell
    torch_class, over = (
        (nn.LSTM, _LSTMOverTorch) if issubclass(cls, nn.LSTM) else (nn.LSTMCell, _LSTMCellOverTorch)
    )
    _check_subclass(cls, torch_class, over)

    def body(namespace: dict[str, Any]) -> None:
        namespace.update(
            __module__=cls.__module__,
            __doc__=cls.__doc__,
            __reduce_ex__=_reduce_ex,
            _converted_from=cls,
        )

    try:
        return types.new_class(f"Fused{cls.__name__}", (cls, over), exec_body=body)
    except Exception as error:  # a metaclass or an __init_subclass__ may refuse in any way
        raise _KeptError(f"its class cannot be extended: {error}") from error


def _original_subclass(cls: type) -> type:
    if cls is LSTM:
        return nn.LSTM
    if cls is LSTMCell:
        return nn.LSTMCell
    original: type | None = vars(cls).get("_converted_from")
    if original is None:
        raise _KeptError("it was written as a subclass of fused_lstm's")
    return original


# What has to stay


# nn.LSTM.forward goes through these, ours does not: an override would be passed over in silence.
_USED_BY_TORCH = (
    "_flat_weights",
    "_flat_weights_names",
    "_init_flat_weights",
    "_update_flat_weights",
    "check_forward_args",
    "check_hidden_size",
    "check_input",
    "get_expected_cell_size",
    "get_expected_hidden_size",
    "permute_hidden",
)
_METHODS = tuple(name for name in _USED_BY_TORCH if not name.startswith("_flat_weights"))


def _check_instance(module: nn.Module) -> None:
    if any(map(is_lazy, module.parameters(recurse=False))):
        raise _KeptError("it is not initialised yet: run a batch through the model first")
    for name in ("forward", *_METHODS):
        if name in module.__dict__:
            raise _KeptError(f"its {name} was replaced on the instance")
    if type(module).__mro__[1].__name__ == "FSDPModule":
        raise _KeptError("fully_shard has wrapped it: convert the model before")


def _check_subclass(cls: type, torch_class: type, over: type) -> None:
    between = cls.__mro__[: cls.__mro__.index(torch_class)]
    ours = {name for name in vars(over) if not name.startswith("__")} - {
        "forward",
        "flatten_parameters",
    }
    for base in between:
        for name in vars(base):
            if name in ours or (torch_class is nn.LSTM and name in _USED_BY_TORCH):
                raise _KeptError(f"forward relies on {name}, which {base.__qualname__} overrides")
        forward = vars(base).get("forward")
        if forward is not None and not _calls_super_forward(forward):
            raise _KeptError(f"{base.__qualname__}.forward does not call super().forward")


def _calls_super_forward(forward: Callable[..., object]) -> bool:
    """Whether its code names both words. If that misleads, nothing computes otherwise for it."""
    code = getattr(inspect.unwrap(forward), "__code__", None)
    return code is not None and {"super", "forward"} <= set(code.co_names)


# What stands between a subclass and nn.LSTM


class _LSTMOverTorch(nn.LSTM):
    """The methods of our LSTM on nn.LSTM. Second base of a converted subclass: see `super()`."""

    forward = LSTM.forward
    flatten_parameters = LSTM.flatten_parameters
    _current_weights = LSTM._current_weights
    _init_flat_weights: Any = LSTM._init_flat_weights
    _update_flat_weights = LSTM._update_flat_weights
    _scripted = LSTM._scripted
    _scripted_padded = LSTM._scripted_padded
    _scripted_packed = LSTM._scripted_packed
    extras = None
    _frozen = None
    has_extras = LSTM.has_extras
    is_frozen = LSTM.is_frozen
    __constants__ = LSTM.__constants__
    __jit_unused_properties__ = LSTM.__jit_unused_properties__

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._init_flat_weights()


class _LSTMCellOverTorch(nn.LSTMCell):
    """The methods of our LSTMCell on nn.LSTMCell."""

    forward = LSTMCell.forward
    _scripted = LSTMCell._scripted


def _reduce_ex(self: nn.Module, protocol: Any) -> Any:
    """Pickles and copies a converted subclass by the name of the class that was converted."""
    original: Any = type(self)._converted_from  # type: ignore[attr-defined]
    make, arguments, *rest = original.__reduce_ex__(self, max(int(protocol), 2))
    if arguments and arguments[0] is type(self):  # not so where it has a __reduce__ of its own
        make, arguments = _new, (original, *arguments[1:])
    return (make, arguments, *rest)


def _new(original: type, *arguments: Any) -> Any:
    cls = _fused_subclass(original)
    return cls.__new__(cls, *arguments)


def _full_name(cls: type) -> str:
    if cls.__module__ == parametrize.__name__:
        return f"parametrized {_full_name(cls.__bases__[0])}"
    return f"{cls.__module__}.{cls.__qualname__}"
