// One new token a row: its key and value go into the cache, and it attends to what the cache holds of its row.
// Everything is computed in float32.

#include <cmath>
#include <type_traits>
#include <vector>

#include "vector.h"

using namespace llmscale;

extern "C" {

struct DecodeCall {
  const void *query, *key, *value;  // of the new tokens: [rows, heads or key-value heads, size]
  void *keys, *values;              // the cache, [rows, key-value heads, places, size] each
  void* output;                     // [rows, heads, size], contiguous
  const int64_t* places;            // of each row's new token
  int64_t query_row, query_head, key_row, key_head, value_row, value_head, cache_row, cache_head;  // strides
  int64_t rows, heads, key_value_heads, head_size;
  int64_t prefix, window;  // places that all see; how many of the others are seen, 0: all
  float scale;
  int32_t is_bfloat16, threads;
};
}

namespace {

thread_local std::vector<float> scratch;

// So many vectors of a head at a time as registers hold well, then the rest by ones.
template <typename Work>
void in_columns(int64_t size, Work work) {
  int64_t d = 0;
  for (; d + 4 * LANES <= size; d += 4 * LANES) work(std::integral_constant<int, 4>{}, d);
  for (; d < size; d += LANES) work(std::integral_constant<int, 1>{}, d);
}

// weights[k] += query · keys[k]
template <int VECTORS, typename T, typename Place>
void score(const float* query, const T* keys, Place place, int64_t seen, float* weights) {
  Vector asked[VECTORS];
  for (int v = 0; v < VECTORS; ++v) asked[v] = load(query + v * LANES);
  for (int64_t k = 0; k < seen; ++k) {
    const T* key = keys + place(k);
    Vector products = asked[0] * load(key);
    for (int v = 1; v < VECTORS; ++v) products += asked[v] * load(key + v * LANES);
    weights[k] += sum(products);
  }
}

// Exponentials of the scores, in their place; returns their sum.
float weigh(float* weights, int64_t seen) {
  Vector most = Vector{} - INFINITY, total{};
  for (int64_t k = 0; k < seen; k += LANES) most = larger(most, load_part(weights + k, seen - k, -INFINITY));
  const float highest = largest(most);
  for (int64_t k = 0; k < seen; k += LANES) {
    const Vector part = exponential(load_part(weights + k, seen - k, -INFINITY) - highest);
    store_part(weights + k, seen - k, part);
    total += part;
  }
  return sum(total);
}

// output = Σ weights[k] · values[k]
template <int VECTORS, typename T, typename Place>
void combine(const float* weights, const T* values, Place place, int64_t seen, float* output) {
  Vector total[VECTORS] = {};
  for (int64_t k = 0; k < seen; ++k)
    for (int v = 0; v < VECTORS; ++v) total[v] += weights[k] * load(values + place(k) + v * LANES);
  for (int v = 0; v < VECTORS; ++v) store(output + v * LANES, total[v]);
}

template <typename T>
void attend(const DecodeCall& call, int64_t row, int64_t shared) {
  const int64_t size = call.head_size, group = call.heads / call.key_value_heads, end = call.places[row] + 1;
  const int64_t begin = call.window && end - call.window > call.prefix ? end - call.window : call.prefix;
  T* keys = (T*)call.keys + row * call.cache_row + shared * call.cache_head;
  T* values = (T*)call.values + row * call.cache_row + shared * call.cache_head;
  const int64_t own = call.places[row] * size, bytes = size * sizeof(T);
  std::memcpy(keys + own, (const T*)call.key + row * call.key_row + shared * call.key_head, bytes);
  std::memcpy(values + own, (const T*)call.value + row * call.value_row + shared * call.value_head, bytes);
  const int64_t seen = call.prefix + end - begin;
  scratch.resize(seen + 2 * size + LANES);
  float *query = scratch.data(), *output = query + size, *weights = output + size;
  const auto place = [&](int64_t k) { return (k < call.prefix ? k : k - call.prefix + begin) * size; };
  for (int64_t head = shared * group; head < (shared + 1) * group; ++head) {
    const T* from = (const T*)call.query + row * call.query_row + head * call.query_head;
    for (int64_t d = 0; d < size; d += LANES) store(query + d, load(from + d) * call.scale);
    std::memset(weights, 0, seen * sizeof(float));
    in_columns(size, [&](auto vectors, int64_t d) {
      score<vectors>(query + d, keys + d, place, seen, weights);
    });
    const float total = weigh(weights, seen);
    in_columns(size, [&](auto vectors, int64_t d) {
      combine<vectors>(weights, values + d, place, seen, output + d);
    });
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
