// Which GPUs this build has code for, and what to say about the others. Plain C++.
//
// Architectures are written as torch and setup.py write them: "7.5", "9.0a" (runs on 9.0 alone),
// "12.0+PTX" (and, compiled by the driver, on everything newer).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fused_lstm {

constexpr int32_t kOldestArch = 75;

inline std::vector<std::string> split_architectures(const std::string& list) {
  std::vector<std::string> parts(1);
  for (const char letter : list) {
    if (letter == ',') {
      parts.emplace_back();
    } else {
      parts.back() += letter;
    }
  }
  return parts;
}

inline int32_t compiled_for(const std::string& entry) {
  const size_t dot = entry.find('.');
  return std::stoi(entry.substr(0, dot)) * 10 + std::stoi(entry.substr(dot + 1));
}

// Whether code for one entry of the list runs on a device of architecture 10 * major + minor: code
// runs within its major version from its minor version on, 'a' on that version only, and 'f' as
// plain code does; PTX on everything newer too.
inline bool runs_on(const std::string& entry, int32_t arch) {
  const int32_t compiled = compiled_for(entry);
  if (entry.find('a') != std::string::npos) return arch == compiled;
  const bool has_ptx = entry.find("+PTX") != std::string::npos;
  return arch >= compiled && (has_ptx || arch / 10 == compiled / 10);
}

// The architecture whose code a device runs: the newest of the list that it can. The driver
// compiles an older one's PTX for it, and that holds what the older one has, no more.
inline int32_t code_for(const std::string& list, int32_t arch) {
  int32_t newest = 0;
  for (const std::string& entry : split_architectures(list)) {
    const int32_t compiled = compiled_for(entry);
    if (runs_on(entry, arch) && compiled > newest) newest = compiled;
  }
  return newest > 0 ? newest : arch;
}

// Why a device of this architecture cannot run a build for `list`, with the remedy; or "".
inline std::string architecture_obstacle(const std::string& list, int32_t arch) {
  const std::string name = std::to_string(arch / 10) + "." + std::to_string(arch % 10);
  if (arch < kOldestArch) {
    return "this GPU has compute capability " + name + ", the kernels need 7.5 or newer";
  }
  for (const std::string& entry : split_architectures(list)) {
    if (runs_on(entry, arch)) return "";
  }
  return "built for compute capability " + list + ", this GPU has " + name +
         "; in the source folder: FUSED_LSTM_CUDA=1 FUSED_LSTM_ARCHS=" + name +
         " python -m pip install --no-build-isolation .";
}

}  // namespace fused_lstm
