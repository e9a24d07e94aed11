// Vectors of floats and what is done with them, in the compiler's own vector types: the same source is
// compiled for each kind of processor (see build.py).
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

// The body for the type of the tensors: T is float or bfloat16 in it.
#define FOR_TYPE(is_bfloat16, ...)     \
  if (is_bfloat16) {                   \
    using T = llmscale::bfloat16;      \
    __VA_ARGS__                        \
  } else {                             \
    using T = float;                   \
    __VA_ARGS__                        \
  }

namespace llmscale {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

// Of a tensor [position, row, head, size], in elements; the last dimension is contiguous.
struct Strides {
  int64_t position, row, head;
};

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

struct bfloat16 {
  uint16_t bits;
};

inline Vector load(const float* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

inline Vector load(const bfloat16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return (Vector)(__builtin_convertvector(halves, Integers) << 16);
}

inline void store(float* to, Vector vector) { std::memcpy(to, &vector, sizeof vector); }

// To the nearest, ties to even, as torch rounds. Not a number stays none. Where the processor does it, what is below
// the normal numbers becomes 0.
inline void store(bfloat16* to, Vector vector) {
#if defined(__AVX512BF16__)
  const __m256bh halves = _mm512_cvtneps_pbh((__m512)vector);
  std::memcpy(to, &halves, sizeof halves);
#else
  Integers bits = (Integers)vector;
  Integers rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  rounded = vector == vector ? rounded : (bits >> 16) | 0x40;
  Halves halves = __builtin_convertvector(rounded, Halves);
  std::memcpy(to, &halves, sizeof halves);
#endif
}

// The first `count` elements, of which there may be less than a vector; `beyond` in the other lanes.
template <typename T>
inline Vector load_part(const T* from, int64_t count, float beyond) {
  if (count >= LANES) return load(from);
  T held[LANES] = {};
  std::memcpy(held, from, count * sizeof(T));
  Vector vector = load(held);
  for (int64_t lane = count; lane < LANES; ++lane) vector[lane] = beyond;
  return vector;
}

template <typename T>
inline void store_part(T* to, int64_t count, Vector vector) {
  if (count >= LANES) return store(to, vector);
  T held[LANES];
  store(held, vector);
  std::memcpy(to, held, count * sizeof(T));
}

// Halves are taken together until one lane is left: in so many steps as the number of lanes has bits.
typedef float Quarter __attribute__((vector_size(16)));
typedef int32_t Order __attribute__((vector_size(16)));

template <typename Combine>
inline float reduced(Vector vector, Combine combine) {
  Quarter parts[LANES / 4];
  std::memcpy(parts, &vector, sizeof vector);
  for (int count = LANES / 8; count; count /= 2)
    for (int part = 0; part < count; ++part) parts[part] = combine(parts[part], parts[part + count]);
  Quarter all = combine(parts[0], __builtin_shuffle(parts[0], Order{2, 3, 0, 1}));
  all = combine(all, __builtin_shuffle(all, Order{1, 0, 3, 2}));
  return all[0];
}

inline float sum(Vector vector) {
  return reduced(vector, [](Quarter a, Quarter b) { return a + b; });
}

inline float largest(Vector vector) {
  return reduced(vector, [](Quarter a, Quarter b) { return a > b ? a : b; });
}

inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// e^x to 2 units in the last place; 0 below -87, where a float has no more. Not for x above 88. What is not a
// number stays none.
inline Vector exponential(Vector x) {
  const float shift = 12582912.0f;  // 1.5 · 2^23: what is added to it is rounded to an integer
  Vector kept = x < -87.0f ? Vector{} - 87.0f : x;
  Vector shifted = kept * 1.44269504f + shift;
  Vector whole = shifted - shift;
  Vector rest = kept - whole * 0.693359375f + whole * 2.12194440e-4f;
  Vector power = Vector{} + 1.0f / 5040;
  power = power * rest + 1.0f / 720;
  power = power * rest + 1.0f / 120;
  power = power * rest + 1.0f / 24;
  power = power * rest + 1.0f / 6;
  power = power * rest + 0.5f;
  power = power * rest + 1.0f;
  power = power * rest + 1.0f;
  Integers exponent = ((Integers)shifted << 23) + 0x3f800000;
  Vector result = power * (Vector)exponent;
  return x < -87.0f ? Vector{} : result;
}

}  // namespace llmscale
