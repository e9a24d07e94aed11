// Attention of one new token a row to what a cache holds of the row. Everything is computed in float32.

#include <cmath>
#include <vector>

#include "vector.h"

using namespace llmscale;

extern "C" {

struct DecodeCall {
  const void *query, *keys, *values;  // [rows, heads, size]; [rows, key-value heads, places, size] each
  void* output;                       // as the query
  const int64_t* places;              // of each row's new token
  int64_t cache_row, cache_head;      // strides
  int64_t rows, heads, key_value_heads, head_size;
  int64_t prefix, window;  // places that all see; how many of the others are seen, 0: all
  float scale;
  int32_t is_bfloat16, threads;
};
}

namespace {

thread_local std::vector<float> scratch;

template <typename T>
void attend(const DecodeCall& call, int64_t row, int64_t shared) {
  const int64_t size = call.head_size, group = call.heads / call.key_value_heads, end = call.places[row] + 1;
  const int64_t begin = call.window && end - call.window > call.prefix ? end - call.window : call.prefix;
  const T* keys = (const T*)call.keys + row * call.cache_row + shared * call.cache_head;
  const T* values = (const T*)call.values + row * call.cache_row + shared * call.cache_head;
  const int64_t seen = call.prefix + end - begin;
  scratch.resize(seen + 2 * size + LANES);
  float *query = scratch.data(), *output = query + size, *weights = output + size;
  const auto place = [&](int64_t k) { return (k < call.prefix ? k : k - call.prefix + begin) * size; };
  for (int64_t head = shared * group; head < (shared + 1) * group; ++head) {
    const T* from = (const T*)call.query + (row * call.heads + head) * size;
    for (int64_t d = 0; d < size; d += LANES) store(query + d, load(from + d) * call.scale);
    float highest = -INFINITY, total = 0;
    for (int64_t k = 0; k < seen; ++k) {
      Vector products{};
      for (int64_t d = 0; d < size; d += LANES) products += load(query + d) * load(keys + place(k) + d);
      weights[k] = sum(products);
      highest = std::fmax(highest, weights[k]);
    }
    for (int64_t k = 0; k < seen; k += LANES) {
      const Vector part = exponential(load_part(weights + k, seen - k, -INFINITY) - highest);
      store_part(weights + k, seen - k, part);
      total += sum(part);
    }
    std::memset(output, 0, size * sizeof(float));
    for (int64_t k = 0; k < seen; ++k)
      for (int64_t d = 0; d < size; d += LANES)
        store(output + d, load(output + d) + weights[k] * load(values + place(k) + d));
    T* to = (T*)call.output + (row * call.heads + head) * size;
    for (int64_t d = 0; d < size; d += LANES) store(to + d, load(output + d) / total);
  }
}

}  // namespace

extern "C" void decode(const DecodeCall* call) {
  FOR_TYPE(call->is_bfloat16, {
    _Pragma("omp parallel for schedule(dynamic, 4) num_threads(call->threads)")
    for (int64_t task = 0; task < call->rows * call->key_value_heads; ++task)
      attend<T>(*call, task / call->key_value_heads, task % call->key_value_heads);
  })
}
