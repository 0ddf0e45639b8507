// What the lanes of a warp do together (shuffles, mma, ldmatrix), and asynchronous copies. Each
// twin moves what PTX says that lane's registers hold; none takes a matrix as a whole.
#pragma once

#include "simt_engine.h"

namespace simt {

inline unsigned lane() { return current->id & 31; }

// The open meeting of this lane mask in the fibre's warp, checked for divergence.
inline Meeting& open_meeting(const char* what, unsigned mask) {
  Block& block = *current->block;
  Warp& warp = block.warps[current->id / 32];
  const unsigned first = current->id & ~31u;
  if ((mask >> lane() & 1) == 0) fail(std::string(what) + ": this lane is not in its own mask");
  for (unsigned l = 0; l < 32; ++l) {
    if ((mask >> l & 1) != 0 && block.fibres[first + l].done) {
      fail(std::string(what) + ": lane " + std::to_string(l) + " of the mask has returned");
    }
  }
  auto found = std::find_if(warp.open.begin(), warp.open.end(),
                            [&](const auto& meeting) { return meeting->mask == mask; });
  if (found == warp.open.end()) {
    found = warp.open.insert(found, std::make_unique<Meeting>());
    (*found)->mask = mask;
  }
  Meeting& meeting = **found;
  if (meeting.present.empty()) meeting.what = what;
  if (std::strcmp(meeting.what, what) != 0) {
    fail(std::string("warp divergence: this lane is in ") + what + ", others in " + meeting.what);
  }
  return meeting;
}

// All lanes of `mask` bring an argument; act gets the 32 pointers, null where no lane takes part.
template <class Argument, class Act>
void collective(const char* what, unsigned mask, Argument& argument, Act act) {
  Fibre& me = *current;
  const size_t lanes = std::min<size_t>(32, me.block->fibres.size() - (me.id & ~31u));
  if (lanes < 32) mask &= (1u << lanes) - 1;
  Meeting& meeting = open_meeting(what, mask);
  me.argument = &argument;
  const auto count = static_cast<size_t>(__builtin_popcount(mask));
  meet(meeting, count, [&](const std::vector<Fibre*>& present) {
    Argument* all[32] = {};
    for (Fibre* fibre : present) all[fibre->id & 31] = static_cast<Argument*>(fibre->argument);
    act(all);
  });
}

inline void sync_warp(unsigned mask) {
  char nothing = 0;
  collective("__syncwarp", mask, nothing, [](char**) {});
}

template <class T>
T exchange(const char* what, unsigned mask, T value, unsigned source) {
  struct Lane {
    T in, out;
    unsigned source;
  } mine{value, value, source};
  collective(what, mask, mine, [](Lane** all) {
    for (int l = 0; l < 32; ++l) {
      if (all[l] && all[l]->source < 32 && all[all[l]->source]) {
        all[l]->out = all[all[l]->source]->in;
      }
    }
  });
  return mine.out;
}

// ---- tensor cores: the fragments of the PTX manual, g = lane / 4, t = lane % 4
// -------------------
//   C, D 16x8:    c0 c1 at row g, columns 2t and 2t+1; c2 c3 eight rows below.
//   16 bit, k=16: A a0..a7 at row g + 8 * (i/2 % 2), column 2t + i%2 + 8 * (i/4)
//                 B b0..b3 at row 2t + i%2 + 8 * (i/2), column g
//   tf32, k=8:    A a0..a3 at row g + 8 * (i%2), column t + 4 * (i/2)
//                 B b0 b1  at row t + 4i, column g
// One mma adds its products and C in double and rounds once. The hardware keeps fewer bits, so
// there it agrees to about 1e-6 relative.

struct MmaLane {
  const uint32_t *a, *b;
  float* d;
};

template <int K, class ElementA, class ElementB>
void mma(const char* what, float* d, const uint32_t* a, const uint32_t* b, ElementA element_a,
         ElementB element_b) {
  MmaLane mine{a, b, d};
  collective(what, ~0u, mine, [&](MmaLane** all) {
    double left[16][K], right[K][8];
    for (int l = 0; l < 32; ++l) {
      if (!all[l]) fail(std::string(what) + ": needs all 32 lanes");
      element_a(all[l]->a, l / 4, l % 4, left);
      element_b(all[l]->b, l / 4, l % 4, right);
    }
    for (int l = 0; l < 32; ++l) {
      for (int i = 0; i < 4; ++i) {
        const int row = l / 4 + 8 * (i / 2), column = 2 * (l % 4) + i % 2;
        double sum = all[l]->d[i];
        for (int k = 0; k < K; ++k) sum += left[row][k] * right[k][column];
        all[l]->d[i] = static_cast<float>(sum);
      }
    }
  });
}

// Element i of a lane's registers, two to a register, through to_float of its type.
template <class T, class ToFloat>
double half_of(const uint32_t* registers, int i, ToFloat to_float) {
  T value;
  std::memcpy(&value, reinterpret_cast<const char*>(registers) + 2 * i, 2);
  return to_float(value);
}

template <class T, class ToFloat>
void mma_m16n8k16(const char* what, float* d, const uint32_t* a, const uint32_t* b,
                  ToFloat to_float) {
  mma<16>(
      what, d, a, b,
      [&](const uint32_t* r, int g, int t, double (*m)[16]) {
        for (int i = 0; i < 8; ++i) {
          m[g + 8 * (i / 2 % 2)][2 * t + i % 2 + 8 * (i / 4)] = half_of<T>(r, i, to_float);
        }
      },
      [&](const uint32_t* r, int g, int t, double (*m)[8]) {
        for (int i = 0; i < 4; ++i) m[2 * t + i % 2 + 8 * (i / 2)][g] = half_of<T>(r, i, to_float);
      });
}

inline double tf32_of(uint32_t bits) {  // the tensor core ignores the low 13 bits
  bits &= ~0x1fffu;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void mma_m16n8k8_tf32(float* d, const uint32_t* a, const uint32_t* b) {
  mma<8>(
      "mma tf32", d, a, b,
      [](const uint32_t* r, int g, int t, double (*m)[8]) {
        for (int i = 0; i < 4; ++i) m[g + 8 * (i % 2)][t + 4 * (i / 2)] = tf32_of(r[i]);
      },
      [](const uint32_t* r, int g, int t, double (*m)[8]) {
        for (int i = 0; i < 2; ++i) m[t + 4 * i][g] = tf32_of(r[i]);
      });
}

// Lane 8m + r brings the address of row r (16 bytes) of matrix m; afterwards register m of a lane
// holds columns 2t and 2t+1 of row g of matrix m. Lanes beyond 8N may bring any valid address.
template <int N>
void ldmatrix(uint32_t (&out)[N], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("ldmatrix: a row must be 16-byte aligned");
  struct Lane {
    const void* row;
    uint32_t* out;
  } mine{row, out};
  collective("ldmatrix", ~0u, mine, [](Lane** all) {
    for (int l = 0; l < 32; ++l) {
      if (!all[l]) fail("ldmatrix: needs all 32 lanes");
      for (int m = 0; m < N; ++m) {
        const char* from = static_cast<const char*>(all[8 * m + l / 4]->row);
        std::memcpy(&all[l]->out[m], from + 4 * (l % 4), 4);
      }
    }
  });
}

// ---- asynchronous copies: each lands at once or only at its wait, by chance
// ----------------------

inline void land(const AsyncCopy& copy) { std::memcpy(copy.to, copy.from, copy.bytes); }

inline void async_copy(void* to, const void* from, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 ||
      reinterpret_cast<uintptr_t>(from) % bytes != 0) {
    fail("cp.async: both addresses must be aligned to the size copied");
  }
  const AsyncCopy copy{to, from, bytes, current->copy_group};
  if (current->block->grid->random(2) != 0) {
    land(copy);
  } else {
    current->copies.push_back(copy);
  }
}

inline void async_commit() { ++current->copy_group; }

inline void async_wait(unsigned groups_left) {
  std::vector<AsyncCopy> kept;
  for (const AsyncCopy& copy : current->copies) {
    if (copy.group + groups_left < current->copy_group) {
      land(copy);
    } else {
      kept.push_back(copy);
    }
  }
  current->copies.swap(kept);
}

}  // namespace simt
