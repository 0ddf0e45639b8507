// The CPU as a Place, and tensors on memory of the scratch pool.
#pragma once

#include "place.h"

namespace fused_lstm {

class CpuPlace final : public Place {
 public:
  CpuPlace() : Place(cpu_device()) {}
  // Ours and not torch's, whose threads a forked child would wait for without end.
  Tensor contiguous_copy(const View& view) const override;
  void clear(const Tensor& tensor, size_t bytes) const override;
  void expect_writes(void* data, size_t bytes) const override;

  // A uint8 tensor [bytes] on 64-byte aligned memory of the scratch pool, given back when it dies.
  Tensor empty_scratch(size_t bytes) const;
};

}  // namespace fused_lstm
