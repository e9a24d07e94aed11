// Matrices as products read them: along the dimension that is summed over they consist of words of 32 bits, a float
// or, where the processor multiplies those (AVX512_BF16), two bfloat16.
#pragma once

#include <type_traits>

#include "vector.h"

namespace llmscale {

struct Pair {
  bfloat16 first, second;
};

#if defined(__AVX512BF16__)
template <typename T>
using WordOf = std::conditional_t<std::is_same_v<T, bfloat16>, Pair, float>;
#else
template <typename T>
using WordOf = float;
#endif

// Elements of a word.
template <typename Word>
constexpr int64_t WIDTH = std::is_same_v<Word, Pair> ? 2 : 1;

constexpr int64_t BLOCK = 64;
constexpr int TILE_ROWS = 4;

inline int64_t up(int64_t number, int64_t unit) { return (number + unit - 1) / unit * unit; }

inline Vector load(const Pair* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

// total + left · right, of each lane's words.
inline Vector onto(Vector total, float left, Vector right) { return total + left * right; }

#if defined(__AVX512BF16__)
inline Vector onto(Vector total, Pair left, Vector right) {
  int32_t bits;
  std::memcpy(&bits, &left, sizeof bits);
  return (Vector)_mm512_dpbf16_ps((__m512)total, (__m512bh)_mm512_set1_epi32(bits), (__m512bh)right);
}
#endif

// `count` floats, a multiple of LANES, in words. Floats are that already.
inline const float* words_of(const float* from, int64_t, float*) { return from; }

#if defined(__AVX512BF16__)
inline const Pair* words_of(const float* from, int64_t count, Pair* to) {
  for (int64_t place = 0; place < count; place += LANES) {
    const __m256bh halves = _mm512_cvtneps_pbh((__m512)load(from + place));
    std::memcpy(to + place / 2, &halves, sizeof halves);
  }
  return to;
}
#endif

// Rows of a tensor, [length, size / WIDTH] words.
template <typename Word, typename T>
void load_rows(const T* from, int64_t stride, int64_t length, int64_t size, Word* to) {
  for (int64_t s = 0; s < length; ++s, from += stride, to += size / WIDTH<Word>)
    if constexpr (sizeof(Word) == sizeof(T) * WIDTH<Word>)
      std::memcpy(to, from, size * sizeof(T));
    else
      for (int64_t d = 0; d < size; d += LANES) store(to + d, load(from + d));
}

// [length, words] as blocks [words, BLOCK], one after the other; `length` is a multiple of BLOCK.
template <typename Word>
void transpose_blocks(const Word* from, int64_t length, int64_t words, Word* to) {
  for (int64_t block = 0; block < length; block += BLOCK, to += words * BLOCK)
    for (int64_t s = 0; s < BLOCK; ++s)
      for (int64_t w = 0; w < words; ++w) to[w * BLOCK + s] = from[(block + s) * words + w];
}

// The same rows in words of one column, [length / WIDTH, size]: what is summed over is then the rows. Floats are
// that already.
inline const float* in_columns(const float* rows, int64_t, int64_t, float*) { return rows; }

inline const Pair* in_columns(const Pair* rows, int64_t length, int64_t size, Pair* to) {
  const bfloat16* from = &rows->first;
  for (int64_t s = 0; s < length; s += 2, from += 2 * size)
    for (int64_t d = 0; d < size; d += LANES) {
      const Integers words = (Integers)load(from + size + d) | ((Integers)load(from + d) >> 16 & 0xffff);
      std::memcpy(to + s / 2 * size + d, &words, sizeof words);
    }
  return to;
}

// C[rows, columns] (+)= A[rows, inner] · B[inner, columns], for ROWS rows and VECTORS vectors of columns. `inner`
// and the strides of A and B count words.
template <int ROWS, int VECTORS, typename Word>
inline void multiply_tile(int64_t inner, const Word* a, int64_t a_row, int64_t a_inner, const Word* b,
                          int64_t b_inner, float* c, int64_t c_row, bool is_added) {
  Vector total[ROWS][VECTORS];
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) total[r][v] = is_added ? load(c + r * c_row + v * LANES) : Vector{};
  for (int64_t k = 0; k < inner; ++k) {
    Vector right[VECTORS];
    for (int v = 0; v < VECTORS; ++v) right[v] = load(b + k * b_inner + v * LANES);
    for (int r = 0; r < ROWS; ++r) {
      const Word left = a[r * a_row + k * a_inner];
      for (int v = 0; v < VECTORS; ++v) total[r][v] = onto(total[r][v], left, right[v]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) store(c + r * c_row + v * LANES, total[r][v]);
}

// As above, of any multiples: `rows` of TILE_ROWS, `columns` of 16.
template <typename Word>
inline void multiply(int64_t rows, int64_t columns, int64_t inner, const Word* a, int64_t a_row, int64_t a_inner,
                     const Word* b, int64_t b_inner, float* c, int64_t c_row, bool is_added) {
  constexpr int VECTORS = LANES == 16 ? 4 : 2;
  int64_t first = 0;
  for (; first + VECTORS * LANES <= columns; first += VECTORS * LANES)
    for (int64_t row = 0; row < rows; row += TILE_ROWS)
      multiply_tile<TILE_ROWS, VECTORS>(inner, a + row * a_row, a_row, a_inner, b + first, b_inner,
                                        c + row * c_row + first, c_row, is_added);
  for (; first < columns; first += LANES)
    for (int64_t row = 0; row < rows; row += TILE_ROWS)
      multiply_tile<TILE_ROWS, 1>(inner, a + row * a_row, a_row, a_inner, b + first, b_inner,
                                  c + row * c_row + first, c_row, is_added);
}

}  // namespace llmscale
