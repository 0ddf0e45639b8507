// The engine of the stand-in: fibres, the scheduler of a grid, barriers, and what it reports.
//
//     launch --> Grid --> Cluster --> Block (shared memory, barrier) --> Warp --> Fibre
//
// (a fibre is a thread; a cluster is one block, unless the launch asks for more.)
//
// Everything runs on the one OS thread that calls launch. A fibre runs until it reaches a call that
// waits for others; then the scheduler picks the next fibre of the whole grid with a seeded
// generator. So a schedule is a function of the seed, and a failure repeats exactly. The scheduler
// stays with one warp for a while, and mostly within one block: warps that run far ahead of each
// other are what reveals a missing barrier. How many blocks are under way at once is chance too,
// unless the launch is cooperative: then all are, or it is refused. A thread that polls lets others
// run, and a clock goes on with each poll.
//
// Reported, as simt::Error thrown from launch: no fibre can move, or all that can only poll
// (deadlock); threads of a block at two different barriers, or gone while others wait (divergence);
// shared memory of a block that has returned, reached from its cluster; a write past the end of
// dynamic shared memory; a stack overflow; a launch that CUDA would refuse. Shared memory begins as
// all ones, NaN in every floating-point type, so that reading what nobody wrote shows in the
// results.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace simt {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Options {
  uint64_t seed = 1;              // chooses the schedule
  size_t stack_bytes = 64 << 10;  // of one fibre
  size_t shared_limit = 232448;   // bytes of shared memory a block may have: sm_90's
  int64_t refuse_launch = -1;     // n >= 0: CUDA refuses the n-th launch from now on
  size_t coresident = 132;        // blocks of a cooperative launch; CUDA refuses one with more
  int64_t late_block = -1;        // n >= 0: block n starts when all others have returned
  void (*around_kernel)(bool entered) = nullptr;  // called before and after each kernel
};
inline Options options;

struct Site {  // where in the source a barrier stands
  const char* file;
  int line;
  bool operator==(const Site& other) const {
    return line == other.line && std::strcmp(file, other.file) == 0;
  }
  std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

struct Block;
struct Cluster;
struct Fibre;
struct Grid;

// Fibres that wait for each other: the barrier of a block, or a collective of a warp.
struct Meeting {
  const char* what = "";
  Site site{"", 0};
  unsigned mask = 0;  // collectives only
  std::vector<Fibre*> present;
};

struct Warp {
  std::vector<Fibre*> runnable;
  std::vector<std::unique_ptr<Meeting>> open;  // one for every lane mask in flight
};

struct AsyncCopy {
  void* to;
  const void* from;
  size_t bytes;
  unsigned group;
};

// A stack outlives its fibre: the next fibre that gets it goes on in the endless loop of
// fibre_main, which costs no system call. Below the stack proper lies as much again, so that an
// overflow is noticed at the next switch before it hurts anybody.
struct Stack {
  explicit Stack(size_t bytes) : size(bytes), memory(new char[2 * bytes]) {}
  size_t size;
  std::unique_ptr<char[]> memory;  // untouched pages cost nothing
  jmp_buf here;
  bool entered = false;
};

struct Fibre {
  Block* block = nullptr;
  unsigned id = 0;
  bool done = false, polling = false;
  const Meeting* waiting_in = nullptr;
  void* argument = nullptr;  // what this lane brings to a collective
  std::unique_ptr<Stack> stack;
  std::vector<AsyncCopy> copies;
  unsigned copy_group = 0;
  unsigned cluster_arrivals = 0, cluster_waits = 0;
};

struct Block {
  Grid* grid;
  Cluster* cluster;
  unsigned rank;  // in its cluster
  dim3 index;
  std::vector<Fibre> fibres;
  std::vector<Warp> warps;
  unsigned done = 0;
  Meeting barrier;
  std::vector<unsigned char> memory;  // dynamic shared memory, then a fence
  unsigned char* shared = nullptr;
};

// The barrier of a cluster has two halves. Its phase counts how often all threads have arrived.
struct Cluster {
  std::vector<Block*> blocks;
  size_t arrived = 0;
  unsigned phase = 0;
  Meeting barrier;  // those that wait for the next phase
  size_t threads() const { return blocks.size() * blocks[0]->fibres.size(); }
};

struct Launch {
  dim3 grid, block;
  size_t shared = 0;
  unsigned cluster = 1;  // blocks of a cluster, neighbours in x
  bool cooperative = false;
};

constexpr size_t kFence = 64;
constexpr size_t kResident = 64;      // clusters under way at once, at most
constexpr size_t kFruitless = 20000;  // polls without anything that somebody could wait for
constexpr uint64_t kPollTime = 1000;  // nanoseconds that the clock goes on with each

inline Fibre* current = nullptr;  // the fibre that runs
inline jmp_buf scheduler;         // where resume() was called
inline std::vector<std::unique_ptr<Stack>> idle_stacks;
inline uint64_t clock_now = 0;  // nanoseconds

struct Grid {
  Launch launch;
  std::function<void()> kernel;
  uint64_t random_state = 0;
  std::vector<unsigned> waiting;  // clusters that have not started, in random order
  std::vector<std::unique_ptr<Block>> alive;
  std::vector<std::unique_ptr<Block>> returned;  // of clusters, whose other blocks may reach there
  std::vector<std::unique_ptr<Cluster>> clusters;
  size_t fruitless = 0;
  Warp* favourite = nullptr;
  Block* favourite_block = nullptr;
  std::string error;

  size_t random(size_t n) {  // xorshift*; 0 .. n-1
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return static_cast<size_t>((random_state * 0x2545F4914F6CDD1Dull) >> 33) % n;
  }
  void run();

 private:
  void start_cluster();
  void start_block(unsigned i, Cluster& cluster);
  Fibre* choose();
  void choose_warp();
  void finish(Block& block);
  std::string who_waits() const;
};

inline void Grid::start_cluster() {
  const unsigned first = waiting.back() * launch.cluster;
  waiting.pop_back();
  clusters.push_back(std::make_unique<Cluster>());
  for (unsigned rank = 0; rank < launch.cluster; ++rank) {
    start_block(first + rank, *clusters.back());
  }
}

inline void Grid::start_block(unsigned i, Cluster& cluster) {
  alive.push_back(std::make_unique<Block>());
  Block& block = *alive.back();
  block.grid = this;
  block.cluster = &cluster;
  block.rank = static_cast<unsigned>(cluster.blocks.size());
  cluster.blocks.push_back(&block);
  block.index =
      dim3(i % launch.grid.x, i / launch.grid.x % launch.grid.y, i / launch.grid.x / launch.grid.y);
  block.memory.assign(launch.shared + 128 + kFence, 0xff);
  const auto start = reinterpret_cast<uintptr_t>(block.memory.data());
  block.shared = reinterpret_cast<unsigned char*>((start + 127) & ~uintptr_t{127});
  block.fibres = std::vector<Fibre>(launch.block.volume());
  block.warps = std::vector<Warp>((block.fibres.size() + 31) / 32);
  for (unsigned t = 0; t < block.fibres.size(); ++t) {
    block.fibres[t].block = &block;
    block.fibres[t].id = t;
    block.warps[t / 32].runnable.push_back(&block.fibres[t]);
  }
}

// Another warp of the same block seven times of eight, otherwise any warp that can move.
inline void Grid::choose_warp() {
  favourite = nullptr;
  const bool stay = favourite_block != nullptr && random(8) != 0;
  for (int attempt = stay ? 0 : 1; attempt < 2 && favourite == nullptr; ++attempt) {
    std::vector<std::pair<Block*, Warp*>> choice;
    for (const auto& block : alive) {
      if (attempt == 0 && block.get() != favourite_block) continue;
      for (Warp& warp : block->warps) {
        if (!warp.runnable.empty()) choice.push_back({block.get(), &warp});
      }
    }
    if (choice.empty()) continue;
    std::tie(favourite_block, favourite) = choice[random(choice.size())];
  }
}

inline Fibre* Grid::choose() {
  if (!error.empty() || alive.empty()) return nullptr;
  if (favourite == nullptr || favourite->runnable.empty() || random(256) == 0) choose_warp();
  if (favourite == nullptr) {
    error = "deadlock: every thread waits\n" + who_waits();
    return nullptr;
  }
  if (fruitless > kFruitless) {
    error = "deadlock: every thread waits or polls\n" + who_waits();
    return nullptr;
  }
  Fibre* const fibre = favourite->runnable[random(favourite->runnable.size())];
  if (fibre->polling) favourite = nullptr;  // somebody else may make what it waits for
  return fibre;
}

inline std::string Grid::who_waits() const {
  std::string text;
  for (const auto& block : alive) {
    text +=
        "  block " + std::to_string(block->index.x) + "," + std::to_string(block->index.y) + ":";
    std::string before;
    for (const Fibre& fibre : block->fibres) {
      std::string state = fibre.done ? "returned"
                          : fibre.waiting_in
                              ? fibre.waiting_in->what + (" " + fibre.waiting_in->site.text())
                          : fibre.polling ? "polls"
                                          : "runnable";
      if (state != before) text += " [thread " + std::to_string(fibre.id) + "..: " + state + "]";
      before = std::move(state);
    }
    text += "\n";
  }
  return text;
}

inline void Grid::finish(Block& block) {  // all its threads returned
  for (size_t i = 0; i < kFence; ++i) {
    if (block.shared[launch.shared + i] != 0xff) {
      error = "write past the end of dynamic shared memory";
    }
  }
  if (favourite_block == &block) {
    favourite_block = nullptr;
    favourite = nullptr;
  }
  const auto found = std::find_if(alive.begin(), alive.end(),
                                  [&](const auto& other) { return other.get() == &block; });
  const Cluster& cluster = *block.cluster;
  if (cluster.blocks.size() > 1) returned.push_back(std::move(*found));
  alive.erase(found);
  for (const Block* other : cluster.blocks) {
    if (cluster.blocks.size() > 1 && other->done < other->fibres.size()) return;
  }
  if (!waiting.empty() && (!launch.cooperative || alive.empty())) start_cluster();
}

// ---- fibres ------------------------------------------------------------------------------------

[[noreturn]] inline void fail(const std::string& message) {
  const Block& block = *current->block;
  throw Error("block " + std::to_string(block.index.x) + "," + std::to_string(block.index.y) +
              " thread " + std::to_string(current->id) + ": " + message);
}

inline std::vector<Fibre*>& runnable_like(const Fibre& fibre) {
  return fibre.block->warps[fibre.id / 32].runnable;
}

inline void run_kernel() {
  Fibre& me = *current;
  Block& block = *me.block;
  try {
    block.grid->kernel();
    if (!me.copies.empty()) fail("returned with cp.async still in flight");
    if (!block.barrier.present.empty()) {
      fail("barrier divergence: returned while others wait at " + block.barrier.site.text());
    }
    if (!block.cluster->barrier.present.empty()) {
      fail("barrier divergence: returned while others wait for their cluster");
    }
  } catch (const std::exception& e) {
    if (block.grid->error.empty()) block.grid->error = e.what();
  }
  me.done = true;
  ++block.done;
  block.grid->fruitless = 0;
  auto& list = runnable_like(me);
  list.erase(std::remove(list.begin(), list.end(), &me), list.end());  // absent if it was waiting
}

inline __attribute__((noinline)) void fibre_main() {
  while (true) {
    run_kernel();
    if (_setjmp(current->stack->here) == 0) _longjmp(scheduler, 1);
  }
}

// Back to the scheduler; returns when this fibre is chosen again.
inline __attribute__((noinline)) void leave() {
  Stack& stack = *current->stack;
  char low;  // its address is near the stack pointer
  if (&low < stack.memory.get() + stack.size) {
    fail("stack overflow: raise simt::options.stack_bytes");
  }
  if (_setjmp(stack.here) == 0) _longjmp(scheduler, 1);
}

inline std::unique_ptr<Stack> take_stack() {
  if (idle_stacks.empty()) return std::make_unique<Stack>(options.stack_bytes);
  std::unique_ptr<Stack> stack = std::move(idle_stacks.back());
  idle_stacks.pop_back();
  return stack;
}

inline __attribute__((noinline)) void resume(Fibre& fibre) {
  current = &fibre;
  if (!fibre.stack) fibre.stack = take_stack();
  if (_setjmp(scheduler) != 0) return;
  if (fibre.stack->entered) _longjmp(fibre.stack->here, 1);
  fibre.stack->entered = true;
  ucontext_t first;
  getcontext(&first);
  first.uc_stack.ss_sp = fibre.stack->memory.get();
  first.uc_stack.ss_size = 2 * fibre.stack->size;
  first.uc_link = nullptr;
  makecontext(&first, fibre_main, 0);
  setcontext(&first);
}

inline void Grid::run() {
  size_t under_way = 1 + random(std::min(waiting.size(), kResident));
  if (launch.cooperative) under_way = waiting.size() - (options.late_block >= 0 ? 1 : 0);
  for (; under_way > 0; --under_way) start_cluster();
  while (Fibre* fibre = choose()) {
    fibre->polling = false;
    resume(*fibre);
    if (!fibre->done) continue;
    idle_stacks.push_back(std::move(fibre->stack));
    Block& block = *fibre->block;
    if (block.done == block.fibres.size()) finish(block);
  }
  current = nullptr;
}

// Runs the kernel to its end. False when options.refuse_launch says that CUDA refuses.
template <class... P, class... A>
bool launch(void (*kernel)(P...), const Launch& how, A... arguments) {
  if (options.refuse_launch >= 0 && options.refuse_launch-- == 0) return false;
  if (current != nullptr) throw Error("launch: from within a kernel");
  if (how.shared > options.shared_limit) {
    throw Error("launch: " + std::to_string(how.shared) + " bytes of shared memory, at most " +
                std::to_string(options.shared_limit));
  }
  if (how.block.volume() > 1024 || how.block.volume() == 0 || how.block.z > 64) {
    throw Error("launch: 1 to 1024 threads in a block");
  }
  if (how.grid.volume() == 0) throw Error("launch: empty grid");
  if (how.cluster == 0 || how.cluster > 16 || how.grid.x % how.cluster != 0) {
    throw Error("launch: a cluster is 1 to 16 blocks and divides the grid in x");
  }
  if (how.cooperative && how.grid.volume() > options.coresident) return false;
  if (how.grid.x > 0x7fffffffu || how.grid.y > 65535 || how.grid.z > 65535) {
    throw Error("launch: at most 2^31-1, 65535 and 65535 blocks in x, y and z");
  }
  Grid grid;
  grid.launch = how;
  grid.kernel = [=] { kernel(arguments...); };
  grid.random_state = options.seed * 0x9E3779B97F4A7C15ull + 1;
  grid.waiting.resize(how.grid.volume() / how.cluster);
  for (size_t i = 0; i < grid.waiting.size(); ++i) {
    const size_t other = grid.random(i + 1);
    grid.waiting[i] = grid.waiting[other];
    grid.waiting[other] = static_cast<unsigned>(i);
  }
  if (how.cooperative && options.late_block >= 0) {
    std::iter_swap(grid.waiting.begin(), std::find(grid.waiting.begin(), grid.waiting.end(),
                                                   static_cast<unsigned>(options.late_block)));
  }
  if (options.around_kernel != nullptr) options.around_kernel(true);
  grid.run();
  if (options.around_kernel != nullptr) options.around_kernel(false);
  if (!grid.error.empty()) throw Error(grid.error);
  return true;
}

// ---- meetings ----------------------------------------------------------------------------------

// Joins; the last of `expected` to arrive runs act for all of them and lets them go.
template <class Act>
void meet(Meeting& meeting, size_t expected, Act act) {
  Fibre& me = *current;
  me.block->grid->fruitless = 0;
  meeting.present.push_back(&me);
  if (meeting.present.size() < expected) {
    auto& list = runnable_like(me);
    list.erase(std::find(list.begin(), list.end(), &me));
    me.waiting_in = &meeting;
  } else {
    act(meeting.present);
    for (Fibre* fibre : meeting.present) {
      if (fibre != &me) runnable_like(*fibre).push_back(fibre);
      fibre->waiting_in = nullptr;
    }
    meeting.present.clear();
  }
  leave();  // who goes first after a meeting is chance
}

inline void sync_block(Site site) {
  Block& block = *current->block;
  Meeting& barrier = block.barrier;
  if (barrier.present.empty()) {
    barrier.what = "__syncthreads";
    barrier.site = site;
  }
  if (!(barrier.site == site)) {
    fail("barrier divergence: __syncthreads " + site.text() + " while others wait at " +
         barrier.site.text());
  }
  if (block.done > 0) {
    fail("barrier divergence: __syncthreads " + site.text() + " after " +
         std::to_string(block.done) + " threads returned");
  }
  meet(barrier, block.fibres.size(), [](const std::vector<Fibre*>&) {});
}

// ---- between blocks ----------------------------------------------------------------------------

inline void poll() {  // others run before this fibre is chosen again, if others can
  Grid& grid = *current->block->grid;
  ++grid.fruitless;
  clock_now += kPollTime;
  current->polling = true;
  grid.favourite = nullptr;
  leave();
}
// Another thread may slip in where memory is shared with it.
inline void maybe_leave() {
  if (current->block->grid->random(2) != 0) leave();
}
// A value that somebody may wait for; add: added to what is there, in one piece.
template <class T>
void update(T* at, T value, bool add) {
  maybe_leave();
  current->block->grid->fruitless = 0;
  *at = add ? *at + value : value;
}

inline void cluster_arrive() {
  Fibre& me = *current;
  Cluster& cluster = *me.block->cluster;
  for (const Block* block : cluster.blocks) {
    if (block->done > 0) fail("barrier divergence: arrives while threads of its cluster are gone");
  }
  if (me.cluster_arrivals != me.cluster_waits)
    fail("cluster barrier: arrives twice without a wait");
  me.block->grid->fruitless = 0;
  ++me.cluster_arrivals;
  if (++cluster.arrived < cluster.threads()) return maybe_leave();
  cluster.arrived = 0;
  ++cluster.phase;
  for (Fibre* fibre : cluster.barrier.present) {
    runnable_like(*fibre).push_back(fibre);
    fibre->waiting_in = nullptr;
  }
  cluster.barrier.present.clear();
  leave();
}

inline void cluster_wait(Site site) {
  Fibre& me = *current;
  Cluster& cluster = *me.block->cluster;
  if (++me.cluster_waits != me.cluster_arrivals) fail("cluster barrier: waits without arriving");
  if (me.cluster_arrivals == cluster.phase) return maybe_leave();
  cluster.barrier.what = "cluster barrier";
  cluster.barrier.site = site;
  cluster.barrier.present.push_back(&me);
  auto& list = runnable_like(me);
  list.erase(std::find(list.begin(), list.end(), &me));
  me.waiting_in = &cluster.barrier;
  leave();
}

// Where the same piece of shared memory lies in block `rank` of the cluster.
template <class T>
T* shared_of_rank(T* mine, unsigned rank) {
  const Block& block = *current->block;
  if (rank >= block.cluster->blocks.size()) fail("shared memory: no such block in the cluster");
  const Block& other = *block.cluster->blocks[rank];
  if (other.done > 0) fail("shared memory of a block that has returned");
  return reinterpret_cast<T*>(other.shared +
                              (reinterpret_cast<unsigned char*>(mine) - block.shared));
}

inline uint3 thread_index() {
  const dim3& size = current->block->grid->launch.block;
  const unsigned id = current->id;
  return {id % size.x, id / size.x % size.y, id / size.x / size.y};
}

}  // namespace simt
