// The index logic between a row-major product of csrc/kernels/cuda/cuda.h and a BLAS, which counts
// columns: a plain column-major gemm, that knows nothing of rows, gets what column_major() makes of
// random products and must give what plain row-major loops give. Also which products are refused,
// and which GPUs a list of compiled architectures serves.
#include "../../csrc/binding/architectures.h"
#include "../../csrc/binding/column_major.h"
#include "suite.h"

using namespace fused_lstm;

namespace {

constexpr float kPadding = -77.0f;

struct Matrix {
  int64_t rows, columns, row;  // row: stride of the rows
  std::vector<float> values;
  Matrix(int64_t r, int64_t c, int64_t padding, Random& random) : rows(r), columns(c) {
    row = c + padding;
    for (int64_t i = 0; i < r * row; ++i) {
      const bool inside = i % row < c;
      values.push_back(inside ? static_cast<float>(random.below(9) - 4) : kPadding);
    }
  }
  float& at(int64_t r, int64_t c) { return values[r * row + c]; }
};

// What any BLAS's gemm says of itself, with its own checks of leading dimensions.
bool column_major_gemm(const ColumnMajorProduct& p, float beta) {
  const float* const a = static_cast<const float*>(p.a);
  const float* const b = static_cast<const float*>(p.b);
  float* const c = static_cast<float*>(p.c);
  if (p.lda < (p.a_transposed ? p.k : p.m) || p.ldb < (p.b_transposed ? p.n : p.k)) return false;
  if (p.ldc < p.m) return false;
  for (int64_t column = 0; column < p.n; ++column) {
    for (int64_t row = 0; row < p.m; ++row) {
      float sum = 0;
      for (int64_t i = 0; i < p.k; ++i) {
        sum += (p.a_transposed ? a[i + row * p.lda] : a[row + i * p.lda]) *
               (p.b_transposed ? b[column + i * p.ldb] : b[i + column * p.ldb]);
      }
      float& out = c[row + column * p.ldc];
      out = sum + (beta == 0 ? 0 : beta * out);
    }
  }
  return true;
}

void test_product(Suite& suite, Random& random) {
  cuda::Product p;
  p.m = 1 + random.below(7), p.n = 1 + random.below(7), p.k = 1 + random.below(7);
  p.a_transposed = random.below(2), p.b_transposed = random.below(2);
  p.beta = static_cast<float>(random.below(2));
  Matrix a(p.a_transposed ? p.k : p.m, p.a_transposed ? p.m : p.k, random.below(4), random);
  Matrix b(p.b_transposed ? p.n : p.k, p.b_transposed ? p.k : p.n, random.below(4), random);
  Matrix c(p.m, p.n, random.below(4), random);
  p.a = a.values.data(), p.b = b.values.data(), p.c = c.values.data();
  // The stride of a single row is never used and may be anything.
  p.a_row = a.rows == 1 ? random.below(99) : a.row;
  p.b_row = b.rows == 1 ? random.below(99) : b.row;
  p.c_row = c.rows == 1 ? random.below(99) : c.row;
  suite.begin("product " + std::to_string(p.m) + " x " + std::to_string(p.n) + " x " +
              std::to_string(p.k) + (p.a_transposed ? ", A transposed" : "") +
              (p.b_transposed ? ", B transposed" : "") + (p.beta == 0 ? "" : ", added"));
  Matrix want = c;
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      float sum = p.beta == 0 ? 0 : c.at(i, j);
      for (int64_t l = 0; l < p.k; ++l) {
        sum +=
            (p.a_transposed ? a.at(l, i) : a.at(i, l)) * (p.b_transposed ? b.at(j, l) : b.at(l, j));
      }
      want.at(i, j) = sum;
    }
  }
  const std::optional<ColumnMajorProduct> made = column_major(p);
  suite.expect(made && column_major_gemm(*made, p.beta), "refused");
  suite.expect(c.values == want.values, "another result than row-major loops give");
  suite.end();
}

void test_refused(Suite& suite) {
  float value = 0;
  cuda::Product good;
  good.m = good.n = good.k = 2;
  good.a_row = good.b_row = good.c_row = 2;
  good.a = good.b = &value;
  good.c = &value;
  suite.begin("products that no BLAS takes");
  suite.expect(column_major(good).has_value(), "a good product is refused");
  for (int64_t cuda::Product::* stride :
       {&cuda::Product::a_row, &cuda::Product::b_row, &cuda::Product::c_row}) {
    cuda::Product bad = good;
    bad.*stride = 1;
    suite.expect(!column_major(bad), "rows that overlap are taken");
  }
  cuda::Product empty = good;
  empty.k = 0;
  suite.expect(!column_major(empty), "an empty product is taken");
  suite.end();
}

void test_architectures(Suite& suite) {
  const std::string list = "7.5,8.0,9.0a,12.0+PTX";
  suite.begin("architectures");
  for (const int32_t arch : {75, 80, 86, 89, 90, 120, 121, 130}) {
    suite.expect(architecture_obstacle(list, arch).empty(), std::to_string(arch) + " is served");
  }
  for (const int32_t arch : {100, 103}) {
    suite.expect(!architecture_obstacle(list, arch).empty(), std::to_string(arch) + " is not");
  }
  suite.expect(!architecture_obstacle("8.6", 80).empty(), "8.6 does not run on 8.0");
  suite.expect(!architecture_obstacle("9.0a", 100).empty(), "9.0a runs on 9.0 alone");
  suite.expect(code_for("8.0+PTX", 90) == 80, "PTX of 8.0 is no code for 9.0");
  suite.expect(code_for("7.5,8.0,8.6,9.0a", 90) == 90, "9.0 runs its own code");
  suite.expect(code_for("7.5,8.0", 89) == 80, "8.9 runs 8.0's code");
  const std::string old = architecture_obstacle(list, 70);
  suite.expect(old.find("7.0, the kernels need 7.5") != std::string::npos, old);
  const std::string remedy = architecture_obstacle(list, 100);
  suite.expect(remedy.find("FUSED_LSTM_ARCHS=10.0") != std::string::npos, remedy);
  suite.end();
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite(argc, argv, "test_column_major", nullptr);  // no CPU kernel
  Random random(static_cast<uint64_t>(suite.seed()) + 7000);
  for (int64_t i = 0; i < suite.random_cases(400); ++i) test_product(suite, random);
  test_refused(suite);
  test_architectures(suite);
  return suite.finish();
}
