// What tokens weigh when one of them is drawn: e^(logit / temperature), 1 for the likeliest of a row.

#include <cmath>

#include "vector.h"

using namespace llmscale;

extern "C" {

struct TokenWeightsCall {
  const void* logits;  // [rows, vocabulary]
  float* weights;      // [rows, vocabulary to a multiple of block], contiguous
  double* sums;        // of each block
  int64_t logits_row;  // stride
  int64_t rows, vocabulary, block;
  float temperature;
  int32_t is_bfloat16, threads;
};
}

namespace {

template <typename T>
void weigh(const TokenWeightsCall& call, int64_t row) {
  const T* logits = (const T*)call.logits + row * call.logits_row;
  Vector most = Vector{} - INFINITY;
  for (int64_t v = 0; v < call.vocabulary; v += LANES)
    most = larger(most, load_part(logits + v, call.vocabulary - v, -INFINITY));
  const float highest = largest(most) / call.temperature;
  const int64_t blocks = (call.vocabulary + call.block - 1) / call.block;
  for (int64_t block = 0; block < blocks; ++block) {
    float* weights = call.weights + (row * blocks + block) * call.block;
    Vector total{};
    for (int64_t place = 0; place < call.block; place += LANES) {
      const int64_t token = block * call.block + place;
      Vector weight{};
      if (token < call.vocabulary) {
        const Vector logit = load_part(logits + token, call.vocabulary - token, -INFINITY);
        weight = exponential(logit / call.temperature - highest);
      }
      store(weights + place, weight);
      total += weight;
    }
    call.sums[row * blocks + block] = sum(total);
  }
}

}  // namespace

extern "C" void token_weights(const TokenWeightsCall* call) {
  FOR_TYPE(call->is_bfloat16, {
    _Pragma("omp parallel for schedule(static) num_threads(call->threads)")
    for (int64_t row = 0; row < call->rows; ++row) weigh<T>(*call, row);
  })
}
