// Rotary position embedding (arXiv:2104.09864): the first half of a head against the second.

#include "vector.h"

using namespace llmscale;

extern "C" {

// sign -1 turns back.
struct RotaryCall {
  const void *from, *cosine, *sine;
  void* to;
  Strides of_from, of_to, of_angles;
  int64_t positions, rows, heads, head_size;
  float sign;
  int32_t is_bfloat16, threads;
};
}

namespace {

template <typename T>
void turn(const T* from, T* to, const T* cosine, const T* sine, int64_t half, float sign) {
  for (int64_t d = 0; d < half; d += LANES) {
    const Vector c = load(cosine + d), s = load(sine + d) * sign;
    const Vector first = load(from + d), second = load(from + half + d);
    store(to + d, first * c - second * s);
    store(to + half + d, second * c + first * s);
  }
}

}  // namespace

extern "C" void rotary(const RotaryCall* call) {
  FOR_TYPE(call->is_bfloat16, {
    _Pragma("omp parallel for collapse(2) schedule(static) num_threads(call->threads)")
    for (int64_t position = 0; position < call->positions; ++position)
      for (int64_t row = 0; row < call->rows; ++row) {
        const int64_t angle = position * call->of_angles.position + row * call->of_angles.row;
        for (int64_t head = 0; head < call->heads; ++head) {
          const T* from = (const T*)call->from + position * call->of_from.position + row * call->of_from.row +
                          head * call->of_from.head;
          T* to = (T*)call->to + position * call->of_to.position + row * call->of_to.row + head * call->of_to.head;
          turn(from, to, (const T*)call->cosine + angle, (const T*)call->sine + angle, call->head_size / 2,
               call->sign);
        }
      }
  })
}
