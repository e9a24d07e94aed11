// Softmax of rows of logits: what losses need of it, and the gradient in the place of the logits.
//
// With z = logits / temperature and p = softmax(z): log Σ exp z, the label's z and, where it is asked for, the
// entropy H = log Σ exp z − Σ p z; then ∂(−log p_label)/∂z = p − [label] and ∂H/∂z = −p (log p + H).

#include <cmath>

#include "vector.h"

using namespace llmscale;

extern "C" {

struct CrossEntropyCall {
  void* logits;           // [rows, width], of which the first `columns` count
  const int64_t* labels;  // they count from this rank's first column, and may lie outside its columns
  float *log_sums, *label_logits;
  float* entropies;  // none: they are not wanted
  const float *of_losses, *of_entropies;  // gradients; the second may be missing
  int64_t rows, stride, width, columns;
  float temperature;
  int32_t is_bfloat16, threads;
};
}

namespace {

// Of a probability that is 0: p log p is 0 all the same.
constexpr float LEAST_LOGARITHM = -1e4f;

template <typename T>
Vector scaled(const T* logits, int64_t count, float inverse) {
  return load_part(logits, count, -INFINITY) * inverse;
}

template <typename T>
void summarise(const CrossEntropyCall& call, int64_t row) {
  const T* logits = (const T*)call.logits + row * call.stride;
  const float inverse = 1 / call.temperature;
  Vector most = Vector{} - INFINITY;
  for (int64_t c = 0; c < call.columns; c += LANES) most = larger(most, scaled(logits + c, call.columns - c, inverse));
  const float highest = largest(most);
  Vector total{}, products{};
  for (int64_t c = 0; c < call.columns; c += LANES) {
    const Vector shifted = scaled(logits + c, call.columns - c, inverse) - highest;
    const Vector part = exponential(shifted);
    total += part;
    if (call.entropies) products += part * larger(shifted, Vector{} + LEAST_LOGARITHM);
  }
  const float all = sum(total);
  call.log_sums[row] = highest + std::log(all);
  if (call.entropies) call.entropies[row] = call.columns ? std::log(all) - sum(products) / all : 0;
  const int64_t label = call.labels[row];
  const bool is_mine = label >= 0 && label < call.columns;
  call.label_logits[row] = is_mine ? scaled(logits + label, 1, inverse)[0] : 0;
}

template <typename T>
void differentiate(const CrossEntropyCall& call, int64_t row) {
  T* logits = (T*)call.logits + row * call.stride;
  const float inverse = 1 / call.temperature, log_sum = call.log_sums[row], of_loss = call.of_losses[row];
  const float of_entropy = call.of_entropies ? call.of_entropies[row] : 0;
  const float entropy = call.of_entropies ? call.entropies[row] : 0;
  const int64_t label = call.labels[row];
  const bool is_mine = label >= 0 && label < call.columns;
  const auto slopes = [&](Vector z) {
    const Vector logarithm = z - log_sum;
    Vector factor = Vector{} + of_loss;
    if (of_entropy != 0) factor -= of_entropy * (larger(logarithm, Vector{} + LEAST_LOGARITHM) + entropy);
    return exponential(logarithm) * factor;
  };
  const float at_label = is_mine ? slopes(scaled(logits + label, 1, inverse))[0] : 0;
  for (int64_t c = 0; c < call.columns; c += LANES) {
    const int64_t count = call.columns - c;
    store_part(logits + c, count, slopes(scaled(logits + c, count, inverse)) * inverse);
  }
  if (is_mine) store_part(logits + label, 1, (Vector{} + (at_label - of_loss)) * inverse);
  std::memset(logits + call.columns, 0, (call.width - call.columns) * sizeof(T));
}

}  // namespace

extern "C" void cross_entropy_forward(const CrossEntropyCall* call) {
  FOR_TYPE(call->is_bfloat16, {
    _Pragma("omp parallel for schedule(static) num_threads(call->threads)")
    for (int64_t row = 0; row < call->rows; ++row) summarise<T>(*call, row);
  })
}

extern "C" void cross_entropy_backward(const CrossEntropyCall* call) {
  FOR_TYPE(call->is_bfloat16, {
    _Pragma("omp parallel for schedule(static) num_threads(call->threads)")
    for (int64_t row = 0; row < call->rows; ++row) differentiate<T>(*call, row);
  })
}
