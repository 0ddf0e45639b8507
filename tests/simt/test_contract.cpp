// The contract of cuda.h apart from the numbers: what is refused and with which status, that a
// refused call leaves no trace, and what the plan says.
#include <algorithm>
#include <cstring>

#include "blas.h"
#include "kernels_cuda.h"
#include "pointwise.cuh"
#include "run.h"
#include "suite.h"

namespace {

using fused_lstm::Gradients;
using fused_lstm::Outputs;
using fused_lstm::Problem;
using fused_lstm::Status;
using fused_lstm::cuda::Launch;
namespace cuda = fused_lstm::cuda;

const char* const kCase = "T=3 B=4 I=2 H=5 dtype=float32 packed=1 family=1 back_family=1";

// One call with everything in place, for a test to spoil.
struct Call {
  explicit Call(const std::string& text)
      : c(parse_case(text)),
        data(c),
        trained(run_forward(c, data, true, 0xff)),
        problem(data.problem),
        launch(make_launch(c, false)),
        y(trained.y->bytes(), 8),
        h_n(trained.h_n->bytes(), 8),
        c_n(trained.c_n->bytes(), 8),
        room(std::max(cuda::forward_workspace_bytes(problem, false, launch),
                      cuda::backward_workspace_bytes(problem, all(), launch)),
             kernels::kAlignment),
        workspace(room.data()),
        dc0(trained.c_n->bytes(), 8) {
    launch.blas.multiply = multiply_plainly;
    outputs.y = y.data();
    outputs.y_t = trained.y_strides.t;
    outputs.y_b = trained.y_strides.b;
    outputs.h_n = h_n.data();
    outputs.c_n = c_n.data();
    gradients = data.incoming;
    gradients.y = trained.y->data();
    gradients.reserve = trained.reserve->data();
    gradients.dc0 = dc0.data();
  }
  Gradients all() const {
    Gradients wanted;
    wanted.dc0 = trained.c_n->data();
    return wanted;
  }
  Status forward(size_t short_by = 0) {
    const size_t bytes = cuda::forward_workspace_bytes(problem, false, launch);
    return cuda::forward(problem, outputs, workspace, bytes - short_by, launch);
  }
  Status backward(size_t short_by = 0) {
    const size_t bytes = cuda::backward_workspace_bytes(problem, gradients, launch);
    return cuda::backward(problem, gradients, workspace, bytes - short_by, launch);
  }
  bool untouched() const {
    for (const Guarded* block : {&y, &h_n, &c_n, &dc0}) {
      const auto* bytes = static_cast<const unsigned char*>(block->data());
      for (size_t k = 0; k < block->bytes(); ++k) {
        if (bytes[k] != Guarded::kPattern) return false;
      }
    }
    return true;
  }

  Case c;
  Data data;
  ForwardRun trained;
  Problem problem;
  Launch launch;
  Guarded y, h_n, c_n, room;
  void* workspace;
  Guarded dc0;
  Outputs outputs;
  Gradients gradients;
};

using Spoil = void (*)(Call&);

void check_refused(Suite& suite, const std::string& what, Status want, Spoil spoil) {
  suite.begin(what);
  Call call(kCase);
  spoil(call);
  suite.expect(call.forward() == want, "forward returns another status");
  suite.expect(call.backward() == want, "backward returns another status");
  suite.expect(call.untouched(), "a refused call left a trace");
  suite.end();
}

// Sequences too long for a grid of 65535 blocks take several sweeps; here every grid is too small.
void check_sweeps(Suite& suite) {
  suite.begin("a grid smaller than its work");
  const int64_t rows = 37, columns = 300;
  std::vector<float> from(rows * columns), to(rows * columns, -1.0f);
  for (size_t k = 0; k < from.size(); ++k) from[k] = static_cast<float>(k);
  const cuda::CopyBlocks<float> copy = {1, rows, columns, from.data(), 0, columns, to.data(), 0};
  Launch launch;
  cuda::Queue queue(launch, fused_lstm::DType::kFloat32);
  queue.run(cuda::copy_blocks_kernel<float>, cuda::cover(rows, columns, 2), copy);
  suite.expect(from == to, "some elements are missing");
  suite.end();
}

bool refuse(void*, const cuda::Product&) { return false; }

void check_statuses(Suite& suite) {
  const Status bad = Status::kBadArgument, unsupported = Status::kUnsupported;
  check_refused(suite, "T = 0", bad, [](Call& c) { c.problem.T = 0; });
  check_refused(suite, "B = 0", bad, [](Call& c) { c.problem.B = 0; });
  check_refused(suite, "I = 0", bad, [](Call& c) { c.problem.I = 0; });
  check_refused(suite, "H = 0", bad, [](Call& c) { c.problem.H = c.problem.P = 0; });
  check_refused(suite, "three directions", bad, [](Call& c) { c.problem.D = 3; });
  check_refused(suite, "no x", bad, [](Call& c) { c.problem.x = nullptr; });
  check_refused(suite, "no w_ih", bad, [](Call& c) { c.problem.weights[0].w_ih = nullptr; });
  check_refused(suite, "no w_hh", bad, [](Call& c) { c.problem.weights[0].w_hh = nullptr; });
  check_refused(suite, "P < H without w_hr", bad, [](Call& c) { c.problem.P = 4; });
  check_refused(suite, "no workspace", bad, [](Call& c) { c.workspace = nullptr; });
  check_refused(suite, "no BLAS", bad, [](Call& c) { c.launch.blas.multiply = nullptr; });
  check_refused(suite, "no h_n, no y", bad, [](Call& c) {
    c.outputs.h_n = nullptr;
    c.gradients.y = nullptr;
  });
  check_refused(suite, "no y, no reserve", bad, [](Call& c) {
    c.outputs.y = nullptr;
    c.gradients.reserve = nullptr;
  });
  check_refused(suite, "a dtype that is none", unsupported,
                [](Call& c) { c.problem.dtype = static_cast<fused_lstm::DType>(7); });
  check_refused(suite, "lengths that grow", bad, [](Call& c) {
    static const int64_t sizes[] = {4, 2, 3};
    c.problem.batch_sizes = sizes;
  });
  check_refused(suite, "a step without rows", bad, [](Call& c) {
    static const int64_t sizes[] = {4, 2, 0};
    c.problem.batch_sizes = sizes;
  });
  check_refused(suite, "a first step without all rows", bad, [](Call& c) {
    static const int64_t sizes[] = {3, 2, 1};
    c.problem.batch_sizes = sizes;
  });
  check_refused(suite, "one block on sm_75 is forced", unsupported, [](Call& c) {
    c.launch.family = cuda::Family::kSingleBlock;
    c.launch.device.arch = 75;
  });
  check_refused(suite, "a grid on sm_75 is forced", unsupported, [](Call& c) {
    c.launch.family = cuda::Family::kGrid;
    c.launch.device.arch = 75;
  });
  check_refused(suite, "a cluster on sm_80 is forced", unsupported, [](Call& c) {
    c.launch.family = cuda::Family::kCluster;
    c.launch.device.arch = 80;
  });
  check_refused(suite, "the BLAS refuses", Status::kLaunchFailed,
                [](Call& c) { c.launch.blas.multiply = refuse; });
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_contract", nullptr);
  check_statuses(suite);
  check_sweeps(suite);
  {
    suite.begin("a workspace one byte too small");
    Call call(kCase);
    suite.expect(call.forward(1) == Status::kWorkspaceTooSmall, "forward returns another status");
    suite.expect(call.backward(1) == Status::kWorkspaceTooSmall, "backward: another status");
    suite.expect(call.untouched(), "a refused call left a trace");
    suite.expect(call.forward() == Status::kOk, "forward fails with what it asked for");
    suite.expect(std::memcmp(call.trained.h_n->data(), call.h_n.data(), call.h_n.bytes()) == 0,
                 "and gives other bits");
    suite.expect(call.backward() == Status::kOk, "backward fails with what it asked for");
    suite.end();
  }
  {
    suite.begin("last_error names the product");
    Call call(kCase);
    call.launch.blas.multiply = refuse;
    (void)call.forward();
    const std::string error = cuda::last_error();
    suite.expect(error.find("BLAS refused a product [") != std::string::npos, error);
    suite.end();
  }
  {
    suite.begin("explain");
    Call call("T=3 B=4 I=2 H=5 dtype=float64");
    char text[256], cut[8];
    cuda::explain(call.problem, true, call.launch, text, sizeof text);
    suite.expect(std::strstr(text, "cuda sm_90: stepwise") == text, text);
    cuda::explain(call.problem, true, call.launch, cut, sizeof cut);
    suite.expect(std::strcmp(cut, "cuda sm") == 0, "does not end where its room ends");
    suite.end();
  }
  {
    suite.begin("reserve_bytes");  // gates [N, 4H] in 2 bytes, cells [N, H] in 4, m [N, H] in 2
    const Case c = parse_case("T=3 B=4 I=2 H=5 P=2 D=2 dtype=float16");
    const Data data(c);
    Problem problem = data.problem;
    suite.expect(cuda::reserve_bytes(problem) == 2 * (512 + 256 + 256), "another size");
    problem.recompute = true;
    suite.expect(cuda::reserve_bytes(problem) == 2 * (256 + 256), "with gates computed again");
    suite.end();
  }
  return suite.finish();
}
