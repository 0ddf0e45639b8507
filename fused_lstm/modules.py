"""`LSTM` and `LSTMCell`: modules that take the place of `torch.nn.LSTM` and `torch.nn.LSTMCell`.

They own parameters and options; `functional.py` does the rest. Constructor, parameter names,
initialisation, state_dict, pickles, hooks, inputs, outputs and errors are those of torch.nn.

One departure: `LSTM` extends `nn.RNNBase`, not `nn.LSTM`, because torch.compile refuses every
subclass of nn.LSTM. So `isinstance(m, nn.LSTM)` is False.
"""

from typing import Any, cast, overload

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import direct, dispatch, functional
from .dispatch import Options
from .extras import Extras

__all__ = ["LSTM", "LSTMCell"]


class LSTM(nn.RNNBase):
    """A multi-layer LSTM: `torch.nn.LSTM` with fused kernels.

    Args:
        input_size: features I of the input.
        hidden_size: hidden units H.
        num_layers: layers L stacked on each other.
        bias: whether there are biases b_ih and b_hh.
        batch_first: input and output as [B, T, features] instead of [T, B, features].
        dropout: probability of zeroing an element between layers, while training.
        bidirectional: a second direction, D = 2.
        proj_size: size P of a projected h; 0 means none, and P = H.
        device: where the parameters lie.
        dtype: of the parameters: float32, float64, bfloat16 or float16 have kernels.
        zoneout: probabilities that h and c of a unit stay; this and what follows is not in
            torch.nn.LSTM, goes by keyword, and `fused_lstm.Extras` says more of it.
        input_dropout: probability that a feature of every layer's input is 0 for a sequence.
        recurrent_dropout: the same for h as the gates read it.
        output_dropout: the same for the last layer's output.
        weight_dropout: probability that an element of W_hh is 0 for a call.
        recompute: whether backward computes the gates again, to keep less.
        checkpoint_steps: forward keeps states every so many steps only; 0: all that backward needs.

    Call it as `output, (h_n, c_n) = lstm(input, (h_0, c_0))`. The input is [T, B, I] or, when
    batch_first, [B, T, I], without a batch [T, I], or a PackedSequence; the output is like it with
    `D*P` features. The states are `[L*D, B, P]` for h and `[L*D, B, H]` for c, zeros if not given;
    batch_first does not change them.

    Three options of a call are not in torch.nn.LSTM; `fused_lstm.lstm` says exactly what they mean.
    `reset`, bool [T, B] ([B, T] when batch_first), clears a row's state before a step. `lengths`,
    int64 [B], ends rows without packing. `return_cells=True` returns c after every step of the last
    layer as a third result, `[T, B, D*H]`.

    Parameters are `weight_ih_l{k}` [4H, I or `D*P`], `weight_hh_l{k}` [4H, P], `bias_ih_l{k}` and
    `bias_hh_l{k}` [4H], `weight_hr_l{k}` [P, H] with proj_size, each with `_reverse` for the second
    direction; gates in the order i, f, g, o. They are read anew on every call, so that a weight may
    be changed in any way at any time.

    Raises:
        ValueError: a size, dropout or proj_size out of its range. In a call: an input with a number
            of dimensions other than 2 or 3, or of another dtype than the weights.
        TypeError: an argument of the wrong kind.
        RuntimeError: in a call: other sizes than the weights', T = 0, or a state of another dtype.

    Source: Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al. (2000), in the form
    and gate order of torch.nn.LSTM; proj_size from Sak et al. (2014), https://arxiv.org/abs/1402.1128.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        zoneout: float | tuple[float, float] = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        output_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        recompute: bool = False,
        checkpoint_steps: int = 0,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            device=device,
            dtype=dtype,
        )
        extras = Extras(
            zoneout,
            input_dropout,
            recurrent_dropout,
            output_dropout,
            weight_dropout,
            recompute,
            checkpoint_steps,
        )
        extras.check(num_layers, dropout, proj_size)
        self.extras = None if extras == Extras() else extras

    # None as in modules that were pickled before there were any. Not annotated: TorchScript reads
    # annotations, and refuses the first; Python 3.10 makes a constant of what is Any.
    extras = cast("Extras | None", None)
    _frozen = cast("Any", None)  # a frozen.Frozen while frozen
    # What TorchScript is told of the two.
    __constants__ = [*nn.RNNBase.__constants__, "has_extras", "is_frozen"]  # noqa: RUF012
    __jit_unused_properties__ = [  # noqa: RUF012
        *nn.RNNBase.__jit_unused_properties__,
        "has_extras",
        "is_frozen",
    ]

    @property
    def has_extras(self) -> bool:
        """Whether there are `extras`."""
        return self.extras is not None

    @property
    def is_frozen(self) -> bool:
        """Whether `freeze` has packed the weights."""
        return self._frozen is not None

    def freeze(self, weights: str = "float32") -> "LSTM":
        """Packs the weights once, for inference with few rows, until `thaw`.

        With one row a step is as fast as its weights are read, and by a call of few steps packing
        them costs more than computing. From then on every call reads the packed copy, beside which
        the parameters stay, state_dict too. It notices and refuses a call after any of them has
        changed, a call in training mode, and one of which a gradient is wanted.

        Args:
            weights: how they are stored: "float32"; "bfloat16", rounded to 8 bits of significand;
                "int8", symmetrically with a scale for each row of W_ih and W_hh. Biases, x, h, c,
                sums and activations are float32; but products with int8 take each row of x and h
                in 16 bits of fixed point, where the processor has AVX2 or AVX512_VNNI.

        Returns:
            The module itself. Frozen again, it packs its present weights. A copy and a pickle are
            frozen as it is, and pack the weights that they hold anew; a state_dict says nothing of
            it.

        Raises:
            ValueError: weights is none of these, or a parameter is not float32 on the CPU, was made
                in inference mode, or for int8 not finite.
            TypeError: a weight is no plain nn.Parameter: pruned or parametrized, say.
            RuntimeError: the module is in training mode.
            NotImplementedError: it has proj_size or zoneout, for which there is no such kernel.
            ImportError: the extension is missing; the message says why and what to do.

        docs/recipes/freezing.md says what it gains and what it costs in accuracy.
        """
        if self.training:
            raise RuntimeError(
                "lstm: expected eval mode to freeze it, got training mode: call lstm.eval() first"
            )
        self._freeze(weights)
        return self

    def thaw(self) -> "LSTM":
        """Takes `freeze` back: the parameters are read anew on every call. Returns the module."""
        if self._frozen is not None:
            from . import frozen  # a module that most programs never need

            frozen.thaw(self)
            self._frozen = None
        return self

    def _freeze(self, weights: str) -> None:
        from . import frozen

        self._frozen = frozen.freeze(self, weights)

    def extra_repr(self) -> str:
        """What was passed to the constructor, as torch.nn.LSTM shows it, and the extras."""
        text: str = super().extra_repr()
        return f"{text}, {self.extras}" if self.extras is not None else text

    # Kept for code that calls them on an nn.LSTM.
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    @overload
    @torch._jit_internal._overload_method
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        reset: Tensor | None = None,
        lengths: Tensor | None = None,
        return_cells: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        pass

    @overload
    @torch._jit_internal._overload_method
    def forward(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        reset: Tensor | None = None,
        lengths: Tensor | None = None,
        return_cells: bool = False,
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]:
        pass

    def forward(
        self,
        input: Any,
        hx: Any = None,
        reset: Any = None,
        lengths: Any = None,
        return_cells: Any = False,
    ) -> Any:
        if torch.jit.is_scripting():
            if self.is_frozen:
                raise RuntimeError("lstm: expected no frozen module, got one: thaw() before script")
            if reset is not None or lengths is not None or return_cells or self.has_extras:
                raise NotImplementedError(
                    "reset, lengths, return_cells and extras: expected none of them in a scripted "
                    "module"
                )
            if isinstance(input, PackedSequence):
                return self._scripted_packed(input, hx)
            else:
                return self._scripted_padded(input, hx)
        else:
            if isinstance(input, torch.fx.Proxy):
                return _fx_leaf(self, input, hx, reset, lengths, return_cells)
            if self._frozen is not None:
                return _frozen_call(self, input, hx, reset, lengths, return_cells)
            weights = self._current_weights()
            if reset is None and lengths is None and not return_cells:
                soon = _short_ways(self, input, hx, weights)
                if soon is not None:
                    return soon
            return functional.lstm(
                input,
                hx,
                weights,
                num_layers=self.num_layers,
                bias=self.bias,
                batch_first=self.batch_first,
                dropout=self.dropout,
                training=self.training,
                bidirectional=self.bidirectional,
                proj_size=self.proj_size,
                reset=reset,
                lengths=lengths,
                return_cells=return_cells,
                extras=self.extras,
            )

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels read the parameters where they are."""

    def _current_weights(self) -> list[Tensor]:
        parameters = self._parameters
        try:
            return [parameters[name] for name in self._flat_weights_names]  # type: ignore[misc]
        except KeyError:  # pruned, normalised, or replaced by a plain tensor
            return [getattr(self, name) for name in self._flat_weights_names]

    # nn.RNNBase keeps a list of its weights, and weak references to notice when they change. Here
    # the list only serves TorchScript and pickles, and there are no references: they would forbid
    # torch.utils.swap_tensors.
    def _init_flat_weights(self) -> None:
        self._flat_weights: list[Any] = [getattr(self, n, None) for n in self._flat_weights_names]
        self._flat_weight_refs = []

    def _update_flat_weights(self) -> None:
        self._init_flat_weights()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._init_flat_weights()
        if self._frozen is not None:
            self._freeze(self._frozen.weights)

    # TorchScript compiles the three methods below, and PyTorch's own LSTM with them, so that a
    # scripted model also runs where this package is not installed.
    def _scripted_padded(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batched = input.dim() == 3
        if not batched:
            x = input.unsqueeze(1)
            if hx is not None:
                hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        else:
            x = input.transpose(0, 1) if self.batch_first else input
        y, h_n, c_n = self._scripted(x, None, x.size(1), hx)
        if not batched:
            return y.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
        return y.transpose(0, 1) if self.batch_first else y, (h_n, c_n)

    def _scripted_packed(
        self, input: PackedSequence, hx: tuple[Tensor, Tensor] | None
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]:
        x, batch_sizes, sorted_indices, unsorted_indices = input
        if hx is not None and sorted_indices is not None:
            hx = (hx[0].index_select(1, sorted_indices), hx[1].index_select(1, sorted_indices))
        y, h_n, c_n = self._scripted(x, batch_sizes, int(batch_sizes[0]), hx)
        if unsorted_indices is not None:
            h_n = h_n.index_select(1, unsorted_indices)
            c_n = c_n.index_select(1, unsorted_indices)
        return PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), (h_n, c_n)

    def _scripted(
        self, x: Tensor, batch_sizes: Tensor | None, batch: int, hx: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if hx is None:
            rows = self.num_layers * (2 if self.bidirectional else 1)
            width = self.proj_size if self.proj_size > 0 else self.hidden_size
            h0 = torch.zeros(rows, batch, width, dtype=x.dtype, device=x.device)
            c0 = torch.zeros(rows, batch, self.hidden_size, dtype=x.dtype, device=x.device)
            hx = (h0, c0)
        return dispatch.torch_lstm(
            x,
            batch_sizes,
            hx[0],
            hx[1],
            self._flat_weights,
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
        )


class LSTMCell(nn.RNNCellBase):
    """One step of an LSTM: `torch.nn.LSTMCell` with fused kernels.

    Args:
        input_size: features I of the input.
        hidden_size: hidden units H.
        bias: whether there are biases b_ih and b_hh.
        device: where the parameters lie.
        dtype: of the parameters: float32, float64, bfloat16 or float16 have kernels.

    Call it as `h, c = cell(input, (h, c))` with input [B, I] and states [B, H], all without B for a
    single row; the states are zeros if not given. Parameters are `weight_ih` [4H, I], `weight_hh`
    [4H, H], `bias_ih` and `bias_hh` [4H]; gates in the order i, f, g, o.

    Raises:
        ValueError: in a call: input or state with a number of dimensions other than 1 or 2.
        TypeError: in a call: an argument of the wrong kind.
        RuntimeError: a negative size; in a call: other sizes or dtypes than the weights'.

    Source: as of `LSTM`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        if torch.jit.is_scripting():
            return self._scripted(input, hx)
        else:
            if isinstance(input, torch.fx.Proxy):
                return _fx_leaf(self, input, hx)
            weights = _weights_of_cell(self)
            results = direct.cell(input, hx, weights)
            return functional.lstm_cell(input, hx, *weights) if results is None else results

    def _scripted(self, input: Tensor, hx: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        x = input if input.dim() == 2 else input.unsqueeze(0)
        if hx is None:
            zeros = torch.zeros(x.size(0), self.hidden_size, dtype=x.dtype, device=x.device)
            hx = (zeros, zeros)
        elif input.dim() == 1:
            hx = (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        h, c = torch._VF.lstm_cell(
            x, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        )
        return (h, c) if input.dim() == 2 else (h.squeeze(0), c.squeeze(0))


# Functions, not methods: they serve converted modules too, which have but our forward.


def _short_ways(lstm: nn.RNNBase, input: Any, hx: Any, weights: list[Tensor]) -> Any:
    """What a call without options gives, where one of the short ways has it; or None."""
    extras: Any = lstm.extras
    if extras is not None:
        return None
    num_layers, batch_first = lstm.num_layers, lstm.batch_first
    if num_layers == 1 or not (lstm.training and lstm.dropout > 0):
        own = lstm.bias, batch_first, lstm.bidirectional, lstm.proj_size
        results = direct.stack(input, hx, weights, num_layers, *own)
        if results is not None:
            return results
    if _is_plain(lstm, weights):
        return functional.plain_lstm_layer(input, hx, weights, batch_first)
    return None


def _is_plain(lstm: nn.RNNBase, weights: list[Tensor]) -> bool:
    if len(weights) != (4 if lstm.bias else 2) or lstm.num_layers != 1 or lstm.bidirectional:
        return False
    return not lstm.proj_size


def _weights_of_cell(cell: nn.RNNCellBase) -> list[Any]:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    try:
        return [cell._parameters[name] for name in names]
    except KeyError:  # pruned, normalised, or replaced by a plain tensor
        return [getattr(cell, name) for name in names]


def _frozen_call(lstm: LSTM, *own: Any) -> Any:
    if torch.compiler.is_compiling():
        from . import frozen

        return frozen.outside_graphs(_frozen_forward, lstm, *own)
    return _frozen_forward(lstm, *own)


def _frozen_forward(
    lstm: LSTM, input: Any, hx: Any, reset: Any, lengths: Any, return_cells: Any
) -> tuple[Any, ...]:
    for name, value in (("reset", reset), ("lengths", lengths), ("return_cells", return_cells)):
        if value is not None and value is not False:
            raise NotImplementedError(
                f"{name}: expected {False if name == 'return_cells' else None} while the "
                f"LSTM is frozen, got {type(value).__name__}: there is no kernel from frozen "
                "weights with it; lstm.thaw() has them all"
            )
    weights = lstm._current_weights()
    data = input.data if isinstance(input, PackedSequence) else input
    state = hx if isinstance(hx, tuple | list) else ()  # anything else is refused below
    lstm._frozen.check(lstm, weights, *(t for t in (data, *state) if isinstance(t, Tensor)))
    results = direct.frozen(input, hx, lstm._frozen.packed, lstm.batch_first, lstm.bidirectional)
    if results is not None:
        return results
    options = Options(
        lstm.num_layers, lstm.bias, lstm.dropout, False, lstm.bidirectional, lstm.proj_size
    )
    return functional.plain_lstm(input, hx, weights, options, lstm.batch_first, lstm._frozen.stack)


def _fx_leaf(
    module: nn.Module,
    input: Any,
    hx: Any,
    reset: Any = None,
    lengths: Any = None,
    return_cells: Any = False,
) -> Any:
    """Keeps a module whole under torch.fx.symbolic_trace, which does so only for torch.nn's own."""
    tracer, options = input.tracer, {"reset": reset, "lengths": lengths}
    given = {name: value for name, value in options.items() if value is not None}
    if return_cells is not False:
        given["return_cells"] = return_cells
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input, hx), given)
