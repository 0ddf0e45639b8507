// The Python module `fused_lstm._C`: everything that is no tensor operator. What this build is and
// what this processor can do, how much memory a problem needs and how it would be computed, and the
// scratch pool. Importing it also registers the operators (schema.cpp, ops_cpu.cpp).
//
// No torch header is included here: pybind11 and the stable ABI's version macro do not mix.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/frozen.h"
#include "direct.h"
#include "runtime.h"
#include "scratch.h"
#include "shape.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace py = pybind11;

namespace fused_lstm {
namespace {

constexpr Isa kIsas[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kEmulated512};

int32_t checked_threads(int64_t threads) {
  if (threads >= 1 && threads <= 4096) return static_cast<int32_t>(threads);
  throw std::invalid_argument("threads: expected 1 to 4096, got " + std::to_string(threads));
}

Stored parse_stored(const std::string& name) {
  if (name == "float32") return Stored::kFloat32;
  if (name == "bfloat16") return Stored::kBFloat16;
  if (name == "int8") return Stored::kInt8;
  throw std::invalid_argument("weights: expected float32, bfloat16 or int8, got '" + name + "'");
}

// Bytes of scratch that one inference call, or the larger half of a training step, takes.
size_t workspace_bytes(int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int64_t D,
                       const std::string& dtype, bool training, int64_t threads) {
  const Shape shape(T, B, I, H, P, D, dtype);
  const int32_t tasks = checked_threads(threads);
  const size_t forward = cpu::forward_workspace_bytes(shape.problem, training, tasks);
  if (!training) return forward;
  return std::max(forward, cpu::backward_workspace_bytes(shape.problem, shape.gradients, tasks));
}

size_t reserve_bytes(int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int64_t D,
                     const std::string& dtype) {
  return cpu::reserve_bytes(Shape(T, B, I, H, P, D, dtype).problem);
}

std::string explain_plan(int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int64_t D,
                         const std::string& dtype, bool training, int64_t threads, bool options) {
  Shape shape(T, B, I, H, P, D, dtype);
  shape.problem.cells = options;  // cells and marks have the same plans
  char text[1024] = "";
  cpu::explain(shape.problem, training, checked_threads(threads), text, sizeof text);
  return text;
}

std::string explain_frozen(int64_t T, int64_t B, int64_t I, int64_t H, int64_t D,
                           const std::string& weights, int64_t threads) {
  const Shape shape(T, B, I, H, H, D, "float32");
  char text[1024] = "";
  cpu::explain_frozen(shape.problem, parse_stored(weights), checked_threads(threads), text,
                      sizeof text);
  return text;
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Isa isa : kIsas) {
    if (cpu::isa_runs_here(isa)) names.emplace_back(cpu::isa_name(isa));
  }
  return names;
}

void set_isa(const std::string& name) {
  for (const Isa isa : kIsas) {
    if (name == cpu::isa_name(isa) && cpu::set_isa(isa)) return;
  }
  std::string known;
  for (const std::string& isa : isas()) known += (known.empty() ? "" : ", ") + isa;
  throw std::invalid_argument("isa: expected one that runs here (" + known + "), got '" + name +
                              "'");
}

py::dict build_info() {
  std::vector<std::string> compiled;
  for (const Isa isa : kIsas) compiled.emplace_back(cpu::isa_name(isa));
  py::dict info;
  info["version"] = FUSED_LSTM_TEXT(FUSED_LSTM_VERSION);
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "g++ " __VERSION__;
#endif
  info["torch_target"] = "2.11";
  info["isas"] = compiled;
  return info;
}

// What the processor says, and for vector registers also what the system lets programs use.
std::map<std::string, bool> cpu_features() {
  std::map<std::string, bool> features;
#if defined(__x86_64__)
  const bool avx = __builtin_cpu_supports("avx");
  const bool avx512 = __builtin_cpu_supports("avx512f");
  const auto bit = [](unsigned leaf, unsigned subleaf, int word, int position) {
    unsigned words[4] = {};  // eax, ebx, ecx, edx
    return __get_cpuid_count(leaf, subleaf, &words[0], &words[1], &words[2], &words[3]) != 0 &&
           ((words[word] >> position) & 1U) != 0;
  };
  features["avx2"] = __builtin_cpu_supports("avx2");
  features["fma"] = __builtin_cpu_supports("fma");
  features["f16c"] = avx && bit(1, 0, 2, 29);
  features["avx512f"] = avx512;
  features["avx512bw"] = __builtin_cpu_supports("avx512bw");
  features["avx512dq"] = __builtin_cpu_supports("avx512dq");
  features["avx512vl"] = __builtin_cpu_supports("avx512vl");
  features["avx512_bf16"] = avx512 && bit(7, 1, 0, 5);
  features["avx512_fp16"] = avx512 && bit(7, 0, 3, 23);
  features["amx_tile"] = bit(7, 0, 3, 24);
  features["amx_bf16"] = bit(7, 0, 3, 22);
#elif defined(__aarch64__)
  features["neon"] = true;
#endif
  return features;
}

}  // namespace
}  // namespace fused_lstm

PYBIND11_MODULE(_C, module) {
  namespace fl = fused_lstm;
  module.doc() = "fused_lstm's compiled half: operators, build facts, plans and the scratch pool.";

  module.def("build_info", &fl::build_info);
  module.def("cpu_features", &fl::cpu_features);
  module.def("isa", [] { return std::string(fl::cpu::isa_name(fl::cpu::active_isa())); });
  module.def("set_isa", &fl::set_isa, py::arg("name"));
  module.def("isas", &fl::isas);

  module.def("workspace_bytes", &fl::workspace_bytes, py::arg("T"), py::arg("B"), py::arg("I"),
             py::arg("H"), py::arg("P"), py::arg("D"), py::arg("dtype"), py::arg("training"),
             py::arg("threads"));
  module.def("reserve_bytes", &fl::reserve_bytes, py::arg("T"), py::arg("B"), py::arg("I"),
             py::arg("H"), py::arg("P"), py::arg("D"), py::arg("dtype"));
  module.def("explain_plan", &fl::explain_plan, py::arg("T"), py::arg("B"), py::arg("I"),
             py::arg("H"), py::arg("P"), py::arg("D"), py::arg("dtype"), py::arg("training"),
             py::arg("threads"), py::arg("options") = false);

  module.def("explain_frozen", &fl::explain_frozen, py::arg("T"), py::arg("B"), py::arg("I"),
             py::arg("H"), py::arg("D"), py::arg("weights"), py::arg("threads"));

  module.def("empty_cache", &fl::scratch::empty_cache, py::call_guard<py::gil_scoped_release>());
  module.def("cache_bytes", &fl::scratch::cached_bytes);
  module.def("cache_limit", &fl::scratch::limit);
  module.def("set_cache_limit", &fl::scratch::set_limit, py::arg("bytes"),
             py::call_guard<py::gil_scoped_release>());
  module.def(
      "prefer_large_pages",
      [](uintptr_t address, size_t bytes) {
        fl::scratch::prefer_large_pages(reinterpret_cast<void*>(address), bytes);
      },
      py::arg("address"), py::arg("bytes"));
  module.def(
      "connect_direct",
      [](py::handle exchange, py::handle tensor, py::handle parameter, py::handle empty,
         py::handle dtypes) {
        PyObject* const function = fl::connect_direct(exchange.ptr(), tensor.ptr(), parameter.ptr(),
                                                      empty.ptr(), dtypes.ptr());
        if (function == nullptr) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(function);
      },
      py::arg("exchange"), py::arg("tensor"), py::arg("parameter"), py::arg("empty"),
      py::arg("dtypes"));
  module.def("set_concurrent", &fl::runtime::set_concurrent, py::arg("concurrent"));
}
