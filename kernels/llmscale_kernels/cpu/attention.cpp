// Causal attention of packed documents, forward and backward, in blocks (FlashAttention-2, arXiv:2307.08691):
// scores are never in memory as a whole. Everything is computed in float32.
//
// A document may go on from another one, its beginning, as several answers to one prompt do: its tokens see all
// of that one's. A task is one document and one head; backward, a beginning with all that goes on from it, and one
// key-value head with all query heads that share it: so results do not depend on the number of threads, nor on
// what else lies in the row.

#include <algorithm>
#include <cmath>
#include <vector>

#include "vector.h"

using namespace llmscale;

extern "C" {

// Of a row: its first position, how many, and the same of what it goes on from, which is a document, too.
struct Document {
  int64_t row, start, length, before_start, before;
};

struct AttentionCall {
  const void *query, *key, *value;
  void* output;
  float* log_sums;  // [rows, heads, positions]
  const void* output_gradient;
  void *query_gradient, *key_gradient, *value_gradient;
  Strides of_query, of_key, of_value, of_output, of_output_gradient;
  Strides of_query_gradient, of_key_gradient, of_value_gradient;
  const Document* documents;  // each beginning, then all that go on from it
  const int64_t* families;    // number of the first document of each beginning, and in the end that of all
  int64_t number_of_documents, number_of_families, positions, heads, key_value_heads, head_size;
  int64_t window;  // of positions that are seen, the own one included; 0: all
  float scale;
  int32_t is_bfloat16, threads;
};
}

namespace {

constexpr int64_t BLOCK = 64;

int64_t up(int64_t number, int64_t unit) { return (number + unit - 1) / unit * unit; }

// Memory of one thread, handed out from the front. What a long document has taken is given back after it.
class Scratch {
 public:
  void reserve(size_t floats) {
    if (memory_.size() < floats + 64) memory_.resize(floats + 64);
    taken_ = (64 - reinterpret_cast<uintptr_t>(memory_.data()) % 64) / sizeof(float) % 16;
  }
  float* take(size_t floats) {
    float* begin = memory_.data() + taken_;
    taken_ += up(floats, 16);
    return begin;
  }
  void give_back() {
    if (memory_.size() > KEPT_FLOATS) std::vector<float>().swap(memory_);
  }

 private:
  static constexpr size_t KEPT_FLOATS = 4 << 20;
  std::vector<float> memory_;
  size_t taken_ = 0;
};

thread_local Scratch scratch;

template <typename T>
void load_rows(const T* from, int64_t stride, int64_t length, int64_t size, float scale, float* to) {
  for (int64_t s = 0; s < length; ++s)
    for (int64_t d = 0; d < size; d += LANES) store(to + s * size + d, load(from + s * stride + d) * scale);
}

// So many rows are there: 0 up to the next multiple of BLOCK.
void fill_block(int64_t length, int64_t size, float* to) {
  std::memset(to + length * size, 0, (up(length, BLOCK) - length) * size * sizeof(float));
}

template <typename T>
void store_rows(const float* from, int64_t length, int64_t size, float scale, T* to, int64_t stride) {
  for (int64_t s = 0; s < length; ++s)
    for (int64_t d = 0; d < size; d += LANES) store(to + s * stride + d, load(from + s * size + d) * scale);
}

// [length, size] as blocks [size, BLOCK], one after the other.
void transpose_blocks(const float* from, int64_t length, int64_t size, float* to) {
  for (int64_t block = 0; block < length; block += BLOCK, to += size * BLOCK)
    for (int64_t s = 0; s < BLOCK; ++s)
      for (int64_t d = 0; d < size; ++d) to[d * BLOCK + s] = from[(block + s) * size + d];
}

// The keys of a block that a query sees: [first, end), counted in the block.
struct Seen {
  int64_t first, end;
};

Seen seen(int64_t query, int64_t block, int64_t window) {
  const int64_t first = window && query - window + 1 > block ? query - window + 1 - block : 0;
  const int64_t end = query + 1 - block < BLOCK ? query + 1 - block : BLOCK;
  return {first < BLOCK ? first : BLOCK, end > 0 ? end : 0};
}

void hide(float* scores, Seen seen) {
  for (int64_t k = 0; k < seen.first; ++k) scores[k] = -INFINITY;
  for (int64_t k = seen.end; k < BLOCK; ++k) scores[k] = -INFINITY;
}

int64_t first_block(int64_t query, int64_t window) {
  return window && query >= window ? (query - window + 1) / BLOCK * BLOCK : 0;
}

template <typename T>
T* place(const void* tensor, const Strides& of, int64_t position, int64_t row, int64_t head) {
  return (T*)tensor + position * of.position + row * of.row + head * of.head;
}

// What a document's tokens have of a tensor for one head, as float32 [length to a multiple of BLOCK, size].
template <typename T>
void load_own(const void* tensor, const Strides& of, const Document& document, int64_t head, int64_t size,
              float scale, float* to) {
  load_rows(place<T>(tensor, of, document.start, document.row, head), of.position, document.length, size, scale, to);
  fill_block(document.length, size, to);
}

// The same of all that they see: what comes before, then their own.
template <typename T>
void load_seen(const void* tensor, const Strides& of, const Document& document, int64_t head, int64_t size,
               float* to) {
  load_rows(place<T>(tensor, of, document.before_start, document.row, head), of.position, document.before, size, 1,
            to);
  float* own = to + document.before * size;
  load_rows(place<T>(tensor, of, document.start, document.row, head), of.position, document.length, size, 1, own);
  fill_block(document.before + document.length, size, to);
}

// Weights of one block of keys from its scores, in place; what was summed before is scaled down to the new
// largest score.
void weigh(float* scores, int64_t size, float& largest_score, float& total, float* output) {
  Vector most = load(scores);
  for (int64_t k = LANES; k < BLOCK; k += LANES) most = larger(most, load(scores + k));
  const float now = std::fmax(largest_score, largest(most));
  Vector added{};
  for (int64_t k = 0; k < BLOCK; k += LANES) {
    const Vector weights = exponential(load(scores + k) - now);
    store(scores + k, weights);
    added += weights;
  }
  if (now != largest_score) {
    const float shrink = std::exp(largest_score - now);
    for (int64_t d = 0; d < size; d += LANES) store(output + d, load(output + d) * shrink);
    total *= shrink;
    largest_score = now;
  }
  total += sum(added);
}

template <typename T>
void forward_task(const AttentionCall& call, const Document& document, int64_t head) {
  const int64_t row = document.row, start = document.start, length = document.length, size = call.head_size;
  const int64_t before = document.before, shared = head / (call.heads / call.key_value_heads);
  const size_t own = up(length, BLOCK) * size, whole = up(before + length, BLOCK) * size;
  scratch.reserve(own + 3 * whole + BLOCK * (BLOCK + size) + 64);
  float *query = scratch.take(own), *key = scratch.take(whole), *key_blocks = scratch.take(whole);
  float *value = scratch.take(whole), *scores = scratch.take(BLOCK * BLOCK), *output = scratch.take(BLOCK * size);
  load_own<T>(call.query, call.of_query, document, head, size, call.scale, query);
  load_seen<T>(call.key, call.of_key, document, shared, size, key);
  load_seen<T>(call.value, call.of_value, document, shared, size, value);
  transpose_blocks(key, before + length, size, key_blocks);
  float* log_sums = call.log_sums + (row * call.heads + head) * call.positions + start;
  for (int64_t i = 0; i < length; i += BLOCK) {
    const int64_t queries = length - i < BLOCK ? length - i : BLOCK, rows = up(queries, TILE_ROWS);
    float largest_score[BLOCK], total[BLOCK];
    for (int64_t r = 0; r < BLOCK; ++r) largest_score[r] = -INFINITY, total[r] = 0;
    std::memset(output, 0, BLOCK * size * sizeof(float));
    for (int64_t j = first_block(before + i, call.window); j < before + i + queries; j += BLOCK) {
      multiply(rows, BLOCK, size, query + i * size, size, 1, key_blocks + j * size, BLOCK, scores, BLOCK, false);
      for (int64_t r = 0; r < queries; ++r) {
        const Seen keys = seen(before + i + r, j, call.window);
        if (keys.first >= keys.end) {
          std::memset(scores + r * BLOCK, 0, BLOCK * sizeof(float));
          continue;
        }
        hide(scores + r * BLOCK, keys);
        weigh(scores + r * BLOCK, size, largest_score[r], total[r], output + r * size);
      }
      multiply(rows, size, BLOCK, scores, BLOCK, 1, value + j * size, size, output, size, true);
    }
    for (int64_t r = 0; r < queries; ++r) {
      store_rows(output + r * size, 1, size, 1 / total[r],
                 place<T>(call.output, call.of_output, start + i + r, row, head), 0);
      log_sums[i + r] = largest_score[r] + std::log(total[r]);
    }
  }
  scratch.give_back();
}

// What one query head adds to the gradients of the keys and values that it reads.
struct Backward {
  int64_t before, length, size, window;
  const float *key, *key_blocks, *value_blocks;
  float *key_gradient, *value_gradient;
};

// Weights and the gradient of scores of one block, from scores and the gradient of weights, in place.
void differentiate(const Backward& of, int64_t i, int64_t queries, int64_t j, const float* log_sums,
                   const float* inner, float* weights, float* slopes) {
  for (int64_t r = 0; r < queries; ++r) {
    float *weight = weights + r * BLOCK, *slope = slopes + r * BLOCK;
    hide(weight, seen(of.before + i + r, j, of.window));
    for (int64_t k = 0; k < BLOCK; k += LANES) {
      const Vector probability = exponential(load(weight + k) - log_sums[i + r]);
      store(weight + k, probability);
      store(slope + k, probability * (load(slope + k) - inner[i + r]));
    }
  }
  const int64_t rows = up(queries, TILE_ROWS) - queries;
  std::memset(weights + queries * BLOCK, 0, rows * BLOCK * sizeof(float));
  std::memset(slopes + queries * BLOCK, 0, rows * BLOCK * sizeof(float));
}

void backward_head(const Backward& of, const float* query, const float* output_gradient,
                   const float* log_sums, const float* inner, float* query_gradient, float* weights,
                   float* slopes) {
  const int64_t size = of.size;
  for (int64_t i = 0; i < of.length; i += BLOCK) {
    const int64_t queries = of.length - i < BLOCK ? of.length - i : BLOCK, rows = up(queries, TILE_ROWS);
    for (int64_t j = first_block(of.before + i, of.window); j < of.before + i + queries; j += BLOCK) {
      multiply(rows, BLOCK, size, query + i * size, size, 1, of.key_blocks + j * size, BLOCK, weights, BLOCK,
               false);
      multiply(rows, BLOCK, size, output_gradient + i * size, size, 1, of.value_blocks + j * size, BLOCK, slopes,
               BLOCK, false);
      differentiate(of, i, queries, j, log_sums, inner, weights, slopes);
      multiply(BLOCK, size, rows, weights, 1, BLOCK, output_gradient + i * size, size,
               of.value_gradient + j * size, size, true);
      multiply(BLOCK, size, rows, slopes, 1, BLOCK, query + i * size, size, of.key_gradient + j * size, size,
               true);
      multiply(rows, size, BLOCK, slopes, BLOCK, 1, of.key + j * size, size, query_gradient + i * size, size,
               true);
    }
  }
}

// Memory for a family of documents, of which the largest has `own` elements of a head, and sees `whole`.
struct Buffers {
  float *key, *key_blocks, *value_blocks, *key_gradient, *value_gradient;
  float *query, *query_gradient, *output_gradient, *output, *inner, *weights, *slopes;

  Buffers(size_t own, size_t whole, int64_t longest) {
    scratch.reserve(5 * whole + 4 * own + longest + 2 * BLOCK * BLOCK + 64);
    for (float** of_whole : {&key, &key_blocks, &value_blocks, &key_gradient, &value_gradient})
      *of_whole = scratch.take(whole);
    for (float** of_own : {&query, &query_gradient, &output_gradient, &output}) *of_own = scratch.take(own);
    inner = scratch.take(longest), weights = scratch.take(BLOCK * BLOCK), slopes = scratch.take(BLOCK * BLOCK);
  }
};

// Gradients of one document's queries, stored, and of all keys and values that they see, added in the buffers.
template <typename T>
void backward_document(const AttentionCall& call, const Document& document, int64_t shared, const Buffers& of) {
  const int64_t length = document.length, before = document.before, size = call.head_size;
  const int64_t group = call.heads / call.key_value_heads;
  load_seen<T>(call.value, call.of_value, document, shared, size, of.key);
  transpose_blocks(of.key, before + length, size, of.value_blocks);
  load_seen<T>(call.key, call.of_key, document, shared, size, of.key);
  transpose_blocks(of.key, before + length, size, of.key_blocks);
  const Backward seen{before, length, size, call.window, of.key, of.key_blocks, of.value_blocks, of.key_gradient,
                      of.value_gradient};
  for (int64_t head = shared * group; head < (shared + 1) * group; ++head) {
    load_own<T>(call.query, call.of_query, document, head, size, call.scale, of.query);
    load_own<T>(call.output, call.of_output, document, head, size, 1, of.output);
    load_own<T>(call.output_gradient, call.of_output_gradient, document, head, size, 1, of.output_gradient);
    std::memset(of.query_gradient, 0, up(length, BLOCK) * size * sizeof(float));
    for (int64_t s = 0; s < length; ++s) {
      Vector total{};
      for (int64_t d = 0; d < size; d += LANES)
        total += load(of.output + s * size + d) * load(of.output_gradient + s * size + d);
      of.inner[s] = sum(total);
    }
    const float* log_sums = call.log_sums + (document.row * call.heads + head) * call.positions + document.start;
    backward_head(seen, of.query, of.output_gradient, log_sums, of.inner, of.query_gradient, of.weights, of.slopes);
    store_rows(of.query_gradient, length, size, call.scale,
               place<T>(call.query_gradient, call.of_query_gradient, document.start, document.row, head),
               call.of_query_gradient.position);
  }
}

template <typename T>
void store_keys(const AttentionCall& call, const Document& document, int64_t shared, const Buffers& of) {
  const int64_t size = call.head_size, first = document.before * size;
  store_rows(of.key_gradient + first, document.length, size, 1,
             place<T>(call.key_gradient, call.of_key_gradient, document.start, document.row, shared),
             call.of_key_gradient.position);
  store_rows(of.value_gradient + first, document.length, size, 1,
             place<T>(call.value_gradient, call.of_value_gradient, document.start, document.row, shared),
             call.of_value_gradient.position);
}

// Gradients of the beginning's keys and values grow with each document that goes on from it, and come last.
template <typename T>
void backward_task(const AttentionCall& call, int64_t family, int64_t shared) {
  const int64_t size = call.head_size;
  const Document *beginning = call.documents + call.families[family], *end = call.documents + call.families[family + 1];
  int64_t longest = 0, most = 0;
  for (const Document* document = beginning; document < end; ++document) {
    longest = std::max(longest, up(document->length, BLOCK));
    most = std::max(most, up(document->before + document->length, BLOCK));
  }
  const Buffers of(longest * size, most * size, longest);
  for (const Document* document = beginning; document < end; ++document) {
    const int64_t first = document->before * size, own = most * size - first;
    std::memset(of.key_gradient + first, 0, own * sizeof(float));
    std::memset(of.value_gradient + first, 0, own * sizeof(float));
    backward_document<T>(call, *document, shared, of);
    if (document != beginning) store_keys<T>(call, *document, shared, of);
  }
  store_keys<T>(call, *beginning, shared, of);
  scratch.give_back();
}

}  // namespace

extern "C" void attention_forward(const AttentionCall* call) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(call->threads)
  for (int64_t task = 0; task < call->number_of_documents * call->heads; ++task)
    FOR_TYPE(call->is_bfloat16, {
      forward_task<T>(*call, call->documents[task / call->heads], task % call->heads);
    })
}

extern "C" void attention_backward(const AttentionCall* call) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(call->threads)
  for (int64_t task = 0; task < call->number_of_families * call->key_value_heads; ++task)
    FOR_TYPE(call->is_bfloat16, {
      backward_task<T>(*call, task / call->key_value_heads, task % call->key_value_heads);
    })
}
