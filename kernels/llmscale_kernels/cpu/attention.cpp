// Causal attention of packed documents, forward and backward, in blocks (FlashAttention-2, arXiv:2307.08691):
// scores are never in memory as a whole. Everything is computed in float32; but where the processor multiplies
// bfloat16, weights and gradients of scores are rounded to it before they are multiplied, as GPUs do, too.
//
// A document may go on from another one, its beginning, as several answers to one prompt do: its tokens see all
// of that one's. A task is one document and one head; backward, a beginning with all that goes on from it, and one
// key-value head with all query heads that share it: so results do not depend on the number of threads, nor on
// what else lies in the row.

#include <algorithm>
#include <cmath>

#include "scratch.h"
#include "words.h"

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

thread_local Scratch scratch;

// So many rows are there: 0 up to the next multiple of BLOCK.
template <typename Word>
void fill_block(int64_t length, int64_t words, Word* to) {
  std::memset((void*)(to + length * words), 0, (up(length, BLOCK) - length) * words * sizeof(Word));
}

template <typename T>
void store_rows(const float* from, int64_t length, int64_t size, float scale, T* to, int64_t stride) {
  for (int64_t s = 0; s < length; ++s)
    for (int64_t d = 0; d < size; d += LANES) store(to + s * stride + d, load(from + s * size + d) * scale);
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

// What a document's tokens have of a tensor for one head, [length to a multiple of BLOCK, size].
template <typename T>
void load_own(const void* tensor, const Strides& of, const Document& document, int64_t head, int64_t size,
              WordOf<T>* to) {
  load_rows(place<T>(tensor, of, document.start, document.row, head), of.position, document.length, size, to);
  fill_block(document.length, size / WIDTH<WordOf<T>>, to);
}

// The same of all that they see: what comes before, then their own.
template <typename T>
void load_seen(const void* tensor, const Strides& of, const Document& document, int64_t head, int64_t size,
               WordOf<T>* to) {
  const int64_t words = size / WIDTH<WordOf<T>>;
  load_rows(place<T>(tensor, of, document.before_start, document.row, head), of.position, document.before, size, to);
  load_rows(place<T>(tensor, of, document.start, document.row, head), of.position, document.length, size,
            to + document.before * words);
  fill_block(document.before + document.length, words, to);
}

// Weights of one block of keys from products of queries and keys, in place; what was summed before is scaled down
// to the new largest score.
void weigh(float* scores, float scale, int64_t size, float& largest_score, Vector& total, float* output) {
  Vector most = load(scores);
  for (int64_t k = LANES; k < BLOCK; k += LANES) most = larger(most, load(scores + k));
  const float now = std::fmax(largest_score, largest(most) * scale);
  if (now != largest_score) {
    const float shrink = std::exp(largest_score - now);
    for (int64_t d = 0; d < size; d += LANES) store(output + d, load(output + d) * shrink);
    total *= shrink;
    largest_score = now;
  }
  for (int64_t k = 0; k < BLOCK; k += LANES) {
    const Vector weights = exponential(load(scores + k) * scale - now);
    store(scores + k, weights);
    total += weights;
  }
}

template <typename T>
void forward_task(const AttentionCall& call, const Document& document, int64_t head) {
  using Word = WordOf<T>;
  const int64_t row = document.row, start = document.start, length = document.length, size = call.head_size;
  const int64_t before = document.before, shared = head / (call.heads / call.key_value_heads);
  const int64_t words = size / WIDTH<Word>, block_words = BLOCK / WIDTH<Word>;
  const size_t own = up(length, BLOCK) * words, whole = up(before + length, BLOCK) * words;
  scratch.reserve(own + 3 * whole + BLOCK * (2 * BLOCK + size) + 64);
  Word *query = scratch.take<Word>(own), *rows_seen = scratch.take<Word>(whole), *key = scratch.take<Word>(whole);
  Word *value_memory = scratch.take<Word>(whole), *weight_memory = scratch.take<Word>(BLOCK * block_words);
  float *scores = scratch.take(BLOCK * BLOCK), *output = scratch.take(BLOCK * size);
  load_own<T>(call.query, call.of_query, document, head, size, query);
  load_seen<T>(call.key, call.of_key, document, shared, size, rows_seen);
  transpose_blocks(rows_seen, up(before + length, BLOCK), words, key);
  load_seen<T>(call.value, call.of_value, document, shared, size, rows_seen);
  const Word* value = in_columns(rows_seen, up(before + length, BLOCK), size, value_memory);
  float* log_sums = call.log_sums + (row * call.heads + head) * call.positions + start;
  for (int64_t i = 0; i < length; i += BLOCK) {
    const int64_t queries = length - i < BLOCK ? length - i : BLOCK, rows = up(queries, TILE_ROWS);
    float largest_score[BLOCK];
    Vector totals[BLOCK] = {};
    std::fill(largest_score, largest_score + BLOCK, -INFINITY);
    std::memset(output, 0, BLOCK * size * sizeof(float));
    for (int64_t j = first_block(before + i, call.window); j < before + i + queries; j += BLOCK) {
      multiply(rows, BLOCK, words, query + i * words, words, 1, key + j * words, BLOCK, scores, BLOCK, false);
      for (int64_t r = 0; r < queries; ++r) {
        const Seen keys = seen(before + i + r, j, call.window);
        if (keys.first >= keys.end) {
          std::memset(scores + r * BLOCK, 0, BLOCK * sizeof(float));
          continue;
        }
        hide(scores + r * BLOCK, keys);
        weigh(scores + r * BLOCK, call.scale, size, largest_score[r], totals[r], output + r * size);
      }
      const Word* weights = words_of(scores, rows * BLOCK, weight_memory);
      multiply(rows, size, block_words, weights, block_words, 1, value + j * words, size, output, size, true);
    }
    for (int64_t r = 0; r < queries; ++r) {
      const float total = sum(totals[r]);
      store_rows(output + r * size, 1, size, 1 / total,
                 place<T>(call.output, call.of_output, start + i + r, row, head), 0);
      log_sums[i + r] = largest_score[r] + std::log(total);
    }
  }
  scratch.give_back();
}

// What one document and query head differentiate by, and where that goes.
template <typename Word>
struct Backward {
  int64_t before, length, size, window;
  float scale;
  const Word *key_blocks, *value_blocks, *key_columns;
  const Word *query, *query_columns, *output_gradient, *output_gradient_columns;
  const float *log_sums, *inner;
  float *key_gradient, *value_gradient, *query_gradient;
  // Of one block.
  float *weights, *slopes;
  Word *weight_words, *slope_words, *column_words;
};

// Weights and the gradient of scores of one block, from products of queries and keys and the gradient of weights,
// in place.
template <typename Word>
void differentiate(const Backward<Word>& of, int64_t i, int64_t queries, int64_t j) {
  for (int64_t r = 0; r < queries; ++r) {
    float *weight = of.weights + r * BLOCK, *slope = of.slopes + r * BLOCK;
    hide(weight, seen(of.before + i + r, j, of.window));
    for (int64_t k = 0; k < BLOCK; k += LANES) {
      const Vector probability = exponential(load(weight + k) * of.scale - of.log_sums[i + r]);
      store(weight + k, probability);
      store(slope + k, probability * (load(slope + k) - of.inner[i + r]));
    }
  }
  const int64_t rows = up(queries, TILE_ROWS) - queries;
  std::memset(of.weights + queries * BLOCK, 0, rows * BLOCK * sizeof(float));
  std::memset(of.slopes + queries * BLOCK, 0, rows * BLOCK * sizeof(float));
}

template <typename Word>
void backward_head(const Backward<Word>& of) {
  const int64_t size = of.size, words = size / WIDTH<Word>, block_words = BLOCK / WIDTH<Word>;
  for (int64_t i = 0; i < of.length; i += BLOCK) {
    const int64_t queries = of.length - i < BLOCK ? of.length - i : BLOCK, rows = up(queries, TILE_ROWS);
    const int64_t row_words = rows / WIDTH<Word>, at_query = i * words;
    for (int64_t j = first_block(of.before + i, of.window); j < of.before + i + queries; j += BLOCK) {
      const int64_t at_key = j * words;
      multiply(rows, BLOCK, words, of.query + at_query, words, 1, of.key_blocks + at_key, BLOCK, of.weights, BLOCK,
               false);
      multiply(rows, BLOCK, words, of.output_gradient + at_query, words, 1, of.value_blocks + at_key, BLOCK,
               of.slopes, BLOCK, false);
      differentiate(of, i, queries, j);
      const Word* weights = words_of(of.weights, rows * BLOCK, of.weight_words);
      multiply(BLOCK, size, row_words, in_columns(weights, rows, BLOCK, of.column_words), 1, BLOCK,
               of.output_gradient_columns + at_query, size, of.value_gradient + j * size, size, true);
      const Word* slopes = words_of(of.slopes, rows * BLOCK, of.slope_words);
      multiply(BLOCK, size, row_words, in_columns(slopes, rows, BLOCK, of.column_words), 1, BLOCK,
               of.query_columns + at_query, size, of.key_gradient + j * size, size, true);
      multiply(rows, size, block_words, slopes, block_words, 1, of.key_columns + at_key, size,
               of.query_gradient + i * size, size, true);
    }
  }
}

// Memory for a family of documents, of which the longest has `own` tokens, and the one that sees most `whole`.
template <typename Word>
struct Buffers {
  Word *rows, *key_blocks, *value_blocks, *key_columns;
  Word *query, *query_columns, *output_gradient, *output_gradient_columns;
  Word *weight_words, *slope_words, *column_words;
  float *key_gradient, *value_gradient, *query_gradient, *inner, *weights, *slopes;

  Buffers(int64_t own, int64_t whole, int64_t size) {
    const int64_t words = size / WIDTH<Word>;
    scratch.reserve(whole * (4 * words + 2 * size) + own * (4 * words + size + 1) + 5 * BLOCK * BLOCK + 64);
    for (Word** of_whole : {&rows, &key_blocks, &value_blocks, &key_columns})
      *of_whole = scratch.take<Word>(whole * words);
    for (Word** of_own : {&query, &query_columns, &output_gradient, &output_gradient_columns})
      *of_own = scratch.take<Word>(own * words);
    for (Word** of_block : {&weight_words, &slope_words, &column_words})
      *of_block = scratch.take<Word>(BLOCK * BLOCK / WIDTH<Word>);
    for (float** of_whole : {&key_gradient, &value_gradient}) *of_whole = scratch.take(whole * size);
    query_gradient = scratch.take(own * size), inner = scratch.take(own);
    weights = scratch.take(BLOCK * BLOCK), slopes = scratch.take(BLOCK * BLOCK);
  }
};

// Of each token of a document the product of its output and its gradient.
template <typename T>
void multiply_outputs(const AttentionCall& call, const Document& document, int64_t head, float* inner) {
  for (int64_t s = 0; s < document.length; ++s) {
    const T* output = place<T>(call.output, call.of_output, document.start + s, document.row, head);
    const T* gradient =
        place<T>(call.output_gradient, call.of_output_gradient, document.start + s, document.row, head);
    Vector total{};
    for (int64_t d = 0; d < call.head_size; d += LANES) total += load(output + d) * load(gradient + d);
    inner[s] = sum(total);
  }
}

// Gradients of one document's queries, stored, and of all keys and values that they see, added in the buffers.
template <typename T>
void backward_document(const AttentionCall& call, const Document& document, int64_t shared,
                       const Buffers<WordOf<T>>& of) {
  using Word = WordOf<T>;
  const int64_t length = document.length, before = document.before, size = call.head_size;
  const int64_t words = size / WIDTH<Word>, own = up(length, BLOCK), whole = up(before + length, BLOCK);
  const int64_t group = call.heads / call.key_value_heads;
  load_seen<T>(call.value, call.of_value, document, shared, size, of.rows);
  transpose_blocks(of.rows, whole, words, of.value_blocks);
  load_seen<T>(call.key, call.of_key, document, shared, size, of.rows);
  transpose_blocks(of.rows, whole, words, of.key_blocks);
  const Word* key_columns = in_columns(of.rows, whole, size, of.key_columns);
  for (int64_t head = shared * group; head < (shared + 1) * group; ++head) {
    load_own<T>(call.query, call.of_query, document, head, size, of.query);
    load_own<T>(call.output_gradient, call.of_output_gradient, document, head, size, of.output_gradient);
    std::memset(of.query_gradient, 0, own * size * sizeof(float));
    multiply_outputs<T>(call, document, head, of.inner);
    backward_head(Backward<Word>{
        before, length, size, call.window, call.scale, of.key_blocks, of.value_blocks, key_columns, of.query,
        in_columns(of.query, own, size, of.query_columns), of.output_gradient,
        in_columns(of.output_gradient, own, size, of.output_gradient_columns),
        call.log_sums + (document.row * call.heads + head) * call.positions + document.start, of.inner,
        of.key_gradient, of.value_gradient, of.query_gradient, of.weights, of.slopes, of.weight_words,
        of.slope_words, of.column_words});
    store_rows(of.query_gradient, length, size, call.scale,
               place<T>(call.query_gradient, call.of_query_gradient, document.start, document.row, head),
               call.of_query_gradient.position);
  }
}

template <typename T>
void store_keys(const AttentionCall& call, const Document& document, int64_t shared, const Buffers<WordOf<T>>& of) {
  const int64_t size = call.head_size, first = document.before * size;
  store_rows(of.key_gradient + first, document.length, size, call.scale,
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
  const Buffers<WordOf<T>> of(longest, most, size);
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
