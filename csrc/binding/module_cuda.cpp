// The Python module `fused_lstm._C_cuda`: which toolkit and GPUs this build is for, what a device
// is, how a problem would be computed there. Importing it also registers the CUDA operators
// (ops_cuda.cpp), for which `_C` must have declared them.
//
// No torch header is included here: see module.cpp.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/cuda/cuda.h"
#include "../kernels/cuda/plan.h"
#include "launch_cuda.h"
#include "shape.h"

namespace py = pybind11;

namespace fused_lstm {
namespace {

using Facts = std::map<std::string, int64_t>;

py::dict build_info() {
  constexpr int kMinor = CUDART_VERSION % 1000 / 10;
  py::dict info;
  info["version"] = FUSED_LSTM_TEXT(FUSED_LSTM_VERSION);
  info["toolkit"] = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(kMinor);
  info["architectures"] = compiled_architectures();
  return info;
}

Facts facts(int32_t index) {
  const cuda::Device& device = device_facts(index);
  return {{"arch", device.arch},
          {"sms", device.sms},
          {"shared_per_block", device.shared_per_block},
          {"shared_per_sm", device.shared_per_sm},
          {"clusters_2", device.clusters[0]},
          {"clusters_4", device.clusters[1]},
          {"clusters_8", device.clusters[2]},
          {"clusters_16", device.clusters[3]}};
}

cuda::Launch planned_launch(const Facts& facts, bool tf32) {
  cuda::Launch launch;
  launch.device.arch = static_cast<int32_t>(facts.at("arch"));
  launch.device.sms = static_cast<int32_t>(facts.at("sms"));
  launch.device.shared_per_block = facts.at("shared_per_block");
  launch.device.shared_per_sm = facts.at("shared_per_sm");
  for (int i = 0; i < 4; ++i) {
    const auto found = facts.find("clusters_" + std::to_string(2 << i));
    if (found != facts.end()) launch.device.clusters[i] = static_cast<int32_t>(found->second);
  }
  launch.across_blocks = across_blocks();
  launch.math = tf32 ? cuda::Math::kTf32 : cuda::Math::kStrict;
  return launch;
}

constexpr cuda::Family kFamilies[] = {cuda::Family::kStepwise, cuda::Family::kSingleBlock,
                                      cuda::Family::kCluster, cuda::Family::kGrid};

std::optional<cuda::Family> family_of(const std::optional<std::string>& name) {
  if (!name) return std::nullopt;
  for (const cuda::Family family : kFamilies) {
    if (*name == family_name(family)) return family;
  }
  throw std::invalid_argument(
      "family: expected stepwise, single_block, cluster, grid or None, got '" + *name + "'");
}

std::optional<std::string> name_of(std::optional<cuda::Family> family) {
  if (!family) return std::nullopt;
  return family_name(*family);
}

std::string explain_plan(int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int64_t D,
                         const std::string& dtype, bool training, bool tf32, const Facts& facts,
                         const std::optional<std::string>& measured, bool options) {
  Shape shape(T, B, I, H, P, D, dtype);
  shape.problem.cells = options;  // every option has the plans of cells
  cuda::Launch launch = planned_launch(facts, tf32);
  launch.measured = measured.has_value();
  if (measured) launch.family = *family_of(measured);
  char text[1024] = "";
  cuda::explain(shape.problem, training, launch, text, sizeof text);
  return text;
}

// The families that may compute a call, the plan's own choice first.
py::list families(int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int64_t D,
                  const std::string& dtype, bool training, bool tf32, const Facts& facts) {
  const Shape shape(T, B, I, H, P, D, dtype);
  const cuda::Launch launch = planned_launch(facts, tf32);
  const cuda::Family chosen = cuda::choose_family(shape.problem, training, launch);
  std::vector<cuda::Family> fit = {chosen};
  for (const cuda::Family family : kFamilies) {
    if (family == chosen || !cuda::may_choose(family, launch)) continue;
    if (cuda::computes(family, shape.problem, training, launch)) fit.push_back(family);
  }
  py::list all;
  for (const cuda::Family family : fit) {
    const cuda::Footprint held = cuda::footprint(family, shape.problem, training, launch);
    py::dict one;
    one["family"] = family_name(family);
    one["us"] = cuda::predicted_us(family, shape.problem, training, launch);
    one["blocks"] = held.blocks;
    one["room"] = held.room;
    all.append(one);
  }
  return all;
}

CallClass class_of(int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int64_t D,
                   const std::string& dtype, bool training, bool tf32, bool packed) {
  Shape shape(T, B, I, H, P, D, dtype);
  static const int64_t rows = 0;
  if (packed) shape.problem.batch_sizes = &rows;  // that it is there is all that counts
  return CallClass(shape.problem, training, tf32);
}

std::string call_class(int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int64_t D,
                       const std::string& dtype, bool training, bool tf32, bool packed) {
  return class_of(T, B, I, H, P, D, dtype, training, tf32, packed).text();
}

void set_choice(int32_t index, int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int64_t D,
                const std::string& dtype, bool training, bool tf32, bool packed,
                const std::optional<std::string>& family) {
  choices().set(index, class_of(T, B, I, H, P, D, dtype, training, tf32, packed),
                family_of(family));
}

std::optional<std::string> choice(int32_t index, int64_t T, int64_t B, int64_t I, int64_t H,
                                  int64_t P, int64_t D, const std::string& dtype, bool training,
                                  bool tf32, bool packed) {
  return name_of(choices().find(index, class_of(T, B, I, H, P, D, dtype, training, tf32, packed)));
}

size_t reserve_bytes(int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int64_t D,
                     const std::string& dtype, bool recompute) {
  Shape shape(T, B, I, H, P, D, dtype);
  shape.problem.recompute = recompute;
  return cuda::reserve_bytes(shape.problem);
}

void force(const std::optional<std::string>& name) { force_family(family_of(name)); }
std::optional<std::string> forced() { return name_of(forced_family()); }

}  // namespace
}  // namespace fused_lstm

PYBIND11_MODULE(_C_cuda, module) {
  namespace fl = fused_lstm;
  module.doc() = "fused_lstm's CUDA half: operators, build facts, devices and plans.";

  module.def("build_info", &fl::build_info);
  module.def("device_facts", &fl::facts, py::arg("index"));
  module.def("obstacle", &fl::device_obstacle, py::arg("arch"));
  module.def("force_family", &fl::force, py::arg("name"));
  module.def("forced_family", &fl::forced);
  module.def("set_fault", &fl::set_fault, py::arg("index"));
  module.def("set_across_blocks", &fl::set_across_blocks, py::arg("on"));
  module.def("reserve_bytes", &fl::reserve_bytes, py::arg("T"), py::arg("B"), py::arg("I"),
             py::arg("H"), py::arg("P"), py::arg("D"), py::arg("dtype"),
             py::arg("recompute") = false);
  module.def("explain_plan", &fl::explain_plan, py::arg("T"), py::arg("B"), py::arg("I"),
             py::arg("H"), py::arg("P"), py::arg("D"), py::arg("dtype"), py::arg("training"),
             py::arg("tf32"), py::arg("facts"), py::arg("measured") = py::none(),
             py::arg("options") = false);
  module.def("families", &fl::families, py::arg("T"), py::arg("B"), py::arg("I"), py::arg("H"),
             py::arg("P"), py::arg("D"), py::arg("dtype"), py::arg("training"), py::arg("tf32"),
             py::arg("facts"));
  module.def("call_class", &fl::call_class, py::arg("T"), py::arg("B"), py::arg("I"), py::arg("H"),
             py::arg("P"), py::arg("D"), py::arg("dtype"), py::arg("training"), py::arg("tf32"),
             py::arg("packed"));
  module.def("set_choice", &fl::set_choice, py::arg("index"), py::arg("T"), py::arg("B"),
             py::arg("I"), py::arg("H"), py::arg("P"), py::arg("D"), py::arg("dtype"),
             py::arg("training"), py::arg("tf32"), py::arg("packed"), py::arg("family"));
  module.def("choice", &fl::choice, py::arg("index"), py::arg("T"), py::arg("B"), py::arg("I"),
             py::arg("H"), py::arg("P"), py::arg("D"), py::arg("dtype"), py::arg("training"),
             py::arg("tf32"), py::arg("packed"));
}
