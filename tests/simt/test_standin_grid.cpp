// The stand-in tested by itself where blocks meet: cooperative launches, clusters, shared memory of
// a neighbour, the clock; and that each mistake it claims to catch is caught.
#include <algorithm>
#include <string>
#include <vector>

#include "device.cuh"
#include "suite.h"

namespace {

using namespace fused_lstm::device;

template <class Call>
std::string error_of(Call call) {
  try {
    call();
  } catch (const simt::Error& e) {
    return e.what();
  }
  return "";
}

constexpr int kRounds = 4, kThreads = 64;

// In each round every block writes a number and then adds up what all of them wrote.
struct Rounds {
  uint32_t* counter;
  uint4* numbers;  // [2][blocks]
  uint32_t* sums;  // [blocks][kRounds]
  bool arrives, waits, two_buffers;
};

__global__ void meet_on_counter(Rounds call) {
  const unsigned blocks = gridDim.x, me = blockIdx.x;
  for (unsigned round = 0; round < kRounds; ++round) {
    uint4* const numbers = call.numbers + (call.two_buffers ? round % 2 * blocks : 0);
    if (threadIdx.x == kThreads - 1) numbers[me].x = 100 * round + me;
    __syncthreads();
    if (threadIdx.x == 0) {
      if (call.arrives || me != 1) add_release(call.counter, 1);
      while (call.waits && load_acquire(call.counter) < blocks * (round + 1)) pause();
    }
    __syncthreads();
    if (threadIdx.x == 40) {
      uint32_t sum = 0;
      for (unsigned i = 0; i < blocks; ++i) sum += load_shared_by_blocks(numbers + i).x;
      call.sums[me * kRounds + round] = sum;
    }
  }
}

// Whether all sums are right; throws what the stand-in throws.
bool rounds_match(unsigned blocks, bool arrives = true, bool waits = true, bool two_buffers = true,
                  bool cooperative = true) {
  uint32_t counter = 0;
  std::vector<uint4> numbers(2 * blocks, uint4{7, 7, 7, 7});
  std::vector<uint32_t> sums(blocks * kRounds);
  simt::Launch how{blocks, kThreads};
  how.cooperative = cooperative;
  simt::launch(meet_on_counter, how,
               Rounds{&counter, numbers.data(), sums.data(), arrives, waits, two_buffers});
  bool good = true;
  for (unsigned i = 0; i < sums.size(); ++i) {
    good &= sums[i] == 100 * (i % kRounds) * blocks + blocks * (blocks - 1) / 2;
  }
  return good;
}

// Each block of a cluster puts a number into all of them.
__global__ void push_in_cluster(uint32_t* sums, int ranks, bool meet) {
  auto* const numbers = dynamic_shared<uint32_t>();  // [2][ranks]
  const unsigned me = blockIdx.x % unsigned(ranks);
  if (meet) cluster_arrive();
  for (unsigned round = 0; round < kRounds; ++round) {
    if (meet) cluster_wait();
    uint32_t* const at = numbers + round % 2 * ranks + me;
    if (threadIdx.x < unsigned(ranks)) store_in_cluster(at, threadIdx.x, 10 * round + me);
    if (meet) cluster_arrive();
    if (meet) cluster_wait();
    if (threadIdx.x == 0) {
      uint32_t sum = 0;
      for (int i = 0; i < ranks; ++i) sum += numbers[round % 2 * ranks + i];
      sums[blockIdx.x * kRounds + round] = sum;
    }
    if (meet) cluster_arrive();
  }
  if (meet) cluster_wait();
}

bool pushes_match(unsigned clusters, int ranks, bool meet = true) {
  std::vector<uint32_t> sums(clusters * ranks * kRounds);
  simt::Launch how{clusters * ranks, kThreads, size_t(8) * ranks};
  how.cluster = ranks;
  simt::launch(push_in_cluster, how, sums.data(), ranks, meet);
  bool good = true;
  for (size_t i = 0; i < sums.size(); ++i) {
    good &= sums[i] == 10 * (i % kRounds) * ranks + ranks * (ranks - 1) / 2;
  }
  return good;
}

__global__ void arrive_twice(int) {
  cluster_arrive();
  cluster_arrive();
}
__global__ void wait_first(int) { cluster_wait(); }
__global__ void one_block_returns(int) {
  if (blockIdx.x == 1) return;
  cluster_arrive();
  cluster_wait();
}
__global__ void into_a_block_that_returned(int) {
  cluster_arrive();
  cluster_wait();
  if (blockIdx.x == 0) {
    for (int i = 0; i < 100; ++i) pause();
    store_in_cluster(dynamic_shared<uint32_t>(), 1, 1);
  }
}
__global__ void no_such_block(int) { store_in_cluster(dynamic_shared<uint32_t>(), 2, 1); }
__global__ void nothing(int) {}
__global__ void wait_a_while(uint64_t* waited) {
  const uint64_t begin = nanoseconds();
  while (nanoseconds() - begin < 50000) pause();
  *waited = nanoseconds() - begin;
}

// A block that starts when the others have returned is what a device without room would give.
bool late_block_is_last() {
  uint32_t counter = 0, sums[3 * kRounds] = {};
  uint4 numbers[6] = {};
  simt::options.late_block = 2;
  simt::Launch how{3, kThreads};
  how.cooperative = true;
  simt::launch(meet_on_counter, how, Rounds{&counter, numbers, sums, true, false, true});
  simt::options.late_block = -1;
  return sums[2 * kRounds] == 200 + 201 + 2;  // it found the others' last numbers
}

void check_meetings(Suite& suite) {
  const auto check = [&](const std::string& what, auto holds) {
    suite.begin(what);
    suite.expect(holds(), "does not hold");
    suite.end();
  };
  int no_wait = 0, one_buffer = 0, no_room = 0, not_pushed = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    simt::options.seed = seed;
    check("blocks meet on a counter", [] { return rounds_match(5); });
    check("blocks of a cluster push to each other", [] { return pushes_match(3, 4); });
    check("a cluster of 16", [] { return pushes_match(1, 16); });
    no_wait += !rounds_match(5, true, false);
    one_buffer += !rounds_match(5, true, true, false);
    no_room += !error_of([] { rounds_match(5, true, true, true, false); }).empty();
    bool right = false;
    const std::string error = error_of([&] { right = pushes_match(2, 4, false); });
    not_pushed += !right || !error.empty();
  }
  check("nobody waits: " + std::to_string(no_wait), [=] { return no_wait == 20; });
  check("one buffer for two rounds: " + std::to_string(one_buffer),
        [=] { return one_buffer >= 10; });
  check("not all at once: " + std::to_string(no_room), [=] { return no_room >= 5; });
  check("no cluster barrier: " + std::to_string(not_pushed), [=] { return not_pushed >= 15; });
  check("a late block", late_block_is_last);
  check("the clock goes on while a thread polls", [] {
    uint64_t waited = 0;
    simt::launch(wait_a_while, {1, 1}, &waited);
    return waited >= 50000 && waited < 60000;
  });
  check("a cooperative launch that does not fit is refused", [] {
    simt::options.coresident = 4;
    simt::Launch how{5, 32};
    how.cooperative = true;
    const bool refused = !simt::launch(nothing, how, 0);
    how.grid = 4;
    const bool taken = simt::launch(nothing, how, 0);
    simt::options.coresident = 132;
    return refused && taken;
  });
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_standin_grid", nullptr);
  check_meetings(suite);
  const auto refused = [&](const std::string& what, auto call, const char* want) {
    suite.begin(what);
    const std::string got = error_of(call);
    suite.expect(got.find(want) != std::string::npos,
                 "expected " + std::string(want) + ", got '" + got + "'");
    suite.end();
  };
  const auto in_cluster = [](auto kernel, unsigned blocks, unsigned cluster) {
    return [=] {
      simt::Launch how{blocks, 32, 64};
      how.cluster = cluster;
      simt::launch(kernel, how, 0);
    };
  };
  refused("a block that never arrives", [] { rounds_match(3, false); }, "waits or polls");
  refused("arriving twice", in_cluster(arrive_twice, 2, 2), "arrives twice");
  refused("waiting first", in_cluster(wait_first, 2, 2), "waits without arriving");
  refused("one block returns", in_cluster(one_block_returns, 2, 2), "barrier");
  refused("a block that has returned", in_cluster(into_a_block_that_returned, 2, 2),
          "block that has returned");
  refused("a rank that is none", in_cluster(no_such_block, 2, 2), "no such block");
  refused("a grid that is no whole cluster", in_cluster(nothing, 3, 2), "divides the grid");
  refused("a cluster of 17", in_cluster(nothing, 17, 17), "divides the grid");
  suite.begin("work goes on after errors");
  suite.expect(rounds_match(4) && pushes_match(2, 2), "does not hold");
  suite.end();
  return suite.finish();
}
