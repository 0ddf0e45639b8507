// The pool of scratch.h: one short list of unused blocks, oldest first, under one mutex. A list of
// at most 64 entries is searched faster than any cleverer structure could be kept up.
//
// Three kinds of block, told apart by size alone:
//   up to 32 KB    the system's allocator, never kept: it is quick enough
//   below 2 MB     multiples of 64 KB from the system's allocator, kept
//   from 2 MB      multiples of 2 MB, aligned to 2 MB, mapped with a wish for large pages, kept
#include "scratch.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fused_lstm::scratch {
namespace {

constexpr size_t kSmallest = size_t{32} << 10;
constexpr size_t kStep = size_t{64} << 10;
constexpr size_t kLargePage = size_t{2} << 20;
constexpr size_t kMostBlocks = 64;
constexpr size_t kMostByDefault = size_t{2} << 30;

size_t round_up(size_t bytes, size_t step) { return (bytes + step - 1) / step * step; }

size_t block_bytes(size_t bytes) {
  if (bytes <= kSmallest) return std::max<size_t>(bytes, 1);
  // Half a large page and more is worth a whole one.
  return round_up(bytes, bytes > kLargePage / 2 ? kLargePage : kStep);
}

#if defined(__linux__)

// Null when the system refuses.
void* map_large(size_t bytes) noexcept {
  const size_t mapped = bytes + kLargePage;
  void* const start =
      mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(start);
  char* const aligned = reinterpret_cast<char*>(
      round_up(reinterpret_cast<uintptr_t>(begin), static_cast<uintptr_t>(kLargePage)));
  if (aligned != begin) munmap(begin, static_cast<size_t>(aligned - begin));
  char* const end = aligned + bytes;
  if (end != begin + mapped) munmap(end, static_cast<size_t>(begin + mapped - end));
  madvise(aligned, bytes, MADV_HUGEPAGE);  // a wish: without it small pages serve as well
  return aligned;
}

void unmap_large(void* data, size_t bytes) noexcept { munmap(data, bytes); }

void wish_large_pages(void* data, size_t bytes) noexcept {
  const uintptr_t begin =
      round_up(reinterpret_cast<uintptr_t>(data), static_cast<uintptr_t>(kLargePage));
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kLargePage * kLargePage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

#else

void wish_large_pages(void*, size_t) noexcept {}

void* map_large(size_t bytes) noexcept {
  return ::operator new(bytes, std::align_val_t{kLargePage}, std::nothrow);
}

void unmap_large(void* data, size_t) noexcept {
  ::operator delete(data, std::align_val_t{kLargePage});
}

#endif

constexpr std::align_val_t small_alignment(size_t bytes) {
  return std::align_val_t{bytes <= kSmallest ? size_t{64} : size_t{4096}};
}

void* allocate(size_t bytes) noexcept {
  if (bytes >= kLargePage) return map_large(bytes);
  return ::operator new(bytes, small_alignment(bytes), std::nothrow);
}

void deallocate(Block block) noexcept {
  if (block.bytes >= kLargePage) {
    unmap_large(block.data, block.bytes);
  } else {
    ::operator delete(block.data, small_alignment(block.bytes));
  }
}

size_t default_limit() {
#if defined(_SC_PHYS_PAGES) && defined(_SC_PAGESIZE)
  const int64_t pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) {
    return std::min(static_cast<size_t>(pages) / 8 * static_cast<size_t>(page), kMostByDefault);
  }
#endif
  return kMostByDefault / 4;
}

struct Pool {
  std::mutex mutex;
  std::array<Block, kMostBlocks> blocks;  // the first `count`, oldest first
  size_t count = 0;
  size_t bytes = 0;
  size_t limit = default_limit();

  Block take(size_t index) noexcept {
    const Block block = blocks[index];
    std::copy(blocks.begin() + index + 1, blocks.begin() + count, blocks.begin() + index);
    --count;
    bytes -= block.bytes;
    return block;
  }

  // Gives the oldest blocks back until `room` more bytes, in one more block, are within the limits.
  void make_room(size_t room) noexcept {
    while (count > 0 && (count == kMostBlocks || bytes + room > limit)) deallocate(take(0));
  }
};

// Never destroyed: a tensor may give its block back after static destructors have run.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

}  // namespace

void prefer_large_pages(void* data, size_t bytes) noexcept {
  if (bytes >= 2 * kLargePage) wish_large_pages(data, bytes);
}

Block acquire(size_t bytes) {
  const size_t wanted = block_bytes(bytes);
  if (wanted > kSmallest) {
    Pool& p = pool();
    const std::lock_guard<std::mutex> lock(p.mutex);
    size_t best = p.count;
    for (size_t i = p.count;
         i-- > 0;) {  // the youngest of the smallest that fit: its cache is warm
      const size_t size = p.blocks[i].bytes;
      if (size < wanted || size > 2 * wanted) continue;
      if (best == p.count || size < p.blocks[best].bytes) best = i;
    }
    if (best != p.count) return p.take(best);
  }
  void* data = allocate(wanted);
  if (data == nullptr && empty_cache() > 0) data = allocate(wanted);
  if (data == nullptr) {
    throw std::runtime_error("scratch memory: the system refused " + std::to_string(wanted) +
                             " bytes");
  }
  return {data, wanted};
}

void release(Block block) noexcept {
  if (block.data == nullptr) return;
  if (block.bytes > kSmallest) {
    Pool& p = pool();
    const std::lock_guard<std::mutex> lock(p.mutex);
    if (block.bytes <= p.limit) {
      p.make_room(block.bytes);
      p.blocks[p.count++] = block;
      p.bytes += block.bytes;
      return;
    }
  }
  deallocate(block);
}

size_t empty_cache() noexcept {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  const size_t given_back = p.bytes;
  while (p.count > 0) deallocate(p.take(p.count - 1));
  return given_back;
}

size_t cached_bytes() noexcept {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  return p.bytes;
}

size_t limit() noexcept {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  return p.limit;
}

void set_limit(size_t bytes) noexcept {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  p.limit = bytes;
  while (p.bytes > p.limit) deallocate(p.take(0));
}

void before_fork() noexcept { pool().mutex.lock(); }

void after_fork_in_parent() noexcept { pool().mutex.unlock(); }

void after_fork_in_child() noexcept {
  // Without this the parent would copy each page it writes for as long as the child lives.
  Pool& p = pool();
  while (p.count > 0) deallocate(p.take(p.count - 1));
  p.mutex.unlock();
}

}  // namespace fused_lstm::scratch
