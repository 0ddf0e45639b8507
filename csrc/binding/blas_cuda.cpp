// cublasGemmEx by dlsym. Its types stand here in cuBLAS's own numbers, which are part of its ABI.
#include "blas_cuda.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <library_types.h>

#include "column_major.h"
#include "stable.h"

namespace fused_lstm {
namespace {

// cublasGemmEx_64 of cublas_v2.h, since cuBLAS 12.
using GemmEx = int (*)(void* handle, int a_operation, int b_operation, int64_t m, int64_t n,
                       int64_t k, const void* alpha, const void* a, cudaDataType a_type,
                       int64_t lda, const void* b, cudaDataType b_type, int64_t ldb,
                       const void* beta, void* c, cudaDataType c_type, int64_t ldc,
                       int compute_type, int algorithm);
constexpr int kNoTranspose = 0, kTranspose = 1;  // CUBLAS_OP_N, CUBLAS_OP_T
constexpr int kDefaultAlgorithm = -1;            // CUBLAS_GEMM_DEFAULT
constexpr int kCompute32F = 68;                  // CUBLAS_COMPUTE_32F
constexpr int kCompute32FPedantic = 69;          // CUBLAS_COMPUTE_32F_PEDANTIC
constexpr int kCompute64F = 70;                  // CUBLAS_COMPUTE_64F
constexpr int kCompute32FTf32 = 77;              // CUBLAS_COMPUTE_32F_FAST_TF32

// The function of the library that torch's handles belong to. Its name carries CUDA's major
// version, which _extension.py has compared; only what is loaded already is found.
GemmEx find_gemm() {
  const std::string name = "libcublas.so." + std::to_string(CUDART_VERSION / 1000);
  void* const library = dlopen(name.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  return reinterpret_cast<GemmEx>(dlsym(library, "cublasGemmEx_64"));
}

cudaDataType library_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return CUDA_R_64F;
    case DType::kBFloat16:
      return CUDA_R_16BF;
    case DType::kFloat16:
      return CUDA_R_16F;
    default:
      return CUDA_R_32F;
  }
}

// Pedantic, because plain COMPUTE_32F follows the handle's math mode, which is torch's switch for
// matmul and not the one for RNNs. For halves it would leave out the tensor cores.
int compute_type(const cuda::Product& p) {
  if (p.in == DType::kFloat64) return kCompute64F;
  if (p.in != DType::kFloat32) return kCompute32F;
  return p.math == cuda::Math::kTf32 ? kCompute32FTf32 : kCompute32FPedantic;
}

}  // namespace

bool TorchBlas::multiply(void* context, const cuda::Product& product) {
  return static_cast<TorchBlas*>(context)->queue(product);
}

bool TorchBlas::queue(const cuda::Product& product) {
  static const GemmEx gemm = find_gemm();
  if (gemm == nullptr) {
    error_ = "torch has no libcublas.so." + std::to_string(CUDART_VERSION / 1000) +
             " loaded: build fused_lstm with the CUDA major version that torch has";
    return false;
  }
  if (handle_ == nullptr && torch_get_current_cuda_blas_handle(&handle_) != TORCH_SUCCESS) {
    error_ = "torch could not make a cuBLAS handle";
    return false;
  }
  const std::optional<ColumnMajorProduct> p = column_major(product);
  if (!p) {
    error_ = "a product of matrices whose rows overlap";
    return false;
  }
  const bool is_double = product.in == DType::kFloat64;
  const double one64 = 1, beta64 = product.beta;
  const float one32 = 1, beta32 = product.beta;
  const cudaDataType in = library_type(product.in);
  const int status =
      gemm(handle_, p->a_transposed ? kTranspose : kNoTranspose,
           p->b_transposed ? kTranspose : kNoTranspose, p->m, p->n, p->k,
           is_double ? static_cast<const void*>(&one64) : &one32, p->a, in, p->lda, p->b, in,
           p->ldb, is_double ? static_cast<const void*>(&beta64) : &beta32, p->c,
           library_type(product.out), p->ldc, compute_type(product), kDefaultAlgorithm);
  if (status == 0) return true;
  error_ = "cuBLAS refused a product with status " + std::to_string(status);
  return false;
}

}  // namespace fused_lstm
