// What lstm.h promises besides numbers: status codes for bad arguments and small workspaces, sizes
// that can be asked for without pointers, an inference workspace without a [T, B, 4H] buffer,
// instruction sets that are chosen and named, a plan that explains itself.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "parallel.h"
#include "run.h"
#include "suite.h"

using fused_lstm::Gradients;
using fused_lstm::Isa;
using fused_lstm::Outputs;
using fused_lstm::Parallel;
using fused_lstm::Problem;
using fused_lstm::Status;
namespace cpu = fused_lstm::cpu;

namespace {

Case small_case(int64_t isa) {
  Case c;
  c.T = 3;
  c.B = 4;
  c.I = 5;
  c.H = 6;
  c.D = 2;
  c.isa = isa;
  return c;
}

struct Call {
  Problem problem;
  Outputs outputs;
  Gradients gradients;
  void* workspace;
  size_t bytes;
  Parallel parallel;
};

// A valid call of either kind in which one thing is then made wrong.
void expect_statuses(Suite& suite, int64_t isa) {
  const Case c = small_case(isa);
  const Data data(c);
  const ForwardRun good = run_forward(c, data, true, 0xff);
  const BackwardRun back = run_backward(c, data, good, 0xff);
  const Parallel parallel = make_parallel(kPool, 2);
  Call base{data.problem, {}, data.incoming, nullptr, 0, parallel};
  base.outputs = {good.y->data(),   good.y_strides.t, good.y_strides.b,
                  good.h_n->data(), good.c_n->data(), good.reserve->data()};
  base.gradients.y = good.y->data();
  base.gradients.y_t = good.y_strides.t;
  base.gradients.y_b = good.y_strides.b;
  base.gradients.reserve = good.reserve->data();
  for (int k = 0; k < kGradients; ++k) {
    if (back.gradients[k]) *gradient_slot(base.gradients, k) = back.gradients[k]->data();
  }
  struct Mistake {
    const char* what;
    bool in_forward, in_backward;
    std::function<void(Call&)> make;
    Status want = Status::kBadArgument;
  };
  static const int64_t growing[] = {4, 3, 4}, other_batch[] = {3, 3, 1}, with_zero[] = {4, 2, 0};
  const Mistake mistakes[] = {
      {"nothing wrong", true, true, [](Call&) {}, Status::kOk},
      {"T = 0", true, true, [](Call& k) { k.problem.T = 0; }},
      {"B = 0", true, true, [](Call& k) { k.problem.B = 0; }},
      {"I = 0", true, true, [](Call& k) { k.problem.I = 0; }},
      {"H = -1", true, true, [](Call& k) { k.problem.H = -1; }},
      {"P = 0", true, true, [](Call& k) { k.problem.P = 0; }},
      {"D = 0", true, true, [](Call& k) { k.problem.D = 0; }},
      {"D = 3", true, true, [](Call& k) { k.problem.D = 3; }},
      {"P != H without w_hr", true, true, [](Call& k) { k.problem.P = 5; }},
      {"w_hr in one direction only", true, true,
       [](Call& k) { k.problem.weights[0].w_hr = k.problem.weights[0].w_hh; }},
      {"dtype 17", true, true,
       [](Call& k) { k.problem.dtype = static_cast<fused_lstm::DType>(17); }, Status::kUnsupported},
      {"batch_sizes that grow", true, true, [](Call& k) { k.problem.batch_sizes = growing; }},
      {"batch_sizes[0] != B", true, true, [](Call& k) { k.problem.batch_sizes = other_batch; }},
      {"a batch size of 0", true, true, [](Call& k) { k.problem.batch_sizes = with_zero; }},
      {"x null", true, true, [](Call& k) { k.problem.x = nullptr; }},
      {"w_ih null", true, true, [](Call& k) { k.problem.weights[0].w_ih = nullptr; }},
      {"w_hh of the reverse direction null", true, true,
       [](Call& k) { k.problem.weights[1].w_hh = nullptr; }},
      {"y null", true, false, [](Call& k) { k.outputs.y = nullptr; }},
      {"h_n null", true, false, [](Call& k) { k.outputs.h_n = nullptr; }},
      {"c_n null", true, false, [](Call& k) { k.outputs.c_n = nullptr; }},
      {"forward's y null", false, true, [](Call& k) { k.gradients.y = nullptr; }},
      {"reserve null", false, true, [](Call& k) { k.gradients.reserve = nullptr; }},
      {"workspace null", true, true, [](Call& k) { k.workspace = nullptr; }},
      {"workspace one byte short", true, true, [](Call& k) { --k.bytes; },
       Status::kWorkspaceTooSmall},
  };
  for (const Mistake& mistake : mistakes) {
    for (const bool is_forward : {true, false}) {
      if (!(is_forward ? mistake.in_forward : mistake.in_backward)) continue;
      suite.begin(std::string(is_forward ? "forward, " : "backward, ") + mistake.what + ", " +
                  kIsaNames[isa]);
      cpu::set_isa(static_cast<Isa>(isa));
      Call call = base;
      call.bytes = is_forward ? cpu::forward_workspace_bytes(data.problem, true, 2)
                              : cpu::backward_workspace_bytes(data.problem, base.gradients, 2);
      const Guarded workspace(call.bytes, 64);
      call.workspace = workspace.data();
      suite.expect(call.bytes > 0, "asks for no workspace at all");
      mistake.make(call);
      const Status status = is_forward ? cpu::forward(call.problem, call.outputs, call.workspace,
                                                      call.bytes, call.parallel)
                                       : cpu::backward(call.problem, call.gradients, call.workspace,
                                                       call.bytes, call.parallel);
      suite.expect(status == mistake.want, "returned " + std::to_string(static_cast<int>(status)) +
                                               ", expected " +
                                               std::to_string(static_cast<int>(mistake.want)));
      suite.expect(workspace.intact(), "wrote outside the workspace");
      suite.end();
    }
  }
}

Problem sizes(int64_t T, int64_t B, int64_t I, int64_t H, int64_t dtype) {
  Problem p;
  p.dtype = static_cast<fused_lstm::DType>(dtype);
  p.T = T;
  p.B = B;
  p.I = I;
  p.H = p.P = H;
  return p;
}

void expect_sizes(Suite& suite, int64_t isa, int64_t dtype) {
  suite.begin(std::string("sizes, ") + kIsaNames[isa] + " " + kDTypeNames[dtype]);
  cpu::set_isa(static_cast<Isa>(isa));
  const size_t element = reference::element_size(static_cast<fused_lstm::DType>(dtype));
  const int64_t shapes[][2] = {{1, 64}, {1, 512}, {16, 64}, {50, 128}, {64, 512}};  // B, H
  for (const auto& shape : shapes) {
    for (int32_t threads : {1, 2, 5}) {
      const std::string where =
          " at B=" + std::to_string(shape[0]) + " H=" + std::to_string(shape[1]);
      const Problem few = sizes(200, shape[0], 3, shape[1], dtype);
      const Problem many = sizes(5200, shape[0], 3, shape[1], dtype);
      const size_t gates = 5000 * shape[0] * 4 * shape[1] * element;
      const size_t more = cpu::forward_workspace_bytes(many, false, threads) -
                          cpu::forward_workspace_bytes(few, false, threads);
      suite.expect(more < gates / 8, "inference's workspace grows with T" + where);
      suite.expect(cpu::reserve_bytes(many) % 64 == 0, "reserve is no multiple of 64" + where);
      // nn.LSTM keeps gates and c too; what backward takes besides dgates must not add to it.
      Gradients all;
      for (int k = 0; k < 7; ++k) *gradient_slot(all, k) = &all;
      const size_t backward = cpu::backward_workspace_bytes(many, all, threads) -
                              cpu::backward_workspace_bytes(few, all, threads);
      suite.expect(backward <= gates + gates / 4, "backward's workspace grows by " +
                                                      std::to_string(backward) + " for dgates of " +
                                                      std::to_string(gates) + " bytes" + where);
    }
  }
  // Few rows: dW is summed a panel at a time, not in a second copy of it all, which would be of
  // computed elements. (A matrix unit takes dgates a second time, as columns.)
  for (int32_t threads : {1, 2}) {
    const Problem p = sizes(10, 8, 512, 512, dtype);
    Gradients no_weights, all;
    no_weights.dh0 = all.dh0 = &all;
    for (int k = 0; k < 7; ++k) *gradient_slot(all, k) = &all;
    all.dx = nullptr;
    const size_t more = cpu::backward_workspace_bytes(p, all, threads) -
                        cpu::backward_workspace_bytes(p, no_weights, threads);
    const size_t computed = std::max<size_t>(element, sizeof(float));
    suite.expect(more < (p.I + p.P) * 4 * p.H * computed / 2,
                 "dW takes " + std::to_string(more) + " bytes of workspace");
  }
  suite.end();
}

void expect_isas(Suite& suite) {
  suite.begin("instruction sets");
  const Isa before = cpu::active_isa();
  suite.expect(cpu::isa_runs_here(Isa::kPortable), "portable does not run here");
  suite.expect(cpu::isa_runs_here(before), "the active one does not run here");
  suite.expect(before != Isa::kEmulated512, "the emulation is active without being asked for");
  for (int32_t k = 0; k < 4; ++k) {
    const Isa isa = static_cast<Isa>(k);
    suite.expect(std::strcmp(cpu::isa_name(isa), kIsaNames[k]) == 0,
                 std::string(kIsaNames[k]) + " is called " + cpu::isa_name(isa));
    const Isa active = cpu::active_isa();
    const bool set = cpu::set_isa(isa);
    suite.expect(set == cpu::isa_runs_here(isa), std::string("set_isa lies about ") + kIsaNames[k]);
    suite.expect(cpu::active_isa() == (set ? isa : active), "active_isa is not what was set");
  }
  suite.expect(!cpu::set_isa(static_cast<Isa>(17)), "set_isa(17) accepted");
  cpu::set_isa(before);
  suite.end();
}

// The environment variable is read once, so a child process reads it.
void expect_environment(Suite& suite) {
  for (const char* wanted : {"portable", "nonsense"}) {
    suite.begin(std::string("FUSED_LSTM_ISA=") + wanted);
    const pid_t child = fork();
    if (child == 0) {
      setenv("FUSED_LSTM_ISA", wanted, 1);
      const bool named = std::strcmp(wanted, "portable") == 0;
      const Isa isa = cpu::active_isa();
      _exit(named ? isa != Isa::kPortable : !cpu::isa_runs_here(isa));
    }
    int status = -1;
    waitpid(child, &status, 0);
    suite.expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the variable is not obeyed");
    suite.end();
  }
}

void expect_explanation(Suite& suite, int64_t isa) {
  suite.begin(std::string("explain, ") + kIsaNames[isa]);
  cpu::set_isa(static_cast<Isa>(isa));
  const Problem p = sizes(28, 50, 28, 100, 0);
  char text[400];
  std::memset(text, 'x', sizeof text);
  cpu::explain(p, true, 2, text, sizeof text);
  suite.expect(std::memchr(text, 0, sizeof text) != nullptr, "no end of the text");
  suite.expect(std::strlen(text) > 10 && std::strchr(text, '\n') == nullptr, "not one line");
  suite.expect(std::strstr(text, kIsaNames[isa]) != nullptr, "does not name the instruction set");
  const Guarded few(8, 1);
  cpu::explain(p, true, 2, static_cast<char*>(few.data()), few.bytes());
  suite.expect(few.intact() && std::memchr(few.data(), 0, few.bytes()) != nullptr,
               "does not keep to text_bytes");
  suite.end();
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_contract");
  expect_environment(suite);  // first: nothing has asked for the active one yet
  expect_isas(suite);
  for (int64_t isa : suite.isas()) {
    expect_statuses(suite, isa);
    expect_explanation(suite, isa);
    for (int64_t dtype = 0; dtype < 4; ++dtype) expect_sizes(suite, isa, dtype);
  }
  return suite.finish();
}
