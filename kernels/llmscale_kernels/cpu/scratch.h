// Memory for what is worked on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace llmscale {

// Of one thread, handed out from the front; kept for the next time, unless it is much.
class Scratch {
 public:
  void reserve(size_t floats) {
    if (memory_.size() < floats + 64) memory_.resize(floats + 64);
    taken_ = (64 - reinterpret_cast<uintptr_t>(memory_.data()) % 64) / sizeof(float) % 16;
  }
  template <typename Word = float>
  Word* take(size_t words) {
    float* begin = memory_.data() + taken_;
    taken_ += (words + 15) / 16 * 16;
    return reinterpret_cast<Word*>(begin);
  }
  void give_back() {
    if (memory_.size() > KEPT_FLOATS) std::vector<float>().swap(memory_);
  }

 private:
  static constexpr size_t KEPT_FLOATS = 4 << 20;
  std::vector<float> memory_;
  size_t taken_ = 0;
};

}  // namespace llmscale
