// What the binding remembers of families that were measured: which calls share a measurement, and
// that one call's choice is no other's.
#include "../../csrc/binding/choices.h"
#include "suite.h"

using namespace fused_lstm;

namespace {

Problem problem(int64_t T) {
  Problem p;
  p.dtype = DType::kFloat32;
  p.T = T, p.B = 16, p.I = 28, p.H = 512, p.P = 512, p.D = 1;
  return p;
}

void test_classes(Suite& suite) {
  suite.begin("classes of calls");
  const CallClass call(problem(700), true, true);
  suite.expect(call.text() == "float32 as TF32 T<=1024 B=16 I=28 H=512 P=512 D=1 training",
               call.text());
  const auto same = [&](const CallClass& other) {
    const bool equal = !(call < other) && !(other < call);
    suite.expect(equal == (call.text() == other.text()), "order and text disagree");
    return equal;
  };
  suite.expect(same(CallClass(problem(1024), true, true)), "as many steps, to a power of two");
  suite.expect(same(CallClass(problem(513), true, true)), "the fewest steps of a class");
  suite.expect(!same(CallClass(problem(1025), true, true)), "more steps");
  suite.expect(!same(CallClass(problem(512), true, true)), "fewer steps");
  suite.expect(!same(CallClass(problem(700), false, true)), "inference");
  suite.expect(!same(CallClass(problem(700), true, false)), "strict float32");
  for (int64_t Problem::* size : {&Problem::B, &Problem::I, &Problem::H, &Problem::P}) {
    Problem other = problem(700);
    other.*size += 1;
    suite.expect(!same(CallClass(other, true, true)), "another size");
  }
  Problem other = problem(700);
  other.D = 2;
  suite.expect(!same(CallClass(other, true, true)), "two directions");
  other = problem(700);
  const int64_t rows = 16;
  other.batch_sizes = &rows;
  suite.expect(!same(CallClass(other, true, true)), "packed");
  other = problem(700);
  other.dtype = DType::kBFloat16;
  suite.expect(!same(CallClass(other, true, true)), "another dtype");
  suite.expect(CallClass(other, true, true).text() == CallClass(other, true, false).text(),
               "TF32 is of float32 alone");
  suite.expect(CallClass(problem(1), true, true).most_steps == 1, "one step");
  suite.end();
}

void test_choices(Suite& suite) {
  suite.begin("what is remembered");
  Choices choices;
  const CallClass call(problem(700), true, true), other(problem(700), false, true);
  suite.expect(!choices.find(0, call), "something before anything was set");
  choices.set(0, call, cuda::Family::kGrid);
  suite.expect(choices.find(0, CallClass(problem(800), true, true)) == cuda::Family::kGrid,
               "not for a call of the class");
  suite.expect(!choices.find(0, other) && !choices.find(1, call), "for another call or device too");
  choices.set(0, call, cuda::Family::kStepwise);
  suite.expect(choices.find(0, call) == cuda::Family::kStepwise, "not changed");
  choices.set(0, call, std::nullopt);
  suite.expect(!choices.find(0, call), "not forgotten");
  suite.end();
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_choices", nullptr);  // no kernel
  test_classes(suite);
  test_choices(suite);
  return suite.finish();
}
