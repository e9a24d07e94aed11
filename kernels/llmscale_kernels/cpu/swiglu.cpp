// SwiGLU (arXiv:2002.05202): SiLU of one half of the features times the other half.

#include "vector.h"

using namespace llmscale;

namespace {

Vector sigmoid(Vector x) {
  const Vector kept = x < -80.0f ? Vector{} - 80.0f : x;
  return 1.0f / (1.0f + exponential(-kept));
}

}  // namespace

extern "C" void swiglu_forward(const void* gate_and_up, void* output, int64_t rows, int64_t features,
                               int32_t is_bfloat16, int32_t threads) {
  FOR_TYPE(is_bfloat16, {
    _Pragma("omp parallel for schedule(static) num_threads(threads)")
    for (int64_t row = 0; row < rows; ++row) {
      const T* from = (const T*)gate_and_up + 2 * row * features;
      for (int64_t f = 0; f < features; f += LANES) {
        const Vector gate = load(from + f);
        store((T*)output + row * features + f, gate * sigmoid(gate) * load(from + features + f));
      }
    }
  })
}

extern "C" void swiglu_backward(const void* gate_and_up, const void* gradient, void* result, int64_t rows,
                                int64_t features, int32_t is_bfloat16, int32_t threads) {
  FOR_TYPE(is_bfloat16, {
    _Pragma("omp parallel for schedule(static) num_threads(threads)")
    for (int64_t row = 0; row < rows; ++row) {
      const T* from = (const T*)gate_and_up + 2 * row * features;
      T* to = (T*)result + 2 * row * features;
      for (int64_t f = 0; f < features; f += LANES) {
        const Vector gate = load(from + f);
        const Vector open = sigmoid(gate);
        const Vector incoming = load((const T*)gradient + row * features + f);
        store(to + f, incoming * load(from + features + f) * open * (1.0f + gate * (1.0f - open)));
        store(to + features + f, incoming * gate * open);
      }
    }
  })
}
