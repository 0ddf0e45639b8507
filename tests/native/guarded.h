// Memory that notices a kernel which touches what is not its own: the block ends (or begins) where
// an unreadable page lies, and the slack on the other side holds a pattern that is checked. The
// pattern is also what fresh memory holds: all ones, a NaN in every dtype.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

class Guarded {
 public:
  static constexpr unsigned char kPattern = 0xff;

  // align: the least alignment of data(). at_start: the unreadable page comes before, not after.
  Guarded(size_t bytes, size_t align, bool at_start = false) : bytes_(bytes) {
    span_ = (bytes + kPage) / kPage * kPage;
    pages_ = static_cast<unsigned char*>(mmap(nullptr, span_ + 2 * kPage, PROT_READ | PROT_WRITE,
                                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (pages_ == MAP_FAILED) {
      std::perror("mmap");
      std::exit(2);
    }
    mprotect(pages_, kPage, PROT_NONE);
    mprotect(pages_ + kPage + span_, kPage, PROT_NONE);
    const size_t lead = at_start ? 0 : (span_ - bytes) / align * align;
    data_ = pages_ + kPage + lead;
    std::memset(pages_ + kPage, kPattern, span_);
    forbid_slack(true);
    const std::lock_guard<std::mutex> lock(blocks_mutex_);
    blocks_.push_back(this);
  }
  ~Guarded() {
    {
      const std::lock_guard<std::mutex> lock(blocks_mutex_);
      blocks_.erase(std::find(blocks_.begin(), blocks_.end(), this));
    }
    forbid_slack(false);
    munmap(pages_, span_ + 2 * kPage);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  void fill(unsigned char value) { std::memset(data_, value, bytes_); }

  // Takes all the memory away from the program, or gives it back.
  void allow(bool allowed) const {
    mprotect(pages_ + kPage, span_, allowed ? PROT_READ | PROT_WRITE : PROT_NONE);
  }
  // Calls visit(block) for every block that lives.
  template <class Visit>
  static void for_each(Visit visit) {
    const std::lock_guard<std::mutex> lock(blocks_mutex_);
    for (const Guarded* block : blocks_) visit(*block);
  }

  // True while no byte outside the block has changed.
  bool intact() const {
    forbid_slack(false);
    const bool result = slack_holds_pattern();
    forbid_slack(true);
    return result;
  }

 private:
  static constexpr size_t kPage = 4096;

  bool slack_holds_pattern() const {
    const unsigned char* begin = pages_ + kPage;
    for (const unsigned char* byte = begin; byte < data_; ++byte) {
      if (*byte != kPattern) return false;
    }
    for (const unsigned char* byte = data_ + bytes_; byte < begin + span_; ++byte) {
      if (*byte != kPattern) return false;
    }
    return true;
  }

  // AddressSanitizer then reports reading the slack, too.
  void forbid_slack(bool forbidden) const {
#if defined(__SANITIZE_ADDRESS__)
    const unsigned char* begin = pages_ + kPage;
    const auto set = forbidden ? __asan_poison_memory_region : __asan_unpoison_memory_region;
    set(begin, data_ - begin);
    set(data_ + bytes_, begin + span_ - data_ - bytes_);
#else
    (void)forbidden;
#endif
  }

  inline static std::mutex blocks_mutex_;  // tests of threads make blocks on several
  inline static std::vector<Guarded*> blocks_;
  size_t bytes_ = 0, span_ = 0;
  unsigned char* pages_ = nullptr;
  unsigned char* data_ = nullptr;
};
