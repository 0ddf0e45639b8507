"""Do the stand-in tests notice an error? Plants one at a time into a copy of the CUDA kernels and
expects a named test program to fail. Each replacement must apply exactly once, so that this list
cannot rot silently when the kernels change. What a mutant does not touch is not compiled anew:
`make mutants` builds all of it first.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    file: str  # below the kernels' folder
    old: str
    new: str
    test: str  # the program that must fail
    quick: bool = False  # one of the few that --quick tries


MUTANTS = [
    Mutant(
        "two gates swapped",
        "cuda/pointwise.cuh",
        "{pre_activation(0), pre_activation(1),",
        "{pre_activation(1), pre_activation(0),",
        "test_forward",
    ),
    Mutant(
        "b_hh forgotten",
        "cuda/pointwise.cuh",
        "if (p.b_hh) sum += device::to_float(p.b_hh[at]);",
        "",
        "test_forward",
    ),
    Mutant(
        "tail of the columns not masked",
        "cuda/queue.cuh",
        "column = first_column; column < columns;",
        "column = first_column; column < (columns + 31) / 32 * 32;",
        "test_forward",
    ),
    Mutant(
        "tail of the rows not masked",
        "cuda/queue.cuh",
        "row = first_row; row < rows;",
        "row = first_row; row < rows + 1;",
        "test_forward",
    ),
    Mutant(
        "rows beyond one sweep of the grid lost",
        "cuda/queue.cuh",
        "row += int64_t{gridDim.y} * blockDim.y",
        "row += rows",
        "test_contract",
    ),
    Mutant(
        "stale h: its own row of y",
        "cuda/stepwise_forward.cu",
        "const Operand h = {y_at(d, previous),",
        "const Operand h = {y_at(d, step),",
        "test_forward",
    ),
    Mutant(
        "stale c: a step too early",
        "cuda/stepwise_forward.cu",
        "cell.c_before = cells_at(d, previous);",
        "cell.c_before = cells_at(d, step);",
        "test_forward",
    ),
    Mutant(
        "reverse direction runs forward",
        "cuda/stepwise_forward.cu",
        "const bool upward = d == 0;",
        "const bool upward = d < 2;",
        "test_forward",
    ),
    Mutant(
        "packed: h0 of rows that begin late is that of the first",
        "cuda/stepwise_forward.cu",
        "{state(p_.h0, d, p_.P) + before * p_.P, p_.P};",
        "{state(p_.h0, d, p_.P), p_.P};",
        "test_forward",
    ),
    Mutant(
        "packed: states of rows that end early lost",
        "cuda/stepwise_forward.cu",
        "cell.after = after;",
        "cell.after = after > 0 ? step.rows : 0;",
        "test_forward",
    ),
    Mutant(
        "every step of a chunk reads its first",
        "cuda/stepwise_forward.cu",
        "static_cast<E*>(s_.z) + (step.row - chunk.row) * 4 * p_.H;",
        "static_cast<E*>(s_.z);",
        "test_forward",
    ),
    Mutant(
        "rows of x taken for uniform",
        "cuda/steps.h",
        "if (p.B > 1 && stride_t != p.B * stride_b) return 0;",
        "",
        "test_forward",
    ),
    Mutant(
        "blocks at uneven distances copied as even",
        "cuda/copier.cuh",
        "return from - p.from == p.blocks * p.from_block && to",
        "return to",
        "test_backward",
    ),
    Mutant(
        "workspace counted too small",
        "cuda/stepwise.cpp",
        "s.z = carver.take(true, s.chunk_rows * 4 * p.H, computed);",
        "s.z = carver.take(true, s.chunk_rows * 4 * p.H, computed / 2);",
        "test_forward",
    ),
    Mutant(
        "the host reads the device's memory",
        "cuda/stepwise_forward.cu",
        "if (before < step.rows && p_.h0) {",
        "if (before < step.rows && p_.h0 && *static_cast<const char*>(p_.h0) != 1) {",
        "test_forward",
    ),
    Mutant(
        "a refused launch goes unnoticed",
        "cuda/queue.cuh",
        "if (error != 0) refuse(how, error);",
        "",
        "test_forward",
    ),
    Mutant(
        "a refused product goes unnoticed",
        "cuda/queue.cuh",
        "if (launch_.blas.multiply(launch_.blas.context, product)) return;",
        "if (launch_.blas.multiply(launch_.blas.context, product) || true) return;",
        "test_contract",
    ),
    Mutant(
        "with a projection h_n of rows that end early lost",
        "cuda/pointwise.cuh",
        "if (row >= p.after) p.h_n[at] = h;",
        "if (p.after == 0) p.h_n[at] = h;",
        "test_forward",
    ),
    Mutant(
        "dh_n of rows that end early lost",
        "cuda/pointwise.cuh",
        "} else if (p.dh_n) {\n      dh.value",
        "} else if (p.dh_n && p.after == 0) {\n      dh.value",
        "test_backward",
    ),
    Mutant(
        "dc of the step after taken for rows that end",
        "cuda/pointwise.cuh",
        "if (row < p.after) {\n      dc.value",
        "if (row < p.rows) {\n      dc.value",
        "test_backward",
    ),
    Mutant(
        "two gradients of gates swapped",
        "cuda/pointwise.cuh",
        "to[hidden] = device::from_float<S>(gate.f.value);\n"
        "  to[2 * hidden] = device::from_float<S>(gate.g.value);",
        "to[2 * hidden] = device::from_float<S>(gate.f.value);\n"
        "  to[hidden] = device::from_float<S>(gate.g.value);",
        "test_backward",
    ),
    Mutant(
        "dc0 of rows that begin late lost",
        "cuda/pointwise.cuh",
        "if (p.dc0 && row >= p.before)",
        "if (p.dc0 && p.before == 0)",
        "test_backward",
    ),
    Mutant(
        "dh0 of rows that begin late lost",
        "cuda/stepwise_backward.cu",
        "if (rows > before && !has_options(p_)) {",
        "if (rows > before && before == 0 && !has_options(p_)) {",
        "test_backward",
    ),
    Mutant(
        "a chunk forgets the weight gradients of the one before",
        "cuda/stepwise_backward.cu",
        "add = true;",
        "add = false;",
        "test_backward",
    ),
    Mutant(
        "dx of the second direction replaces the first",
        "cuda/stepwise_backward.cu",
        "p_.I}, to, d > 0);",
        "p_.I}, to, false);",
        "test_backward",
    ),
    Mutant(
        "dw_hh from h of the same step",
        "cuda/stepwise_backward.cu",
        "y_.offset(p_, previous) : 0)",
        "y_.offset(p_, step) : 0)",
        "test_backward",
    ),
    Mutant(
        "db: the last slice ends early",
        "cuda/pointwise.cuh",
        "const int64_t each = (p.rows + p.slices - 1) / p.slices;",
        "const int64_t each = p.rows / p.slices;",
        "test_backward",
    ),
    Mutant(
        "a projection's dh forgets dy",
        "cuda/pointwise.cuh",
        "if (p.dy) sum += device::to_float(p.dy[row * p.dy_row + unit]);",
        "",
        "test_backward",
    ),
    Mutant(
        "i and f change places in c",
        "gate_math.h",
        "return fma(gate.f, c_prev, gate.i * gate.g);",
        "return fma(gate.i, c_prev, gate.f * gate.g);",
        "test_forward",
    ),
    Mutant(
        "options: a reset goes unnoticed by c",
        "cuda/marks.cuh",
        "if ((mark & kMarkReset) != 0) return From::kZeros;",
        "",
        "test_marks",
        quick=True,
    ),
    Mutant(
        "options: a reset goes unnoticed by h",
        "cuda/marks.cuh",
        "if (from == Marks::From::kStepBefore) value = *h;",
        "if (from != Marks::From::kInitial) value = *h;",
        "test_marks",
    ),
    Mutant(
        "options: reverse rows that start late start with zeros",
        "cuda/marks.cuh",
        "return !exists(before(t)) || ended(before(t), b);",
        "return !exists(before(t));",
        "test_marks",
    ),
    Mutant(
        "options: factors of the first direction for both",
        "cuda/marks.cuh",
        "own(p.h0), own(p.h_factors)};",
        "own(p.h0), static_cast<const S*>(p.h_factors)};",
        "test_marks",
    ),
    Mutant(
        "options: zoneout's bits of h and c changed over",
        "cuda/marks.cuh",
        "E((bits & kKeepH) != 0), E((bits & kKeepC) != 0)",
        "E((bits & kKeepC) != 0), E((bits & kKeepH) != 0)",
        "test_marks",
    ),
    Mutant(
        "options: zoneout's bits of another direction",
        "cuda/marks.cuh",
        "z.keep ? z.keep + d * p.H : nullptr",
        "z.keep",
        "test_marks",
    ),
    Mutant(
        "options: h_n of the last step, ended or not",
        "cuda/stepwise_options.cuh",
        "} else if (!marks.ends(p.t, b)) {",
        "} else if (marks.exists(marks.after(p.t))) {",
        "test_marks",
    ),
    Mutant(
        "options: rows without a step have no h_n",
        "cuda/stepwise_options.cuh",
        "if (!Marks::is_first_of_all(p.t)) return;\n      last_h",
        "return;\n      last_h",
        "test_marks",
    ),
    Mutant(
        "options: the first step's h is not gathered",
        "cuda/stepwise_forward.cu",
        "queue_.run(gather_h_kernel<S>, cover(step.rows, p_.H), gather);",
        "",
        "test_marks",
    ),
    Mutant(
        "options: cells without the direction's offset",
        "cuda/stepwise_forward.cu",
        "step.row * options.cells_row + d * p_.H;",
        "step.row * options.cells_row;",
        "test_marks",
    ),
    Mutant(
        "options: a gradient crosses a reset as dc",
        "cuda/stepwise_options.cuh",
        "dc.value = from == From::kZeros ? 0 : dc.value + dc_kept;",
        "dc.value = dc.value + dc_kept;",
        "test_marks",
    ),
    Mutant(
        "options: a gradient crosses a reset as dh",
        "cuda/stepwise_options.cuh",
        "if (from != Marks::From::kZeros) {",
        "{",
        "test_marks",
    ),
    Mutant(
        "options: factors forgotten on the way back",
        "cuda/stepwise_options.cuh",
        "if (factors) value *= device::to_float(factors[at]);",
        "",
        "test_marks",
    ),
    Mutant(
        "options: zoneout's h forgotten on the way back",
        "cuda/stepwise_options.cuh",
        "if (dh_kept) value += dh_kept[at];",
        "",
        "test_marks",
    ),
    Mutant(
        "options: zoneout's cell taken for the state it left",
        "cuda/stepwise_options.cuh",
        "c = cell_state(gate, c_before);",
        "",
        "test_marks",
    ),
    Mutant(
        "options: dh_n where a row ends early lost",
        "cuda/stepwise_options.cuh",
        "if (marks.ends(p.t, b)) dh = given(cell.dh_n);",
        "if (!marks.exists(after)) dh = given(cell.dh_n);",
        "test_marks",
    ),
    Mutant(
        "options: dz where a row has ended is what lay there",
        "cuda/stepwise_options.cuh",
        "store_gates({}, cell.dz, cell.hidden, row, unit);",
        "",
        "test_marks",
    ),
    Mutant(
        "options: dcells forgotten",
        "cuda/stepwise_options.cuh",
        "if (p.dcells) dc.value +=",
        "if (false) dc.value +=",
        "test_marks",
    ),
    Mutant(
        "options: dh0 of the direction's own first step missing",
        "cuda/stepwise_backward.cu",
        "if (has_options(p_) && g_.dh0) finish_dh0(d);",
        "",
        "test_marks",
    ),
    Mutant(
        "options: what a row's input holds past its end goes into dw_ih",
        "cuda/stepwise_options.cuh",
        "p.marks.ended(t, b) ? device::from_float<S>(0) : p.x",
        "false ? device::from_float<S>(0) : p.x",
        "test_marks",
    ),
    Mutant(
        "recompute: gates without the state",
        "cuda/stepwise_backward.cu",
        "Operand{w.w_hh, p_.P, true}, s_.z, true);",
        "Operand{w.w_hh, p_.P, true}, s_.z, false);",
        "test_marks",
    ),
    Mutant(
        "recompute: gates not activated",
        "cuda/pointwise.cuh",
        "    activate(gate);\n",
        "",
        "test_marks",
    ),
    Mutant(
        "recompute: the reserve keeps its gates",
        "cuda/reserve.h",
        "p.recompute ? 0 : rows * 4",
        "rows * 4",
        "test_contract",
    ),
    Mutant(
        "single block: no barrier between the steps of forward",
        "cuda/single_block_forward.cuh",
        "    device::cp_async_wait<0>();\n    __syncthreads();\n",
        "    device::cp_async_wait<0>();\n",
        "test_single_block",
        quick=True,
    ),
    Mutant(
        "single block: the projected input is not waited for",
        "cuda/single_block_forward.cuh",
        "device::cp_async_wait<0>();",
        "device::cp_async_wait<1>();",
        "test_single_block",
    ),
    Mutant(
        "single block: one buffer of the state for two steps",
        "cuda/single_block_forward.cuh",
        "state + (s & 1) * kRows * pitch;",
        "state + 0 * kRows * pitch;",
        "test_single_block",
    ),
    Mutant(
        "single block: one buffer of the projected input for two steps",
        "cuda/single_block_forward.cuh",
        "projected + (s & 1) * kRows * kProjectedPitch;",
        "projected + 0 * kRows * kProjectedPitch;",
        "test_single_block",
    ),
    Mutant(
        "single block: x goes with the step before",
        "cuda/single_block_forward.cuh",
        "if (s + 1 < steps) input.put_x(call, state_of(s + 1), pitch);",
        "if (s + 1 < steps) input.put_x(call, state_of(s), pitch);",
        "test_single_block",
    ),
    Mutant(
        "single block: padding of the state not cleared",
        "cuda/single_block_forward.cuh",
        "i < 2 * kRows * pitch; i += threads) state[i]",
        "i < kRows * pitch; i += threads) state[i]",
        "test_single_block",
    ),
    Mutant(
        "single block: h0 in one buffer only",
        "cuda/single_block_forward.cuh",
        "put<Element>(state + (kRows + row) * pitch, k, h0);",
        "",
        "test_single_block",
    ),
    Mutant(
        "single block: y of the second direction over the first",
        "cuda/single_block_forward.cuh",
        "block.direction * hidden + pair.unit;\n  store_pair(y",
        "pair.unit;\n  store_pair(y",
        "test_single_block",
    ),
    Mutant(
        "single block: rows go on beyond their lengths",
        "cuda/single_block_forward.cuh",
        "if (!pair.exists || time >= length[n][e]) continue;",
        "if (!pair.exists) continue;",
        "test_single_block",
    ),
    Mutant(
        "single block: h of a unit past the end is kept",
        "cuda/single_block_forward.cuh",
        "pair.both ? h[1] : 0.0f);\n  store_cells",
        "h[1]);\n  store_cells",
        "test_single_block",
    ),
    Mutant(
        "single block: rows past the batch take part",
        "cuda/single_block_operand.cuh",
        "rows = left < most_rows ? left : most_rows;",
        "rows = most_rows;",
        "test_single_block",
    ),
    Mutant(
        "single block: the reverse direction runs forward",
        "cuda/single_block_operand.cuh",
        "ascending = reverse() == backward;",
        "ascending = !backward;",
        "test_single_block",
    ),
    Mutant(
        "single block: units past the end take part",
        "cuda/single_block_operand.cuh",
        "exists(first < hidden)",
        "exists(first <= hidden)",
        "test_single_block",
    ),
    Mutant(
        "single block: two gates swapped in the tiles",
        "cuda/single_block_weights.cuh",
        "gate = 2 * (tile % 2) + i % 2;",
        "gate = tile % 2 + 2 * (i % 2);",
        "test_single_block",
    ),
    Mutant(
        "single block: weights past the last column are read",
        "cuda/single_block_weights.cuh",
        "row_unit >= call.hidden || column >= call.columns",
        "row_unit >= call.hidden",
        "test_single_block",
    ),
    Mutant(
        "single block: no barrier between the steps of backward",
        "cuda/single_block_backward.cuh",
        "++s) {\n    __syncthreads();\n",
        "++s) {\n",
        "test_single_block",
    ),
    Mutant(
        "single block: c of a row that joins late",
        "cuda/single_block_backward.cuh",
        "if (s == to.begin) {  // later",
        "if (s == 0) {  // later",
        "test_single_block",
    ),
    Mutant(
        "single block: dh0 of the last step only",
        "cuda/single_block_backward.cuh",
        "if (s == state.end) {",
        "if (s == block.steps) {",
        "test_single_block",
    ),
    Mutant(
        "single block: zeros times weights before the first step",
        "cuda/single_block_backward.cuh",
        "    dh[0] = dh[1] = 0.0f;\n    if (call.dh_n != nullptr) {",
        "    if (call.dh_n != nullptr) {",
        "test_single_block",
    ),
    Mutant(
        "single block: db of half the rows",
        "cuda/single_block_backward.cuh",
        "    sum += __shfl_xor_sync(~0u, sum, 2);\n",
        "",
        "test_single_block",
    ),
    Mutant(
        "single block: h of the wrong neighbour for dw_hh",
        "cuda/single_block_calls.cuh",
        "call.reverse ? t + 1 : t - 1;",
        "t - 1;",
        "test_single_block",
    ),
    Mutant(
        "single block: lengths beyond the first piece over it",
        "cuda/single_block_sequence.cuh",
        "piece.lengths = lengths + b;",
        "piece.lengths = lengths;",
        "test_single_block",
    ),
    Mutant(
        "single block, strict: units of a lane mixed up",
        "cuda/single_block_weights.cuh",
        "4 * (lane / 8) + sum / 4",
        "4 * (lane / 8) + 3 - sum / 4",
        "test_single_block",
    ),
    Mutant(
        "single block, strict: the halves of an exchange mixed up",
        "cuda/single_block_strict.cuh",
        "const float sent = upper ? parts[i] : parts[kLeft / 2 + i];",
        "const float sent = upper ? parts[kLeft / 2 + i] : parts[i];",
        "test_single_block",
    ),
    Mutant(
        "keep bits: a row's last quad written whole",
        "cuda/keep_bits.cu",
        "k < 4 && 4 * quad + k < bits.U; ++k",
        "k < 4; ++k",
        "test_keep_bits",
    ),
    Mutant(
        "keep bits: words where rows are not aligned",
        "cuda/keep_bits.cu",
        "bits.U % 4 == 0 && reinterpret_cast",
        "reinterpret_cast",
        "test_keep_bits",
    ),
    Mutant(
        "keep bits: every step as the first",
        "cuda/keep_bits.cu",
        "static_cast<uint32_t>(row / bits.B)",
        "static_cast<uint32_t>(0 * row)",
        "test_keep_bits",
    ),
    Mutant(
        "keep bits: nine rounds",
        "random.h",
        "round < 10",
        "round < 9",
        "test_keep_bits",
    ),
    Mutant(
        "single block, options: a reset leaves c",
        "cuda/single_block_forward.cuh",
        "c[0] = c[1] = state.h[0] = state.h[1] = 0.0f;",
        "state.h[0] = state.h[1] = 0.0f;",
        "test_marks",
    ),
    Mutant(
        "single block, options: a reset leaves the h that gates read",
        "cuda/single_block_forward.cuh",
        "if (state.marks.resets(0)) return true;",
        "",
        "test_marks",
    ),
    Mutant(
        "single block, options: a reset at the first step",
        "cuda/single_block_forward.cuh",
        "if (kOptions && (mark_at(call.options, block, row, 0) & kMarkReset) != 0) continue;",
        "",
        "test_marks",
    ),
    Mutant(
        "single block, options: h0 without its factors",
        "cuda/single_block_forward.cuh",
        "if (kOptions && call.options.h_factors != nullptr) {",
        "if (false) {",
        "test_marks",
    ),
    Mutant(
        "single block, options: h_n of the step before the end",
        "cuda/single_block_forward.cuh",
        "stays = !state.marks.ended(0);",
        "stays = !state.marks.ended(1);",
        "test_marks",
    ),
    Mutant(
        "single block, options: cells of the first direction over those of the second",
        "cuda/single_block_forward.cuh",
        "* call.options.directions + block.direction) * call.hidden;",
        "* call.options.directions) * call.hidden;",
        "test_marks",
    ),
    Mutant(
        "single block, options: marks of another step",
        "cuda/single_block_options.cuh",
        "options.marks[int64_t{block.time(s)} *",
        "options.marks[int64_t{s} *",
        "test_marks",
    ),
    Mutant(
        "single block, options: the second unit keeps what the first does",
        "cuda/single_block_options.cuh",
        "(keep >> (8 * q) & which) != 0",
        "(keep & which) != 0",
        "test_marks",
    ),
    Mutant(
        "single block, options: a gradient crosses a reset as dh",
        "cuda/single_block_backward.cuh",
        "if (state.marks.resets(Row::kAfter)) {",
        "if (false) {",
        "test_marks",
    ),
    Mutant(
        "single block, options: a gradient crosses a reset as dc",
        "cuda/single_block_backward.cuh",
        "state.marks.resets(Row::kNow) ? 0.0f : dc.value + dc_kept;",
        "dc.value + dc_kept;",
        "test_marks",
    ),
    Mutant(
        "single block, options: c before a reset",
        "cuda/single_block_backward.cuh",
        "if (marks.resets(kNow - 1)) return;",
        "",
        "test_marks",
    ),
    Mutant(
        "single block, options: dc0 of the first step only",
        "cuda/single_block_backward.cuh",
        "if (state.marks.ended(Row::kBefore) && call.dc0 != nullptr) {",
        "if (s + 1 == block.steps && call.dc0 != nullptr) {",
        "test_marks",
    ),
    Mutant(
        "single block, options: what lay where dz of an ended row goes",
        "cuda/single_block_backward.cuh",
        "if (s < block.steps) store_dz(call, block, row, first, pair, dz, db);",
        "if (dz[0][0] != 0) store_dz(call, block, row, first, pair, dz, db);",
        "test_marks",
    ),
    Mutant(
        "single block, options: rows that never run have no gradient",
        "cuda/single_block_backward.cuh",
        "if (s < block.steps && Marks::is_first_of_all(block.time(s))) {",
        "if (false) {",
        "test_marks",
    ),
    Mutant(
        "single block: gates computed again of the first stretch only",
        "cuda/single_block_calls.cuh",
        "static_cast<T*>(scratch.dz) + (d * N + first) * 4 * H;",
        "static_cast<T*>(scratch.dz) + d * N * 4 * H;",
        "test_marks",
    ),
    Mutant(
        "single block, options: rows that begin late lose h0 where a reset comes first",
        "cuda/single_block_forward.cuh",
        "if (state.marks.ended(0)) return false;",
        "if (state.marks.ended(0) || state.marks.ended(1)) return false;",
        "test_marks",
    ),
    Mutant(
        "sliced, options: as a call without any",
        "cuda/sliced.cpp",
        "    slices.options = has_options(p);\n",
        "",
        "test_sliced_options",
    ),
    Mutant(
        "sliced, options: shared memory for one of two states",
        "cuda/sliced_block.cuh",
        "bias = cells + states * cut.group_rows * cut.units;",
        "bias = cells + cut.group_rows * cut.units;",
        "test_sliced_options",
    ),
    Mutant(
        "sliced, options: h is lost between launches",
        "cuda/sliced_block.cuh",
        "for (int i = 0; i < kStates; ++i) {",
        "for (int i = 0; i < 1; ++i) {",
        "test_sliced_options",
    ),
    Mutant(
        "sliced, options: what is kept of h does not begin with h0",
        "cuda/sliced_launch.cuh",
        "  if (s.options) call.carried_h = carried + p.D * p.B * p.H;\n",
        "",
        "test_sliced_options",
    ),
    Mutant(
        "sliced, options: the reverse direction begins with the marks of t = 0",
        "cuda/sliced_launch.cuh",
        "const int32_t first = direction == 0 ? 0 : read_h.marks.T - 1;",
        "const int32_t first = 0;",
        "test_sliced_options",
    ),
    Mutant(
        "sliced, options: marks of the first step for all",
        "cuda/sliced_forward.cuh",
        "state.place(call, block, row, s);",
        "state.place(call, block, row, 0);",
        "test_sliced_options",
    ),
    Mutant(
        "sliced, options: h is not kept",
        "cuda/sliced_forward.cuh",
        ", kept[2] = state.h[0], kept[3] = state.h[1];",
        ";",
        "test_sliced_options",
    ),
    Mutant(
        "sliced, options: the next step reads h as y shows it",
        "cuda/sliced_forward.cuh",
        "if (single_block::next_h(call, block, row, pair, state, next)) publish(next);",
        "publish(h);",
        "test_sliced_options",
    ),
    Mutant(
        "sliced, options: rows that begin late read zeros as h0",
        "cuda/single_block_forward.cuh",
        "if (state.marks.ended(0)) return false;",
        "if (state.marks.ended(0) || state.marks.ended(1)) return false;",
        "test_sliced_options",
    ),
    Mutant(
        "sliced, options: what zoneout keeps of dh is not kept",
        "cuda/sliced_backward.cuh",
        "kept[2] = state.kept[0], kept[3] = state.kept[1];",
        "",
        "test_sliced_options",
    ),
    Mutant(
        "sliced, options: marks of the steps before",
        "cuda/sliced_backward.cuh",
        "          state.marks.push(0);  // of step s + 2, which nobody asks for\n",
        "",
        "test_sliced_options",
    ),
    Mutant(
        "sliced, options: what lay where dz of an ended row goes",
        "cuda/sliced_backward.cuh",
        "kOptions ? exists && s < block.steps : active;",
        "active;",
        "test_sliced_options",
    ),
    Mutant(
        "sliced: gates are not computed again",
        "cuda/sliced_backward.cu",
        "  if (p.recompute) single_block::queue_gates<T>(queue, p, gradients, dense, sequence);\n",
        "",
        "test_sliced_options",
    ),
    Mutant(
        "grid: nobody arrives",
        "cuda/sliced_exchange.cuh",
        "    if (threadIdx.x == 0) device::add_release(counter_, 1);\n",
        "",
        "test_sliced",
    ),
    Mutant(
        "grid: arrives before all of the block have written",
        "cuda/sliced_exchange.cuh",
        "  DEVICE void arrive() {\n    __syncthreads();\n",
        "  DEVICE void arrive() {\n",
        "test_sliced",
    ),
    Mutant(
        "grid: waits for the step before (stale generation)",
        "cuda/sliced_exchange.cuh",
        "reached(gridDim.x * static_cast<uint32_t>(s))",
        "reached(gridDim.x * static_cast<uint32_t>(s > 0 ? s - 1 : 0))",
        "test_sliced",
    ),
    Mutant(
        "grid: one copy of the state for two steps",
        "cuda/sliced_exchange.cuh",
        "words_ + (s & 1) * int64_t{",
        "words_ + 0 * int64_t{",
        "test_sliced",
    ),
    Mutant(
        "grid: h into the copy that is being read",
        "cuda/sliced_exchange.cuh",
        "{ copy(s + 1)[at] = word; }",
        "{ copy(s)[at] = word; }",
        "test_sliced",
    ),
    Mutant(
        "grid: gives up without a word",
        "cuda/sliced_exchange.cuh",
        "if (meeting_.fault != nullptr) device::store_for_all(meeting_.fault, 1);",
        "",
        "test_sliced",
    ),
    Mutant(
        "grid: waits for ever",
        "cuda/sliced_exchange.cuh",
        "if (now - begin < meeting_.patience) continue;",
        "if (now >= begin) continue;",
        "test_sliced",
    ),
    Mutant(
        "cluster: nobody waits",
        "cuda/sliced_exchange.cuh",
        "  DEVICE bool wait(int /*s*/) {\n    device::cluster_wait();\n",
        "  DEVICE bool wait(int /*s*/) {\n",
        "test_sliced",
    ),
    Mutant(
        "cluster: h to the first block only",
        "cuda/sliced_exchange.cuh",
        "rank < gridDim.x; ++rank",
        "rank < 1; ++rank",
        "test_sliced",
    ),
    Mutant(
        "cluster: one copy of the state for two steps",
        "cuda/sliced_exchange.cuh",
        "shared_ + (s & 1) * exchange_words_",
        "shared_ + 0 * exchange_words_",
        "test_sliced",
    ),
    Mutant(
        "cluster: the state is lost between launches",
        "cuda/sliced_exchange.cuh",
        "    if (blockIdx.x != 0) return;\n",
        "    return;\n",
        "test_sliced",
    ),
    Mutant(
        "sliced: both directions meet in one place",
        "cuda/sliced_forward.cuh",
        "const int group = direction * int(gridDim.y) + int(blockIdx.y);",
        "const int group = int(blockIdx.y);",
        "test_sliced",
    ),
    Mutant(
        "sliced: sums are added before they are there",
        "cuda/sliced_forward.cuh",
        "                    cut.sums_pitch, cut.units);\n      __syncthreads();\n",
        "                    cut.sums_pitch, cut.units);\n",
        "test_sliced",
        quick=True,
    ),
    Mutant(
        "sliced, backward: sums are added before they are there",
        "cuda/sliced_backward.cuh",
        "                    cut.sums_pitch, cut.units);\n      __syncthreads();\n",
        "                    cut.sums_pitch, cut.units);\n",
        "test_sliced",
    ),
    Mutant(
        "sliced: no barrier between passes",
        "cuda/sliced_forward.cuh",
        "      } else {\n        __syncthreads();\n",
        "      } else {\n",
        "test_sliced",
    ),
    Mutant(
        "sliced: h of a unit past the end is published",
        "cuda/sliced_forward.cuh",
        "pair.both ? of_next[1] : 0.0f,",
        "of_next[1],",
        "test_sliced",
    ),
    Mutant(
        "sliced: rows go on beyond their lengths",
        "cuda/sliced_forward.cuh",
        "const bool active = has_cells && time < length;",
        "const bool active = has_cells && time < length + 1;",
        "test_sliced",
    ),
    Mutant(
        "sliced: c is lost between launches",
        "cuda/sliced_forward.cuh",
        "  carry_cells<true, kStates>(cut, block, thread, Product::kRows, hidden, pair, cells);\n",
        "",
        "test_sliced",
    ),
    Mutant(
        "sliced: dc is lost between launches",
        "cuda/sliced_backward.cuh",
        "  carry_cells<true, kStates>(cut, block, thread, Product::kRows, hidden, pair, cells);\n",
        "",
        "test_sliced",
    ),
    Mutant(
        "sliced: gates swapped",
        "cuda/sliced_product.cuh",
        "(row + gate * units) = float2{d[j][n][at], d[2 + j][n][at]}",
        "(row + (3 - gate) * units) = float2{d[j][n][at], d[2 + j][n][at]}",
        "test_sliced",
    ),
    Mutant(
        "sliced: neighbouring units swapped",
        "cuda/sliced_product.cuh",
        "float2{d[j][n][at], d[2 + j][n][at]}",
        "float2{d[2 + j][n][at], d[j][n][at]}",
        "test_sliced",
    ),
    Mutant(
        "sliced: words of a piece in another order",
        "cuda/sliced_product.cuh",
        "word / 8 % 2 * 2 + word / 4 % 2",
        "word / 8 % 2 + word / 4 % 2 * 2",
        "test_sliced",
    ),
    Mutant(
        "sliced: a batch reads the first piece of shared memory only",
        "cuda/sliced_product.cuh",
        "rest_[((k + j - kHeld) * kFragments + i) * 32]",
        "rest_[((k - kHeld) * kFragments + i) * 32]",
        "test_sliced",
    ),
    Mutant(
        "sliced, strict: gates of neighbouring units swapped",
        "cuda/sliced_product.cuh",
        "float2{parts[gate], parts[4 + gate]}",
        "float2{parts[4 + gate], parts[gate]}",
        "test_sliced",
    ),
    Mutant(
        "sliced: the first part is left out",
        "cuda/sliced_block.cuh",
        "for (int part = 0; part < parts; ++part)",
        "for (int part = 1; part < parts; ++part)",
        "test_sliced",
    ),
    Mutant(
        "sliced: warps of the second units read the first ones' weights",
        "cuda/sliced_block.cuh",
        "int(blockIdx.x)) * groups + group;",
        "int(blockIdx.x)) * groups;",
        "test_sliced",
    ),
    Mutant(
        "sliced: h0 in one copy only",
        "cuda/sliced_launch.cuh",
        "    words[exchange_words + at] = word;\n",
        "",
        "test_sliced",
    ),
    Mutant(
        "sliced: counters and state are not cleared",
        "cuda/sliced_launch.cuh",
        "  queue_clear(queue, words, meeting_words(p, plan));\n",
        "",
        "test_sliced",
    ),
    Mutant(
        "sliced: every launch begins at the first step",
        "cuda/sliced_launch.cuh",
        "arguments.cut.begin = static_cast<int32_t>(s);",
        "arguments.cut.begin = 0;",
        "test_sliced",
    ),
    Mutant(
        "sliced: db is not cleared",
        "cuda/sliced_backward.cu",
        "  queue_clear(queue, dense.db, p.D * plan.groups * 4 * p.H);\n",
        "",
        "test_sliced",
    ),
    Mutant(
        "sliced: db of the first rows only",
        "cuda/sliced_backward.cuh",
        "for (int row = 0; row < rows; ++row) sum",
        "for (int row = 0; row < 1; ++row) sum",
        "test_sliced",
    ),
    Mutant(
        "sliced: the step that makes dh0 is missing",
        "cuda/sliced_backward.cu",
        "kernel, p, plan, p.T + 1, arguments",
        "kernel, p, plan, p.T, arguments",
        "test_sliced",
    ),
    Mutant(
        "sliced: c of the first step for all",
        "cuda/sliced_backward.cuh",
        "if (!state.active(s) || s == state.begin) return;",
        "if (!state.active(s) || s >= state.begin) return;",
        "test_sliced",
    ),
    Mutant(
        "sliced: a refused launch is taken for done",
        "cuda/queue.cuh",
        "      return false;\n",
        "      return true;\n",
        "test_sliced",
    ),
    Mutant(
        "sliced: more blocks than multiprocessors",
        "cuda/sliced.cpp",
        "launch_.device.sms / (blocks * directions)",
        "launch_.device.sms / directions",
        "test_plan",
    ),
    Mutant(
        "plan: families that wait for each other though they are off",
        "cuda/plan.cpp",
        "return launch.across_blocks || !is_sliced(family);",
        "return true;",
        "test_plan",
    ),
    Mutant(
        "plan: what was measured is passed over",
        "cuda/plan.cpp",
        "if (launch.measured && may_choose(",
        "if (!launch.measured && may_choose(",
        "test_plan",
    ),
    Mutant(
        "plan: what was measured, though it does not fit",
        "cuda/plan.cpp",
        "computes(launch.family, problem, training, launch)) {",
        "true) {",
        "test_plan",
    ),
    Mutant(
        "plan: the footprint of one direction for both",
        "cuda/plan.cpp",
        "blocks * problem.D, launch.device.sms}",
        "blocks, launch.device.sms}",
        "test_plan",
    ),
    Mutant(
        "plan: the footprint of forward for training too",
        "cuda/plan.cpp",
        "one.blocks * most.room > most.blocks * one.room",
        "one.blocks * most.room < most.blocks * one.room",
        "test_plan",
    ),
    Mutant(
        "plan: rows of the last pass forgotten",
        "cuda/sliced.cpp",
        "const int64_t passes = (tiles + groups - 1) / groups;",
        "const int64_t passes = tiles / groups;",
        "test_sliced",
    ),
    Mutant(
        "plan: more shared memory than a block may have",
        "cuda/sliced.cpp",
        "if (shared > launch_.device.shared_per_block) continue;",
        "",
        "test_plan",
    ),
    Mutant(
        "variants: moments of one gate's products",
        "cuda/recurrence_cells.cuh",
        "moments_of(z, cells.columns())",
        "moments_of(z, cells.hidden)",
        "test_recurrence",
        quick=True,
    ),
    Mutant(
        "variants: f of coupled gates is a gate of its own",
        "cuda/recurrence_cells.cuh",
        "coupled ? one_minus(i) :",
        "!coupled ? one_minus(i) :",
        "test_recurrence",
    ),
    Mutant(
        "variants: a warp's sum read before it is there",
        "cuda/recurrence_cells.cuh",
        "  }\n  __syncthreads();\n  for (int i = 0; i < N; ++i) {\n    sums[i] = 0;",
        "  }\n  for (int i = 0; i < N; ++i) {\n    sums[i] = 0;",
        "test_recurrence",
    ),
    Mutant(
        "variants: a warp's sum overwritten before all have read it",
        "cuda/recurrence_cells.cuh",
        "  __syncthreads();  // those of before have been read\n",
        "",
        "test_recurrence",
    ),
    Mutant(
        "variants: units beyond one sweep of a block counted by the largest",
        "cuda/recurrence_cells.cuh",
        "k += blockDim.x) body(k)",
        "k += kRowThreads) body(k)",
        "test_recurrence",
    ),
    Mutant(
        "variants: variance without its epsilon",
        "cuda/recurrence_cells.cuh",
        " + static_cast<E>(kLayerNormEpsilon)",
        "",
        "test_recurrence",
    ),
    Mutant(
        "variants: sums hold the last step alone",
        "cuda/recurrence_cells.cuh",
        "begins ? value : sums[at] + value",
        "value",
        "test_recurrence",
    ),
    Mutant(
        "variants: sums begin with what was there",
        "cuda/recurrence_cells.cuh",
        "begins ? value : sums[at] + value",
        "sums[at] + value",
        "test_recurrence",
    ),
    Mutant(
        "variants: rows of dy taken for dense",
        "cuda/recurrence_cells.cuh",
        "dy[row * dy_row + unit]",
        "dy[row * cells.hidden + unit]",
        "test_recurrence",
    ),
    Mutant(
        "variants: peephole of o sees the state before",
        "cuda/recurrence_cells.cuh",
        "dz.o.value * p.c[at]);",
        "dz.o.value * c_before.value);",
        "test_recurrence",
    ),
    Mutant(
        "variants: mean of dz left in dzh",
        "cuda/recurrence_cells.cuh",
        "dzx[k] * cells.ln_hh[k] - of_z[0] / count",
        "dzx[k] * cells.ln_hh[k]",
        "test_recurrence",
    ),
    Mutant(
        "variants: normalised products kept of one gate's place",
        "cuda/recurrence_cells.cuh",
        "p.normalised[row * cells.columns() + k] = normalised;",
        "p.normalised[row * cells.columns() + unit] = normalised;",
        "test_recurrence",
    ),
    Mutant(
        "variants: h0 ignored",
        "cuda/recurrence_forward.cu",
        "s > 0 ? y_at(s - 1) : q_.h0",
        "s > 0 ? y_at(s - 1) : nullptr",
        "test_recurrence",
    ),
    Mutant(
        "variants: stale c in training",
        "cuda/recurrence_forward.cu",
        "s > 0 ? c_at(s - 1) : static",
        "s > 0 ? c_at(s) : static",
        "test_recurrence",
    ),
    Mutant(
        "variants: rows of zx taken for dense",
        "cuda/recurrence_forward.cu",
        "step.zx_row = q_.zx_b;",
        "step.zx_row = q_.gates * q_.H;",
        "test_recurrence",
    ),
    Mutant(
        "variants: h_n of the first step",
        "cuda/recurrence_forward.cu",
        "if (last) step.h_n",
        "if (s == 0) step.h_n",
        "test_recurrence",
    ),
    Mutant(
        "variants: dh from the gradient before LayerNorm",
        "cuda/recurrence_backward.cu",
        "q_.ln_hh ? g_.dzh : g_.dzx",
        "g_.dzx",
        "test_recurrence",
    ),
    Mutant(
        "variants: dc0 not written",
        "cuda/recurrence_backward.cu",
        "s > 0 ? s_.dc : static_cast<E*>(g_.dc0)",
        "s_.dc",
        "test_recurrence",
    ),
    Mutant(
        "variants: scratch for one slice of rows",
        "cuda/recurrence_steps.h",
        "slice_count(q) * q.gates * q.H",
        "q.gates * q.H",
        "test_recurrence",
    ),
    Mutant(
        "variants: steps of a reverse direction forward",
        "cuda/recurrence_steps.h",
        "q.reverse ? q.T - 1 - s : s",
        "s",
        "test_recurrence",
    ),
    Mutant(
        "variants: a gradient passes where a bound was exceeded",
        "cuda/scalar.cuh",
        "? value.value : E(0)}",
        "? value.value : value.value}",
        "test_recurrence",
    ),
    Mutant(
        "variants: a clipped float loses its sign",
        "cuda/scalar.cuh",
        "copysignf(magnitude.value, a.value)",
        "magnitude.value",
        "test_recurrence",
    ),
]

# Every test program must pass on the copy as it is, or failing on a mutant would tell nothing.
CONTROLS = [
    Mutant("nothing changed", "lstm.h", "#pragma once", "#pragma once", test)
    for test in sorted({mutant.test for mutant in MUTANTS})
]


def plant(mutant: Mutant, kernels: Path, target: Path) -> str | None:
    """Copies the kernels and applies the mutant; the reason if it does not apply exactly once."""
    shutil.copytree(kernels, target)
    path = target / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        return f"applies {text.count(mutant.old)} times to {mutant.file}, expected once"
    path.write_text(text.replace(mutant.old, mutant.new))
    return None


def depends(made: Path, file: str) -> bool:
    """Whether the object was made from a file, by what the compiler noted beside it."""
    return re.search(rf"/{re.escape(file)}\b", made.with_suffix(".d").read_text()) is not None


def compiler(kernels: Path, native: Path, include: Path) -> list[str]:
    flags = (
        "-std=c++17 -O1 -w -fsanitize=alignment -fno-sanitize-recover=alignment "
        "-U_FORTIFY_SOURCE -ffp-contract=off -pthread -D__forceinline__=inline"
    )
    folders = [include, kernels, kernels / "cuda", native]
    smaller = [
        "-DFUSED_LSTM_CHUNK_BYTES=8192",
        "-DFUSED_LSTM_HELD_FRAGMENTS=16",
        "-DFUSED_LSTM_SLICED_STEPS=5",
    ]
    return [os.environ.get("CXX", "g++"), *flags.split(), *smaller, *(f"-I{f}" for f in folders)]


def sources_of(objects: list[Path], kernels: Path, here: Path) -> list[str]:
    """The sources of objects below the build folder, kernels from the copy."""
    found = []
    for made in objects:
        if made.parent.name == "kernel":
            found += ["-x", "c++", str(kernels / "cuda" / made.stem), "-x", "none"]
        else:
            found.append(str(here / f"{made.stem}.cpp"))
    return found


def applies(mutant: Mutant, kernels: Path) -> bool:
    """Whether it can be planted, and says so where it cannot."""
    with tempfile.TemporaryDirectory() as folder:
        problem = plant(mutant, kernels, Path(folder) / "kernels")
    if problem:
        print(f"FAIL {mutant.name}: {problem}", flush=True)
    return problem is None


def try_mutant(mutant: Mutant, kernels: Path, build: Path) -> str | None:
    """None when the test fails on the mutant (passes on a control); otherwise what is wrong."""
    here = Path(__file__).resolve().parent
    control = mutant.old == mutant.new
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "kernels"
        problem = plant(mutant, kernels, copy)
        if problem:
            return problem
        objects = sorted((build / "kernel").glob("*.o")) + sorted((build / "native").glob("*.o"))
        objects += [build / f"{name}.o" for name in ("kernels_cuda", "blas", mutant.test)]
        changed = [made for made in objects if not control and depends(made, mutant.file)]
        kept = [str(made) for made in objects if made not in changed]
        program = Path(folder) / mutant.test
        command = compiler(copy, here.parent / "native", here / "include")
        command += [*sources_of(changed, copy, here), *kept, "-o", str(program)]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode != 0:
            return "does not compile: " + made.stderr.strip().splitlines()[0]
        asked = ["--first", "1", "--seconds", "30"]
        if control:  # that they pass in full, `make run` says
            asked += ["--share", "0/6"]
        run = subprocess.run([str(program), *asked], capture_output=True, text=True)
        if (run.returncode == 0) == control:
            return None
        last = (run.stdout.splitlines() or ["no output"])[-1]
        return f"{mutant.test} {'fails' if control else 'passes'}: {last}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=Path, required=True, help="csrc/kernels")
    parser.add_argument("--build", type=Path, required=True, help="folder of the built tests")
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    parser.add_argument("--quick", action="store_true", help="a few, where the tests just passed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time")
    parser.add_argument(
        "--share",
        default="0/1",
        help="K/N: every N-th from the K-th on; the others need only apply",
    )
    arguments = parser.parse_args()
    chosen = [m for m in MUTANTS if m.quick] if arguments.quick else MUTANTS
    chosen = [mutant for mutant in chosen if arguments.only in mutant.name]
    first, step = (int(part) for part in arguments.share.split("/"))
    survivors = sum(not applies(m, arguments.kernels) for m in chosen)
    chosen = chosen[first % step :: step]
    if not arguments.quick:
        chosen = [c for c in CONTROLS if c.test in {m.test for m in chosen}] + chosen
    with ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = [
            (mutant, pool.submit(try_mutant, mutant, arguments.kernels, arguments.build))
            for mutant in chosen
        ]
        for mutant, job in jobs:
            problem = job.result()
            survivors += problem is not None
            said = f"FAIL {mutant.name}: {problem}" if problem else f"seen {mutant.name}"
            print(f"{said} ({mutant.test})", flush=True)
    print(f"mutants (stand-in): {len(chosen) - survivors} passed, {survivors} failed")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
