// How the blocks of a batch group hand each other the state of a step: through global memory and a
// counter (any number of blocks, all under way at once), or through the shared memory of a cluster.
// The state lies twice, by the parity of the step that reads it:
//
//   wait(s)  |  load(s, ...)  |  publish(s, ...) for step s + 1  |  arrive()
//
// A block writes the copy for step s + 1 while others may still read that for step s; the copy for
// step s was last read in step s - 2, and who passed wait(s) knows that all have left that step.
#pragma once

#include "device.cuh"
#include "sliced_tiles.h"

namespace fused_lstm {
namespace cuda {
namespace sliced {

// What the host hands in; a group's own words are found by its number.
struct Meeting {
  uint32_t* words;  // [groups][2][exchange_words], 16-byte aligned
  uint32_t exchange_words;
  uint32_t* counters;  // [groups][kCounterWords], never cleared within a call
  uint32_t* gave_up;   // set when a block waited in vain: the others follow
  uint32_t* fault;     // ? the same for the host: outlives the call
  uint64_t patience;   // nanoseconds
};

// Each step of each block adds one to the group's counter, so step s may begin at blocks * s. The
// number may wrap: what is compared is a difference.
class GridExchange {
 public:
  static constexpr bool kCluster = false;
  DEVICE GridExchange(const Meeting& meeting, int group, uint32_t* /*shared*/, uint32_t* flag)
      : meeting_(meeting),
        words_(meeting.words + int64_t{group} * 2 * meeting.exchange_words),
        counter_(meeting.counters + group * kCounterWords),
        flag_(flag) {}

  DEVICE void begin() {}
  // False where another block was waited for in vain; for all threads alike.
  DEVICE bool wait(int s) {
    if (threadIdx.x == 0) *flag_ = reached(gridDim.x * static_cast<uint32_t>(s)) ? 1 : 0;
    __syncthreads();
    return *flag_ != 0;
  }
  DEVICE uint4 load(int s, int at) const {
    return device::load_shared_by_blocks(reinterpret_cast<const uint4*>(copy(s)) + at);
  }
  DEVICE void publish(int s, int at, uint32_t word) { copy(s + 1)[at] = word; }
  DEVICE void arrive() {
    __syncthreads();
    if (threadIdx.x == 0) device::add_release(counter_, 1);
  }
  DEVICE void finish() {}

 private:
  DEVICE uint32_t* copy(int s) const { return words_ + (s & 1) * int64_t{meeting_.exchange_words}; }
  DEVICE bool reached(uint32_t target) const {
    uint64_t begin = 0;
    for (unsigned look = 1; int32_t(device::load_acquire(counter_) - target) < 0; ++look) {
      device::pause();
      if (look % 64 != 0) continue;
      if (device::load_acquire(meeting_.gave_up) != 0) return false;
      const uint64_t now = device::nanoseconds();
      if (begin == 0) begin = now;
      if (now - begin < meeting_.patience) continue;
      device::store_for_all(meeting_.gave_up, 1);
      if (meeting_.fault != nullptr) device::store_for_all(meeting_.fault, 1);
      return false;
    }
    return true;
  }

  const Meeting& meeting_;
  uint32_t* words_;
  uint32_t* counter_;
  uint32_t* flag_;  // in shared memory
};

// The blocks are a cluster, each with both copies in its own shared memory. The hardware runs all
// of them or none, so waiting needs no clock. Between two launches the state lies in global memory.
class ClusterExchange {
 public:
  static constexpr bool kCluster = true;
  DEVICE ClusterExchange(const Meeting& meeting, int group, uint32_t* shared, uint32_t* /*flag*/)
      : kept_(meeting.words + int64_t{group} * 2 * meeting.exchange_words),
        shared_(shared),
        exchange_words_(meeting.exchange_words) {}

  DEVICE void begin() {
    for (uint32_t i = threadIdx.x; i < 2 * exchange_words_; i += blockDim.x) shared_[i] = kept_[i];
    device::cluster_arrive();
  }
  DEVICE bool wait(int /*s*/) {
    device::cluster_wait();
    return true;
  }
  DEVICE uint4 load(int s, int at) const { return reinterpret_cast<const uint4*>(copy(s))[at]; }
  DEVICE void publish(int s, int at, uint32_t word) {
    for (unsigned rank = 0; rank < gridDim.x; ++rank) {
      device::store_in_cluster(copy(s + 1) + at, rank, word);
    }
  }
  DEVICE void arrive() { device::cluster_arrive(); }
  // Nobody may leave while others still write to it.
  DEVICE void finish() {
    device::cluster_wait();
    if (blockIdx.x != 0) return;
    for (uint32_t i = threadIdx.x; i < 2 * exchange_words_; i += blockDim.x) kept_[i] = shared_[i];
  }

 private:
  DEVICE uint32_t* copy(int s) const { return shared_ + (s & 1) * exchange_words_; }

  uint32_t* kept_;
  uint32_t* shared_;
  uint32_t exchange_words_;
};

}  // namespace sliced
}  // namespace cuda
}  // namespace fused_lstm
