// Rows of logits: the logarithm of the sum of their exponentials, and from it the gradient of their
// cross-entropy, in their place.

#include <cmath>

#include "vector.h"

using namespace llmscale;

namespace {

template <typename T>
float log_sum(const T* logits, int64_t columns) {
  Vector most = Vector{} - INFINITY;
  for (int64_t c = 0; c < columns; c += LANES) most = larger(most, load_part(logits + c, columns - c, -INFINITY));
  const float highest = largest(most);
  Vector total{};
  for (int64_t c = 0; c < columns; c += LANES)
    total += exponential(load_part(logits + c, columns - c, -INFINITY) - highest);
  return highest + std::log(sum(total));
}

}  // namespace

// logits: [rows, width], of which the first `columns` count. labels count from this rank's first column.
extern "C" void cross_entropy_forward(const void* logits, const int64_t* labels, float* log_sums, float* label_logits,
                                      int64_t rows, int64_t stride, int64_t, int64_t columns,
                                      int32_t is_bfloat16, int32_t threads) {
  FOR_TYPE(is_bfloat16, {
    _Pragma("omp parallel for schedule(static) num_threads(threads)")
    for (int64_t row = 0; row < rows; ++row) {
      const T* from = (const T*)logits + row * stride;
      log_sums[row] = log_sum(from, columns);
      const bool is_mine = labels[row] >= 0 && labels[row] < columns;
      label_logits[row] = is_mine ? load_part(from + labels[row], 1, 0)[0] : 0;
    }
  })
}

extern "C" void cross_entropy_backward(void* logits, const int64_t* labels, const float* log_sums,
                                       const float* gradients, int64_t rows, int64_t stride, int64_t width,
                                       int64_t columns, int32_t is_bfloat16, int32_t threads) {
  FOR_TYPE(is_bfloat16, {
    _Pragma("omp parallel for schedule(static) num_threads(threads)")
    for (int64_t row = 0; row < rows; ++row) {
      T* from = (T*)logits + row * stride;
      const bool is_mine = labels[row] >= 0 && labels[row] < columns;
      const float label_logit = is_mine ? load_part(from + labels[row], 1, 0)[0] : 0;
      for (int64_t c = 0; c < columns; c += LANES) {
        const Vector likely = exponential(load_part(from + c, columns - c, -INFINITY) - log_sums[row]);
        store_part(from + c, columns - c, likely * gradients[row]);
      }
      if (is_mine) {
        const float likely = std::exp(label_logit - log_sums[row]);
        store_part(from + labels[row], 1, (Vector{} + (likely - 1)) * gradients[row]);
      }
      std::memset(from + columns, 0, (width - columns) * sizeof(T));
    }
  })
}
