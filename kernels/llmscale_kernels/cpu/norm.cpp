// RMSNorm (arXiv:1910.07467), of a sum of two where there is a residual: one pass over memory each way.

#include <cmath>

#include "vector.h"

using namespace llmscale;

namespace {

template <typename T>
float scale_of(const T* hidden, int64_t size, float epsilon) {
  Vector squares{};
  for (int64_t h = 0; h < size; h += LANES) {
    const Vector x = load(hidden + h);
    squares += x * x;
  }
  return 1 / std::sqrt(sum(squares) / size + epsilon);
}

template <typename T>
void add(const T* hidden, const T* residual, int64_t size, T* total) {
  for (int64_t h = 0; h < size; h += LANES) store(total + h, load(hidden + h) + load(residual + h));
}

// total_gradient: what comes in for the sum besides; null where nothing does.
template <typename T>
void differentiate(const T* hidden, const T* weight, float scale, const T* gradient, const T* total_gradient,
                   int64_t size, T* hidden_gradient, float* weight_gradient) {
  Vector along{};
  for (int64_t h = 0; h < size; h += LANES) {
    const Vector normalised = load(hidden + h) * scale, incoming = load(gradient + h);
    store(weight_gradient + h, load(weight_gradient + h) + incoming * normalised);
    along += incoming * load(weight + h) * normalised;
  }
  const float mean = sum(along) / size;
  for (int64_t h = 0; h < size; h += LANES) {
    const Vector normalised = load(hidden + h) * scale;
    Vector result = (load(gradient + h) * load(weight + h) - normalised * mean) * scale;
    if (total_gradient) result += load(total_gradient + h);
    store(hidden_gradient + h, result);
  }
}

}  // namespace

// residual, total: null where there is none.
extern "C" void rms_norm_forward(const void* hidden, const void* residual, const void* weight, void* output,
                                 void* total, float* scales, int64_t rows, int64_t size, float epsilon,
                                 int32_t is_bfloat16, int32_t threads) {
  FOR_TYPE(is_bfloat16, {
    _Pragma("omp parallel for schedule(static) num_threads(threads)")
    for (int64_t row = 0; row < rows; ++row) {
      const T* from = (const T*)hidden + row * size;
      if (residual) {
        add(from, (const T*)residual + row * size, size, (T*)total + row * size);
        from = (const T*)total + row * size;
      }
      const float scale = scales[row] = scale_of(from, size, epsilon);
      for (int64_t h = 0; h < size; h += LANES)
        store((T*)output + row * size + h, load(from + h) * scale * load((const T*)weight + h));
    }
  })
}

// weight_gradients: [parts, size], zeros; each part sums the rows of its own, so that nothing depends on threads.
extern "C" void rms_norm_backward(const void* hidden, const void* weight, const float* scales, const void* gradient,
                                  const void* total_gradient, void* hidden_gradient, float* weight_gradients,
                                  int64_t rows, int64_t size, int64_t parts, int32_t is_bfloat16, int32_t threads) {
  const int64_t of_part = (rows + parts - 1) / parts;
  FOR_TYPE(is_bfloat16, {
    _Pragma("omp parallel for schedule(static) num_threads(threads)")
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t end = (part + 1) * of_part < rows ? (part + 1) * of_part : rows;
      for (int64_t row = part * of_part; row < end; ++row)
        differentiate((const T*)hidden + row * size, (const T*)weight, scales[row], (const T*)gradient + row * size,
                      total_gradient ? (const T*)total_gradient + row * size : nullptr, size,
                      (T*)hidden_gradient + row * size, weight_gradients + part * size);
    }
  })
}
