"""First values for the forget gate, of LSTMs of any kind and of the models that hold them.

torch.nn draws all biases evenly around zero. A new cell then keeps half of its memory at each step,
and hardly any gradient comes back over more than ten. These functions change biases only, in place.
"""

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["chrono_", "forget_bias_"]

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def forget_bias_(model: Model, value: float = 1.0) -> Model:
    """Raises the forget gate's bias of every LSTM and LSTMCell in a model, in place.

    It is added to `bias_ih` once per layer and direction, to what was drawn before, as TensorFlow's
    forget_bias is and Keras' unit_forget_bias.

    Args:
        model: ours or torch.nn's, or a model that holds some.
        value: with 1.0 a cell keeps 0.73 of its memory at a step, with 3.0 0.95.

    Returns:
        The model.

    Raises:
        TypeError: model is no nn.Module, or holds no LSTM.
        ValueError: an LSTM has bias=False.

    Source: Jozefowicz, Zaremba, Sutskever, "An empirical exploration of recurrent network
    architectures" (2015), https://proceedings.mlr.press/v37/jozefowicz15.html
    """
    for bias_ih, _, hidden in _biases(model):
        if len(bias_ih) == 3 * hidden:  # f = 1 - i: what opens f closes i
            bias_ih[:hidden] -= value
        else:
            bias_ih[hidden : 2 * hidden] += value
    return model


@torch.no_grad()
def chrono_(model: Model, steps: int) -> Model:
    """Gives the units of every LSTM and LSTMCell memories of all lengths, in place.

    Unit j remembers for about t_j steps, t_j drawn evenly from 1 to steps - 1: b_f = log(t_j) and
    b_i = -b_f, in `bias_ih`. All other biases become zero.

    Args:
        model: ours or torch.nn's, or a model that holds some.
        steps: T, how long dependencies may be, as a rule the length of the sequences; at least 3.

    Returns:
        The model.

    Raises:
        TypeError: model is no nn.Module, or holds no LSTM.
        ValueError: steps < 3, or an LSTM has bias=False.

    Source: Tallec and Ollivier, "Can recurrent neural networks warp time?" (2018),
    https://arxiv.org/abs/1804.11188
    """
    if steps < 3:
        raise ValueError(f"steps: expected at least 3, got {steps}")
    for bias_ih, bias_hh, hidden in _biases(model):
        reach = torch.empty_like(bias_ih[:hidden]).uniform_(1.0, steps - 1.0).log_()
        bias_hh.zero_()
        bias_ih.zero_()
        bias_ih[:hidden] = -reach
        if len(bias_ih) == 4 * hidden:
            bias_ih[hidden : 2 * hidden] = reach
    return model


def _biases(model: nn.Module) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Both biases [4H] (coupled gates: [3H]) of each layer and direction, those that are tied once,
    and H.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    found = [(name, part) for name, part in model.named_modules() if _is_lstm(part)]
    if not found:
        raise TypeError(f"model: expected an LSTM or a model with one, got {type(model).__name__}")
    for name, part in found:
        if not part.bias:
            raise ValueError(f"model: expected biases, {name or 'it'} has bias=False")
    seen: set[int] = set()
    for _, part in found:
        for name in [n for n, _ in part.named_parameters(recurse=False) if "bias_ih" in n]:
            pair = part.get_parameter(name), part.get_parameter(name.replace("_ih", "_hh"))
            if id(pair[0]) not in seen:
                seen.add(id(pair[0]))
                yield (*pair, part.hidden_size)


def _is_lstm(module: nn.Module) -> bool:
    if hasattr(module, "weight_hh_l0"):  # an nn.RNNBase, or VariantLSTM
        return getattr(module, "mode", None) == "LSTM"
    return isinstance(module, nn.RNNCellBase) and len(module.weight_ih) == 4 * module.hidden_size
