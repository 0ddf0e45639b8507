// Which family of CUDA kernels was measured to be the quickest, for classes of calls on a device.
// fused_lstm/tuning.py measures; what it found stands here, so that every call meets it, whichever
// way it came: autograd's threads, compiled graphs and captured ones. Plain C++.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "../kernels/cuda/cuda.h"

namespace fused_lstm {

// Calls for which one measurement stands: T up to the same power of two, all else alike.
struct CallClass {
  int64_t most_steps = 1, B, I, H, P;
  int32_t D;
  DType dtype;
  bool packed, training, tf32;

  CallClass(const Problem& p, bool is_training, bool may_use_tf32)
      : B(p.B), I(p.I), H(p.H), P(p.P), D(p.D), dtype(p.dtype) {
    while (most_steps < p.T) most_steps *= 2;
    packed = p.batch_sizes != nullptr;
    training = is_training;
    tf32 = may_use_tf32 && dtype == DType::kFloat32;
  }

  // Its name in a file that outlives the process.
  std::string text() const {
    const auto size = [](const char* name, int64_t value) {
      return std::string(" ") + name + std::to_string(value);
    };
    return name_of(dtype) + (tf32 ? " as TF32" : "") + size("T<=", most_steps) + size("B=", B) +
           size("I=", I) + size("H=", H) + size("P=", P) + size("D=", D) +
           (packed ? " packed" : "") + (training ? " training" : "");
  }

  friend bool operator<(const CallClass& a, const CallClass& b) { return a.key() < b.key(); }

 private:
  std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int32_t, int32_t, bool, bool, bool> key()
      const {
    return {most_steps, B, I, H, P, D, static_cast<int32_t>(dtype), packed, training, tf32};
  }

  static std::string name_of(DType dtype) {
    switch (dtype) {
      case DType::kFloat32:
        return "float32";
      case DType::kFloat64:
        return "float64";
      case DType::kBFloat16:
        return "bfloat16";
      case DType::kFloat16:
        return "float16";
    }
    return "?";
  }
};

class Choices {
 public:
  // Nothing: the plan chooses.
  void set(int32_t device, const CallClass& call, std::optional<cuda::Family> family) {
    const std::lock_guard<std::mutex> guard(lock_);
    if (family) {
      known_[{device, call}] = *family;
    } else {
      known_.erase({device, call});
    }
  }

  std::optional<cuda::Family> find(int32_t device, const CallClass& call) const {
    const std::lock_guard<std::mutex> guard(lock_);
    const auto found = known_.find({device, call});
    if (found == known_.end()) return std::nullopt;
    return found->second;
  }

 private:
  mutable std::mutex lock_;
  std::map<std::pair<int32_t, CallClass>, cuda::Family> known_;
};

}  // namespace fused_lstm
