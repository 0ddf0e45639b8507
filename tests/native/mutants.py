"""Do the native tests notice an error? Plants one at a time into a copy of the kernels and expects
a named test program to fail. Each replacement must apply exactly once, so that this list cannot
rot silently when the kernels change. Only one instruction set is compiled anew, which keeps it to
a few minutes; `make mutants` builds what it needs first.
"""

from __future__ import annotations

import argparse
import os
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
    isa: str = ""  # the instruction set to compile anew; "": the one with the most tails here


MUTANTS = [
    Mutant(
        "two gates swapped",
        "cpu/pack.h",
        "const S* src = w + (gate * H + p * W) * n;",
        "const S* src = w + ((gate ^ 1) * H + p * W) * n;",
        "test_forward",
    ),
    Mutant(
        "b_hh forgotten",
        "cpu/pack.h",
        "value += to_float(b_hh[gate * H + u]);",
        "value += 0;",
        "test_forward",
    ),
    Mutant(
        "tail of y written without a mask",
        "cpu/forward.h",
        "store_as(h.v[i], y, at.units);",
        "store_as(h.v[i], y);",
        "test_forward",
    ),
    Mutant(
        "initial h not cleared",
        "cpu/forward.h",
        "zeros_[k] = A{};",
        "(void)k;",
        "test_forward",
    ),
    Mutant(
        "stale h: a step too early",
        "cpu/forward.h",
        "segment.h = y.step(steps_, before);",
        "segment.h = y.step(steps_, max64(0, before - 1));",
        "test_forward",
    ),
    Mutant(
        "reverse direction runs forward",
        "cpu/forward.h",
        "time_of(int32_t d, int64_t s) const { return d == 0 ? s : q_.T - 1 - s; }",
        "time_of(int32_t, int64_t s) const { return s; }",
        "test_forward",
    ),
    Mutant(
        "packed: rows that start later take part",
        "cpu/forward.h",
        "s == 0 ? 0 : min64(end, steps_.rows(time_of(d, s - 1)))",
        "s == 0 ? 0 : end",
        "test_packed",
    ),
    Mutant(
        "a k-block forgets the one before",
        "cpu/forward.h",
        "tile.add(k == 0 ? at.start + row * at.start_row : sums, k == 0 ? at.start_row : G);",
        "tile.add(at.start + row * at.start_row, at.start_row);",
        "test_forward",
        "emulated512",
    ),
    Mutant(
        "small tiles: a k-block forgets the one before",
        "cpu/forward.h",
        "tile.add(k0 == 0 ? at.start + row * at.start_row : out, k0 == 0 ? at.start_row : G);",
        "tile.add(at.start + row * at.start_row, at.start_row);",
        "test_forward",
        "avx2",
    ),
    Mutant(
        "small tiles: sums of too few rows",
        "cpu/forward.h",
        "(projection_.on() || goes_by_blocks(0, panels_)) && !plan.dot && !plan.matrix ? q_.B : 0;",
        "projection_.on() && !plan.dot ? q_.B : 0;",
        "test_forward",
        "avx2",
    ),
    Mutant(
        "tiles: a reset row keeps its h",
        "cpu/forward.h",
        "changed = count > 0 && segments[0].h != left;",
        "changed = false;",
        "test_marks",
        "emulated512",
    ),
    Mutant(
        "tiles: an ended row keeps the gradients of a chunk before",
        "cpu/backward.h",
        "if (!marks.ended(d, s, b)) continue;",
        "if (true) continue;",
        "test_marks",
        "emulated512",
    ),
    Mutant(
        "tiles: x of an ended row in dW",
        "cpu/backward.h",
        "if (part == 0) return x_row(x, t, b);",
        "if (part == 0) return x.step(steps_, t) + b * x.stride_b;",
        "test_marks",
        "emulated512",
    ),
    Mutant(
        "tiles: dW of h without its factors",
        "cpu/backward.h",
        "if (h == nullptr || q_.h_factors == nullptr) return h;",
        "if (true) return h;",
        "test_marks",
        "emulated512",
    ),
    Mutant(
        "tiles: gates again without factors of h",
        "cpu/recompute.h",
        "if (h == nullptr || factors == nullptr) return put(h, q_.P, row, tiles);",
        "if (true) return put(h, q_.P, row, tiles);",
        "test_marks",
        "emulated512",
    ),
    Mutant(
        "tiles: gates again from a row of x that has ended",
        "cpu/recompute.h",
        "zero_row(n, row, k_blocks_, tiles);",
        "",
        "test_marks",
        "emulated512",
    ),
    Mutant(
        "random: a vector's units one lane on",
        "cpu/keep_rows.h",
        "first + Words::set1(static_cast<uint32_t>(u / 4))",
        "first + Words::set1(static_cast<uint32_t>(u / 4 + 1))",
        "test_random",
    ),
    Mutant(
        "random: odd quads are even ones",
        "cpu/keep_rows.h",
        "{upper(quads), Words::set1(b)",
        "{quads, Words::set1(b)",
        "test_random",
    ),
    Mutant(
        "narrow: a k-block forgets the one before",
        "cpu/forward.h",
        "if (k > 0) tile.add(narrow, NV * W);",
        "",
        "test_forward",
        "emulated512",
    ),
    Mutant(
        "narrow: W_hh's rows where wide ones lie",
        "cpu/forward.h",
        "at.weights + x_rows * NV * W, max64(k0, x_rows)",
        "at.weights + x_rows * G, max64(k0, x_rows)",
        "test_forward",
        "emulated512",
    ),
    Mutant(
        "narrow: a gradient written as it was summed",
        "cpu/backward.h",
        "if (vectors < 4) Narrow<E>::spread(panel, side.features, vectors);",
        "",
        "test_backward",
        "emulated512",
    ),
    Mutant(
        "narrow: products of fewer units than there are",
        "cpu/backward.h",
        "tile.accumulate(a, G, 1, w, kWidth, units);",
        "tile.accumulate(a, G, 1, w, kWidth, units - 1);",
        "test_backward",
        "emulated512",
    ),
    Mutant(
        "far weights: sums of too few rows",
        "cpu/forward.h",
        "(projection_.on() || goes_by_blocks(0, panels_)) && !plan.dot && !plan.matrix ? q_.B : 0;",
        "(projection_.on() || kSmallTiles) && !plan.dot ? q_.B : 0;",
        "test_forward",
        "emulated512",
    ),
    Mutant(
        "far weights: a k-block forgets the one before",
        "cpu/forward.h",
        "tile.add(k0 == 0 ? at.start + row * at.start_row : out, k0 == 0 ? at.start_row : G);",
        "tile.add(at.start + row * at.start_row, at.start_row);",
        "test_forward",
        "emulated512",
    ),
    Mutant(
        "columns packed from another gate's rows",
        "cpu/backward.h",
        "row = k % G / W * q_.H + unit;",
        "row = (k % G / W ^ 1) * q_.H + unit;",
        "test_backward",
    ),
    Mutant(
        "strides of x taken for contiguous",
        "cpu/sequence.h",
        "return steps.sizes || steps.B == 1 || stride_t == steps.B * stride_b;",
        "return true;",
        "test_forward",
    ),
    Mutant(
        "workspace counted too small",
        "cpu/forward.h",
        "carver.take<E>(panels_ * q_.B * W);",
        "carver.take<E>(panels_ * q_.B);",
        "test_forward",
    ),
    Mutant(
        "no barrier between steps",
        "cpu/forward.h",
        "if (barrier) barrier->wait(parties);",
        "(void)barrier, (void)parties;",
        "test_threads",
    ),
    Mutant(
        "as many parties as asked for",
        "cpu/team.h",
        "static_cast<int32_t>(ceil_div(team.n, chunk))",
        "static_cast<int32_t>(team.n)",
        "test_threads",
    ),
    Mutant(
        "NaN clamped away",
        "cpu/activation.h",
        "vmax(V::set1(-C::kSigmoidLimit), vmin(limit, x))",
        "vmax(V::set1(-C::kSigmoidLimit), vmin(x, limit))",
        "test_special",
    ),
    Mutant(
        "chunks of backward not joined",
        "cpu/backward.h",
        "if (first > 0) keep_later(first, last);",
        "",
        "test_backward",
    ),
    Mutant(
        "dW of the last chunk alone",
        "cpu/backward.h",
        "if (fresh && k == 0) {",
        "if (k == 0) {",
        "test_backward",
    ),
    Mutant(
        "dW summed in a second copy of it all",
        "cpu/backward.h",
        "(one_chunk() ? writers() : panels_)",
        "panels_",
        "test_contract",
    ),
    Mutant(
        "dW written before it is whole",
        "cpu/backward.h",
        "if (first > 0) continue;\n          if constexpr",
        "if (last < q_.T) continue;\n          if constexpr",
        "test_backward",
    ),
    Mutant(
        "dh_n of rows that end early lost",
        "cpu/backward.h",
        "} else if (dh_n) {",
        "} else if (dh_n && s == q_.T - 1) {",
        "test_backward",
    ),
    Mutant(
        "padded units leak an infinite input",
        "cpu/backward.h",
        "if (units < W) {  // 0 * Inf",
        "if (units < 0) {  // 0 * Inf",
        "test_special",
    ),
    Mutant(
        "projection: h before all of m is there",
        "cpu/forward.h",
        "if (barrier != nullptr) barrier->wait(parties);",
        "",
        "test_threads",
    ),
    Mutant(
        "projection: dm before all of dh is there",
        "cpu/backward.h",
        "if (barrier) barrier->wait(parties);  // dh of all columns is there",
        "",
        "test_threads",
    ),
    Mutant(
        "projection: W_hr read with the wrong stride",
        "cpu/forward.h",
        "dot_rows(w_hr + v * W * q_.H, q_.H,",
        "dot_rows(w_hr + v * W * q_.H, q_.P,",
        "test_forward",
    ),
    Mutant(
        "projection: converted h of the wrong row",
        "cpu/forward.h",
        "(s & 1) * q_.B + b0 + r)",
        "(s & 1) * q_.B + r)",
        "test_forward",
    ),
    Mutant(
        "projection: dy of the first direction for both",
        "cpu/backward.h",
        "b * dy.stride_b + d * q_.P",
        "b * dy.stride_b",
        "test_backward",
    ),
    Mutant(
        "projection: dc0 in rows of P",
        "cpu/backward.h",
        "static_cast<S*>(g_.dc0) + (d * q_.B + b) * q_.H + p * W",
        "static_cast<S*>(g_.dc0) + (d * q_.B + b) * q_.P + p * W",
        "test_backward",
    ),
    Mutant(
        "projection: chunks of dW_hr not joined",
        "cpu/projection.h",
        "m_row(), !fresh}",
        "m_row(), false}",
        "test_backward",
    ),
    Mutant(
        "projection: db of a block of steps counted again",
        "cpu/backward.h",
        "Vec<E>::set1(0).store(part.db_block + k);",
        "",
        "test_backward",
    ),
    Mutant(
        "projection: tail of dW_hr written without a mask",
        "cpu/projection.h",
        "static_cast<int>(min64(W, q_.H - k))",
        "W",
        "test_backward",
    ),
]


# bfloat16 by pairs, which the emulated instruction set has on any machine.
MUTANTS += [
    Mutant(
        "pairs: the last of an odd number brings its neighbour",
        "cpu/simd.h",
        "return from_bits(p->bits);",
        "return broadcast_pair(p);",
        "test_forward",
        "emulated512",
    ),
    Mutant(
        "pairs: the second weight of each in the first's place",
        "cpu/pack.h",
        "static_cast<uint32_t>(pair[1].bits) << 16",
        "static_cast<uint32_t>(pair[0].bits) << 16",
        "test_forward",
        "emulated512",
    ),
    Mutant(
        "pairs: h behind x begins a row late",
        "cpu/forward.h",
        "at.weights + x_rows * NV * W, max64(k0, x_rows) - x_rows,",
        "at.weights + (x_rows + 1) * NV * W, max64(k0, x_rows) - x_rows,",
        "test_forward",
        "emulated512",
    ),
    Mutant(
        "side by side: dot products without their tail",
        "cpu/forward.h",
        "if (k < n) multiply(k, static_cast<int>(n - k));",
        "",
        "test_forward",
    ),
    Mutant(
        "side by side: three rows read as one",
        "cpu/forward.h",
        "const int64_t row = b + min64(r, rows - 1);",
        "const int64_t row = b + (rows == 3 ? 0 : min64(r, rows - 1));",
        "test_forward",
    ),
    Mutant(
        "side by side: sums of rows mixed up",
        "cpu/forward.h",
        "sums[r * G + first + j] += totals[r * kRows + j];",
        "sums[r * G + first + j] += totals[(R - 1 - r) * kRows + j];",
        "test_forward",
    ),
    Mutant(
        "side by side: more rows finished than there are",
        "cpu/forward.h",
        "finish_tile(at, z, b, rows);",
        "finish_tile(at, z, b, R);",
        "test_forward",
    ),
    Mutant(
        "plan: halves of a step multiplied as they lie",
        "cpu/plan.cpp",
        "if (facts.matrix || facts.storage_bytes < facts.compute_bytes) return false;",
        "if (facts.matrix) return false;",
        "test_plan",
    ),
    Mutant(
        "plan: as many rows without AVX-512",
        "cpu/plan.cpp",
        "most / (facts.small_tiles ? 4 : 1)",
        "most / 1",
        "test_plan",
    ),
    Mutant(
        "plan: the way of the weights not asked",
        "cpu/plan.cpp",
        "(far || (halfway && rows <= 8))",
        "(far || rows <= 8)",
        "test_plan",
    ),
    Mutant(
        "side by side: W_ih forgotten",
        "cpu/forward.h",
        "if (plan_.fused) add_dot_rows(w_ih + unit * q_.I, q_.I, x, q_.I, z + gate * W);",
        "",
        "test_forward",
    ),
    Mutant(
        "pairs: dot products without their tail",
        "cpu/forward.h",
        "for (; k < n; k += 2 * W) {",
        "for (; k + 2 * W <= n; k += 2 * W) {",
        "test_forward",
        "emulated512",
    ),
]

# Rows that are reset or have ended, and cells.
MUTANTS += [
    Mutant(
        "marks: h goes on across a reset",
        "cpu/marks.h",
        "copy_h(from == Marks::From::kZeros ? nullptr",
        "copy_h(false ? nullptr",
        "test_marks",
    ),
    Mutant(
        "marks: the gradient of c goes on across a reset",
        "cpu/marks.h",
        "if (from == Marks::From::kZeros) Vec<E>::set1(0).store(dc + b * W);",
        "",
        "test_marks",
    ),
    Mutant(
        "marks: dW_hh takes h from before a reset",
        "cpu/backward.h",
        "if (from == Marks::From::kZeros || from == Marks::From::kNoStep) return nullptr;",
        "if (from == Marks::From::kNoStep) return nullptr;",
        "test_marks",
    ),
    Mutant(
        "marks: in reverse a row starts in what padding left",
        "cpu/marks.h",
        "const bool initial = from == Marks::From::kInitial && !first;",
        "const bool initial = false;",
        "test_marks",
    ),
    Mutant(
        "marks: dW_ih reads behind a row's end",
        "cpu/backward.h",
        "if (marks_.marks().on() && marks_.marks().ended(0, t, b)) return nullptr;",
        "",
        "test_marks",
    ),
    Mutant(
        "marks: no gradient of cells in the second direction",
        "cpu/marks.h",
        "if (g_.dcells == nullptr) return;",
        "if (g_.dcells == nullptr || d == 1) return;",
        "test_marks",
    ),
]

# bfloat16 on the matrix unit's tiles, emulated likewise.
MUTANTS += [
    Mutant(
        "tiles: h of the step before the last one",
        "cpu/matrix_forward.h",
        "side.h[(s + 1) & 1]",
        "side.h[s & 1]",
        "test_forward",
        "emulated512",
    ),
    Mutant(
        "tiles: the second block of rows reads the first one's",
        "cpu/matrix.h",
        "multiply_blocks<kPartsA, kPartsB>(unit, a, a + operands[i].a_block, b);",
        "multiply_blocks<kPartsA, kPartsB>(unit, a, a, b);",
        "test_forward",
        "emulated512",
    ),
    Mutant(
        "zoneout: keeps h of the row before",
        "cpu/forward.h",
        "at.segment->h_kept + b * at.segment->h_kept_row",
        "at.segment->h_kept + row * at.segment->h_kept_row",
        "test_marks",
    ),
    Mutant(
        "zoneout: keeps h times its factors",
        "cpu/marks.h",
        "segment.h_kept = kept;",
        "segment.h_kept = h;",
        "test_marks",
    ),
    Mutant(
        "zoneout: keeps h across a reset",
        "cpu/marks.h",
        "segment.h_row = segment.h_kept_row = q_.P;",
        "segment.h_row = q_.P;",
        "test_marks",
    ),
    Mutant(
        "zoneout: bits of h for c",
        "cpu/marks.h",
        "return mix(kKeepC, zoneout_.c, before, now);",
        "return mix(kKeepH, zoneout_.c, before, now);",
        "test_marks",
    ),
    Mutant(
        "zoneout: the kept gradient of h goes through the cell too",
        "cpu/backward.h",
        "dh = dh - dh_kept;",
        "",
        "test_marks",
    ),
    Mutant(
        "zoneout: the state taken for the cell's c",
        "cpu/backward.h",
        "c_now = cell_state(gate, c_prev);",
        "",
        "test_marks",
    ),
    Mutant(
        "zoneout: kept gradient of h lost between steps",
        "cpu/marks.h",
        "if (q_.zoneout.on()) dh = dh + Vec<E>::load(dh_kept(d, v, b));",
        "",
        "test_marks",
    ),
    Mutant(
        "factors: not on the gradient of h",
        "cpu/marks.h",
        "if (factors) dh = dh * load_as(Tag<E>{}, factors + v * W, units);",
        "(void)factors, (void)units;",
        "test_marks",
    ),
    Mutant(
        "features of dW: a whole tile from the middle of one on",
        "cpu/backward.h",
        "if (lane == 0 && n - k >= kTile && source && !factors) {",
        "if (n - k >= kTile && source && !factors) {",
        "test_backward",
    ),
    Mutant(
        "factors: dW_hh from h as it is",
        "cpu/backward.h",
        "at[lane] = factor ? value * static_cast<E>(to_float(*factor)) : value;",
        "at[lane] = value, (void)factor;",
        "test_marks",
    ),
    Mutant(
        "recompute: gates of the chunk before",
        "cpu/recompute.h",
        "return sides_[d].gates + (p * chunk_rows_ + first) * G;",
        "return sides_[d].gates + p * chunk_rows_ * G;",
        "test_marks",
    ),
    Mutant(
        "recompute: no bias",
        "cpu/recompute.h",
        " + Vec<E>::load(bias + gate * W);",
        ";",
        "test_marks",
    ),
    Mutant(
        "random: rows of one step alike",
        "random.h",
        "philox({{quad, b, t, bits.stream}}",
        "philox({{quad, 0 * b, t, bits.stream}}",
        "test_random",
        "portable",
    ),
    Mutant(
        "tiles: beyond the last feature lies what was there before",
        "cpu/matrix.h",
        "  std::memset(dst, 0, 64);\n",
        "",
        "test_forward",
        "emulated512",
    ),
    Mutant(
        "tiles: dW's dgates of odd rows in the place of even ones",
        "cpu/matrix.h",
        "words[2 * k + odd] = src[k];",
        "words[2 * k] = src[k];",
        "test_backward",
        "emulated512",
    ),
    Mutant(
        "tiles: what the chunk after left is not kept",
        "cpu/backward.h",
        "matrix_.keep_later(d, t - chunk);",
        "",
        "test_backward",
        "emulated512",
    ),
    Mutant(
        "tiles: an infinite gradient gets a second part",
        "cpu/matrix_backward.h",
        "store_as(zero_for_nan(*gates[gate] - load_as(Tag<float>{}, high)), low);",
        "store_as(*gates[gate] - load_as(Tag<float>{}, high), low);",
        "test_special",
        "emulated512",
    ),
    Mutant(
        "LayerNorm counts the padding",
        "cpu/recurrence_rows.h",
        "k < whole ? apart : first_lanes(apart, static_cast<int>(H % W))",
        "apart",
        "test_recurrence",
    ),
    Mutant(
        "the peephole of o sees the cell before",
        "gate_math.h",
        "z.o = fma(v.p_o, c, z.o);",
        "z.o = fma(v.p_o, c_prev, z.o);",
        "test_recurrence",
    ),
    Mutant(
        "a gradient passes a clipped cell",
        "gate_math.h",
        "if (v.clips_cell) dc = within(",
        "if (false) dc = within(",
        "test_recurrence",
    ),
    Mutant(
        "sums of a task forgotten",
        "cpu/recurrence_backward.h",
        "for (int64_t i = 1; i < plan_.tasks; ++i)",
        "for (int64_t i = 2; i < plan_.tasks; ++i)",
        "test_recurrence",
    ),
    Mutant(
        "frozen: W_ih scaled as W_hh is",
        "cpu/frozen_forward.h",
        "fma(sum, f.scale(d, 0, p, s, j), bias)",
        "fma(sum, f.scale(d, 1, p, s, j), bias)",
        "test_frozen",
    ),
    Mutant(
        "frozen: rows that start later read what no step wrote",
        "cpu/frozen_forward.h",
        "s == 0 ? 0 : min64(end, steps_.rows(time_of(d, s - 1)))",
        "s == 0 ? 0 : end",
        "test_frozen",
    ),
    Mutant(
        "frozen: the other gate of a pair stays in the low bits",
        "cpu/simd.h",
        "return {reinterpret_cast<decltype(Vec<float>::v)>(pairs << 16)};",
        "return {reinterpret_cast<decltype(Vec<float>::v)>(pairs)};",
        "test_frozen",
    ),
    Mutant(
        "frozen: a strip of bfloat16 begins where one of float32 does",
        "cpu/frozen_forward.h",
        "std::is_same<K, BFloat16>::value ? 2 * W : W;",
        "W;",
        "test_frozen",
    ),
    Mutant(
        "frozen: 128 left in 8-bit weights",
        "cpu/simd.h",
        "(quads ^ 0x80808080u)",
        "(quads ^ 0u)",
        "test_frozen",
        "portable",
    ),
    Mutant(
        "frozen: 8-bit weights of another k of the four",
        "cpu/simd.h",
        "<< (24 - 8 * k)) >> 24;",
        "<< (8 * k)) >> 24;",
        "test_frozen",
        "portable",
    ),
    Mutant(
        "frozen: 128 left in weights for 16-bit products",
        "cpu/bytes.cpp",
        "_mm_set1_epi8(-128)",
        "_mm_set1_epi8(0)",
        "test_frozen",
        "avx2",
    ),
    Mutant(
        "frozen: 16-bit products of a block replace those before",
        "cpu/bytes.cpp",
        "strip, begin == 0);",
        "strip, true);",
        "test_frozen",
        "avx2",
    ),
    Mutant(
        "frozen: low bytes of h forgotten",
        "cpu/bytes.cpp",
        "total[1] += weight * bytes[kByteBlock];",
        "total[1] += 128 * bytes[kByteBlock];",
        "test_frozen",
        "emulated512",
    ),
    Mutant(
        "frozen: low bytes' 128 not taken back",
        "cpu/frozen_forward.h",
        "row.starts[1] -= 128 * low_sum[i];",
        "row.starts[1] -= 0 * low_sum[i];",
        "test_frozen",
        "emulated512",
    ),
    Mutant(
        "frozen: bytes in the unit of the first row",
        "cpu/bytes.h",
        "starts + 2 * r, units + r};",
        "starts + 2 * r, units};",
        "test_frozen",
        "emulated512",
    ),
    Mutant(
        "frozen: a k-block forgets the one before",
        "cpu/frozen_forward.h",
        "if (k > 0) tile.add(sums, G);",
        "",
        "test_frozen",
    ),
]


def compiled_isa() -> str:
    """The instruction set to mutate: avx2 where it runs, since its code holds the most tails."""
    try:
        return "avx2" if " avx2 " in Path("/proc/cpuinfo").read_text() else "portable"
    except OSError:
        return "portable"


# Every test program must pass on the copy as it is, or failing on a mutant would tell nothing.
CONTROLS = [
    Mutant("nothing changed", "lstm.h", "#pragma once", "#pragma once", test, isa)
    for test, isa in sorted({(mutant.test, mutant.isa) for mutant in MUTANTS})
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


def try_mutant(mutant: Mutant, kernels: Path, build: Path, isa: str) -> str | None:
    """None when the test fails on the mutant (passes on a control); otherwise what is wrong."""
    isa = mutant.isa or isa
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "kernels"
        problem = plant(mutant, kernels, copy)
        if problem:
            return problem
        sources = ("bytes", "dispatch", "keep_bits", "plan", f"isa_{isa}")
        changed = [copy / "cpu" / f"{name}.cpp" for name in sources]
        kept = [
            path
            for path in sorted((build / "kernel").rglob("*.o"))
            if path.stem not in {source.stem for source in changed}
        ]
        names = ("reference", "parallel", "cases", "run", "suite", "kernels_cpu")
        shared = [build / f"{name}.o" for name in names]
        program = Path(folder) / mutant.test
        # The emulated vectors take minutes to optimise, and seconds to run as they are.
        level = "-O0" if isa == "emulated512" else "-O1"
        command = [os.environ.get("CXX", "g++"), "-std=c++17", level, "-w", "-pthread", f"-I{copy}"]
        command += ["-DFUSED_LSTM_EMULATED", "-DFL_INLINE=inline"]
        command += [str(path) for path in changed + kept + shared + [build / f"{mutant.test}.o"]]
        made = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True)
        if made.returncode != 0:
            return "does not compile: " + made.stderr.strip().splitlines()[0]
        run = subprocess.run(
            [str(program), "--isa", isa, "--seconds", "5"], capture_output=True, text=True
        )
        passes = run.returncode == 0
        if passes == (mutant.old == mutant.new):
            return None
        last = (run.stdout.splitlines() or ["no output"])[-1]
        return f"{mutant.test} {'passes' if passes else 'fails'}: {last}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=Path, required=True, help="csrc/kernels")
    parser.add_argument("--build", type=Path, required=True, help="folder of the built tests")
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    arguments = parser.parse_args()
    isa = compiled_isa()
    chosen = [mutant for mutant in CONTROLS + MUTANTS if arguments.only in mutant.name]
    survivors = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            (mutant, pool.submit(try_mutant, mutant, arguments.kernels, arguments.build, isa))
            for mutant in chosen
        ]
        for mutant, job in jobs:
            problem = job.result()
            survivors += problem is not None
            said = f"FAIL {mutant.name}: {problem}" if problem else f"seen {mutant.name}"
            print(f"{said} ({mutant.test})")
    print(f"mutants ({isa}): {len(chosen) - survivors} passed, {survivors} failed")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
