"""Packed sequences of different lengths: order, bookkeeping and values of a PackedSequence."""

import pytest
import torch
from cases import (
    GRADIENT_TOLERANCE,
    OUTPUT_TOLERANCE,
    PACKED,
    Case,
    arguments,
    copies,
    error,
    modules,
)
from torch import Tensor
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)
from torch.utils._python_dispatch import TorchDispatchMode

import fused_lstm


@pytest.mark.parametrize("case", PACKED, ids=str)
def test_each_sequence_is_as_if_alone(case: Case) -> None:
    lstm, _ = modules(case, torch.float64)
    leaves = arguments(case, torch.float64)
    sequences = leaves[: case.B]
    hx = tuple(leaves[case.B :]) if case.hx else None
    packed = pack_sequence(sequences, enforce_sorted=False)
    output, (h_n, c_n) = lstm(packed, hx)
    padded, lengths = pad_packed_sequence(output)
    assert lengths.tolist() == list(case.lengths)
    total = padded.new_zeros(())
    alone_total = padded.new_zeros(())
    for k, sequence in enumerate(sequences):
        own = None if hx is None else tuple(t[:, k] for t in hx)
        alone, (h, c) = lstm(sequence, own)
        for a, b in ((padded[: len(sequence), k], alone), (h_n[:, k], h), (c_n[:, k], c)):
            assert error(a, b) <= OUTPUT_TOLERANCE[torch.float64]
            total, alone_total = total + a.square().sum(), alone_total + b.square().sum()
    wanted = [*leaves, *lstm.parameters()]
    grads = torch.autograd.grad(total, wanted), torch.autograd.grad(alone_total, wanted)
    for a, b in zip(*grads, strict=True):
        assert error(a, b) <= GRADIENT_TOLERANCE[torch.float64]


def test_the_bookkeeping_is_handed_through() -> None:
    lstm = fused_lstm.LSTM(4, 7)
    for enforce_sorted in (False, True):
        packed = pack_sequence([torch.randn(n, 4) for n in (5, 3, 1)], enforce_sorted)
        output, _ = lstm(packed)
        assert isinstance(output, PackedSequence)
        assert output.batch_sizes is packed.batch_sizes
        assert output.sorted_indices is packed.sorted_indices
        assert output.unsorted_indices is packed.unsorted_indices


def test_the_kernel_computes_it_without_padding() -> None:
    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.fused_lstm.forward.default:
                seen.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    seen: list[tuple[int, ...]] = []
    with Shapes():
        fused_lstm.LSTM(4, 7)(pack_sequence([torch.randn(n, 4) for n in (5, 3, 1)]))
    assert seen == [(9, 4)]


@pytest.mark.parametrize("batch_first", [False, True])
def test_padding_is_never_read(batch_first: bool) -> None:
    lstm = fused_lstm.LSTM(4, 7, bidirectional=True, batch_first=batch_first)
    x = torch.randn(3, 6, 4) if batch_first else torch.randn(6, 3, 4)
    lengths = [2, 6, 4]
    clean, _ = lstm(pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False))
    for k, n in enumerate(lengths):
        (x[k, n:] if batch_first else x[n:, k]).fill_(float("nan"))
    dirty, _ = lstm(pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False))
    assert torch.equal(clean.data, dirty.data)
    padded, _ = pad_packed_sequence(dirty, batch_first)
    assert padded.isfinite().all()


def test_dropout_between_packed_layers() -> None:
    case = Case(5, 3, 4, 7, num_layers=2, lengths=(2, 5, 3))
    results = []
    x = arguments(case, torch.float64)[:3]
    for module in modules(case, torch.float64):
        module.dropout = 0.5
        torch.manual_seed(4)
        results.append(module(pack_sequence(x, enforce_sorted=False))[0].data)
    assert error(*results) <= OUTPUT_TOLERANCE[torch.float64]


def test_wrong_inputs_are_runtime_errors() -> None:
    lstm = fused_lstm.LSTM(4, 7)
    sequences = [torch.randn(n, 4) for n in (5, 3)]

    def state(rows: int = 2, hidden: int = 7, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [torch.zeros(1, rows, hidden, dtype=dtype) for _ in range(2)]

    for x, hx, message in (
        ([t.double() for t in sequences], None, "float32, got torch.float64"),
        ([t[:, :3] for t in sequences], None, "Expected 4, got 3"),
        (sequences, state(rows=3), r"\(1, 2, 7\), got \[1, 3, 7\]"),
        (sequences, state(hidden=6), r"\(1, 2, 7\), got \[1, 2, 6\]"),
        (sequences, state(dtype=torch.float64), "float32.*got torch.float64"),
        (sequences, [t[0] for t in state()], "got"),
    ):
        for enforce_sorted in (False, True):
            with pytest.raises(RuntimeError, match=message):
                lstm(pack_sequence(x, enforce_sorted), hx)


def test_packing_twice_the_same_bits() -> None:
    lstm = fused_lstm.LSTM(4, 33, bidirectional=True)
    packed = pack_sequence(copies([torch.randn(n, 4) for n in (9, 9, 4, 1)]))
    assert torch.equal(lstm(packed)[0].data, lstm(packed)[0].data)
