// A pool of memory for what lives from one call to the next: the workspace of a call, and the
// reserve that forward leaves for backward. Fresh pages were the largest single cost on long
// sequences, so blocks are kept, and large ones lie on 2 MB pages where the system has them.
//
// The pool never holds more than its limit of memory that nobody uses: beyond it the block kept
// longest goes back to the system. The limit is an eighth of the machine's memory, at most 2 GB,
// until Python sets another (FUSED_LSTM_CACHE_MB). Any thread may call any function. A forked child
// starts with an empty pool. Results (y, h_n, c_n, gradients) are torch's own memory, never the
// pool's.
#pragma once

#include <cstddef>

namespace fused_lstm::scratch {

struct Block {
  void* data = nullptr;  // 64-byte aligned, contents undefined
  size_t bytes = 0;      // at least what was asked for
};

// Throws std::runtime_error when the system has no such memory.
Block acquire(size_t bytes);
void release(Block block) noexcept;

// Asks for large pages inside memory that somebody else owns and nobody has written yet: a page
// fault for each 4 KB of a large result costs as much as computing it on long sequences.
void prefer_large_pages(void* data, size_t bytes) noexcept;

size_t empty_cache() noexcept;   // gives all unused memory back; the bytes given back
size_t cached_bytes() noexcept;  // unused bytes that the pool holds now
size_t limit() noexcept;
void set_limit(size_t bytes) noexcept;

// A block for the length of a scope.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : block_(acquire(bytes)) {}
  ~Buffer() { release(block_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* data() const { return block_.data; }

 private:
  Block block_;
};

// Called around fork(): before it in the parent, after it in the parent, after it in the child.
void before_fork() noexcept;
void after_fork_in_parent() noexcept;
void after_fork_in_child() noexcept;

}  // namespace fused_lstm::scratch
