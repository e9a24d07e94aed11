// The products of linear layers, for processors of AVX-512: both factors are laid in the order in which registers
// read them, the right one in panels of as many columns as a tile has, and each tile of the result is summed in
// registers from beginning to end (as in Goto and van de Geijn, doi:10.1145/1356052.1356053, with blocks of rows
// and columns only). So an element does not depend on the number of threads, nor on what other rows there are.

#include <algorithm>

#include "scratch.h"
#include "words.h"

using namespace llmscale;

extern "C" {

// result (+)= left · right. Strides are those of the first dimension in memory, in elements; the other one is
// contiguous.
struct ProductCall {
  const void* left;   // [rows, inner], or transposed
  const void* right;  // [inner, columns], or transposed
  void* result;       // [rows, columns]
  int64_t rows, columns, inner, left_stride, right_stride, result_stride;
  int32_t left_is_transposed, right_is_transposed, is_added;
  int32_t is_bfloat16, result_is_float, threads;
};
}

#if defined(__AVX512F__)
#include <immintrin.h>

namespace {

constexpr int ROWS = 8, VECTORS = 3;  // of a tile: 24 sums and a few factors are what the registers hold
constexpr int64_t COLUMNS = VECTORS * LANES;
constexpr int64_t UNIT_ROWS = 64, LEAST_UNIT_ROWS = 32;  // that a thread takes at a time
constexpr int64_t UNITS_OF_A_THREAD = 4;
constexpr int64_t GROUP_WORDS = 4 << 20;  // of the right factor that are laid out at a time
constexpr int64_t AHEAD = 8;              // words that are fetched early, where the next one lies in another page

thread_local Scratch shared_memory, own_memory;

// LANES words of one column each. Floats are that already.
Integers words_at(const float* row, const float*) { return (Integers)load(row); }

// Of two rows.
Integers words_at(const bfloat16* row, const bfloat16* next) {
  return (Integers)load(next) | ((Integers)load(row) >> 16 & 0xffff);
}

// The same of `count` columns, fewer than LANES; 0 in the others.
template <typename T>
Integers words_at(const T* row, const T* next, int64_t count) {
  T held[2][LANES] = {};
  std::memcpy(held[0], row, count * sizeof(T));
  std::memcpy(held[1], next, count * sizeof(T));
  return words_at(held[0], held[1]);
}

// Rows that are summed over, [inner, size], as strips of WIDE columns, [words, WIDE] each, 0 where there are no more.
template <int WIDE, typename T, typename Word>
void lay_rows(const T* from, int64_t stride, int64_t inner, int64_t size, int64_t strip, Word* to) {
  static const T nothing[COLUMNS + UNIT_ROWS] = {};
  for (int64_t k = 0; k < inner; k += WIDTH<Word>, to += WIDE) {
    const T* row = from + k * stride;
    const T* next = k + 1 < inner ? row + stride : nothing;
    for (int64_t c = 0; c < size; c += 64 / sizeof(T))
      for (int64_t ahead = 0; ahead < WIDTH<Word>; ++ahead)
        __builtin_prefetch(row + (AHEAD + ahead) * stride + c);
    for (int64_t c = 0; c < size; c += LANES) {
      const Integers words = c + LANES <= size ? words_at(row + c, next + c) : words_at(row + c, next + c, size - c);
      if constexpr (WIDE % LANES == 0) {
        std::memcpy(to + c / WIDE * strip + c % WIDE, &words, sizeof words);
      } else {
        static_assert(2 * WIDE == LANES);
        std::memcpy(to + c / WIDE * strip, &words, sizeof words / 2);
        std::memcpy(to + (c / WIDE + 1) * strip, (const char*)&words + sizeof words / 2, sizeof words / 2);
      }
    }
  }
}

// Sixteen rows of sixteen words, turned.
void transpose(const int32_t* from, int64_t stride, int32_t* to, int64_t to_stride) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(from + i * stride);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
      a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; ++j) {
      b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88);
      b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; ++j) {
    _mm512_storeu_si512(to + j * to_stride, _mm512_shuffle_i32x4(b[j], b[j + 8], 0x88));
    _mm512_storeu_si512(to + (j + 8) * to_stride, _mm512_shuffle_i32x4(b[j], b[j + 8], 0xdd));
  }
}

// A panel, [words, COLUMNS], of columns that lie in rows: [columns, words].
template <typename Word>
void lay_columns(const Word* from, int64_t stride, int64_t words, int64_t columns, Word* to) {
  for (int64_t c = 0; c < std::min(COLUMNS, up(columns, LANES)); c += LANES)
    for (int64_t w = 0; w < words; w += LANES) {
      if (c + LANES <= columns && w + LANES <= words) {
        transpose((const int32_t*)(from + c * stride + w), stride, (int32_t*)(to + w * COLUMNS + c), COLUMNS);
        continue;
      }
      for (int64_t k = w; k < std::min(w + LANES, words); ++k)
        for (int64_t j = c; j < c + LANES; ++j) to[k * COLUMNS + j] = j < columns ? from[j * stride + k] : Word{};
    }
}

// A tile, of as many vectors as there are columns.
template <typename Word>
void multiply_columns(int64_t columns, int64_t words, const Word* left, int64_t left_row, int64_t left_inner,
                      const Word* panel, float* tile) {
  if (columns > 2 * LANES)
    multiply_tile<ROWS, 3>(words, left, left_row, left_inner, panel, COLUMNS, tile, COLUMNS, false);
  else if (columns > LANES)
    multiply_tile<ROWS, 2>(words, left, left_row, left_inner, panel, COLUMNS, tile, COLUMNS, false);
  else
    multiply_tile<ROWS, 1>(words, left, left_row, left_inner, panel, COLUMNS, tile, COLUMNS, false);
}

template <typename R>
void put(const float* tile, int64_t rows, int64_t columns, bool is_added, R* to, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r, tile += COLUMNS, to += stride)
    for (int64_t c = 0; c < columns; c += LANES) {
      const Vector before = is_added ? load_part(to + c, columns - c, 0) : Vector{};
      store_part(to + c, columns - c, before + load(tile + c));
    }
}

template <typename T, typename Word, typename R>
class Multiplication {
 public:
  explicit Multiplication(const ProductCall& call)
      : call_(call), words_(up(call.inner, WIDTH<Word>) / WIDTH<Word>), panel_(words_ * COLUMNS) {
    panels_ = up(call.columns, COLUMNS) / COLUMNS;
    // Large units only where each thread gets several: the panels are read half as often.
    is_long_ = call.rows >= UNIT_ROWS * UNITS_OF_A_THREAD * call.threads;
  }

  void run() {
    const int64_t in_group = std::min(panels_, std::max<int64_t>(1, GROUP_WORDS / panel_));
    shared_memory.reserve(in_group * panel_);
    Word* memory = shared_memory.take<Word>(in_group * panel_);
#pragma omp parallel num_threads(call_.threads)
    {
      for (int64_t first = 0; first < panels_; first += in_group) {
        const int64_t end = std::min(first + in_group, panels_);
#pragma omp for schedule(static)
        for (int64_t panel = first; panel < end; ++panel) lay_panel(panel, memory + (panel - first) * panel_);
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < call_.rows; row += unit_rows()) multiply_rows(row, first, end, memory);
      }
      own_memory.give_back();
    }
    shared_memory.give_back();
  }

 private:
  int64_t unit_rows() const { return is_long_ ? UNIT_ROWS : LEAST_UNIT_ROWS; }

  // Of a panel: all are of about the same number of vectors, since tiles of one vector are slow.
  int64_t first_column(int64_t panel) const {
    const int64_t vectors = up(call_.columns, LANES) / LANES;
    return std::min(panel * vectors / panels_ * LANES, call_.columns);
  }

  void lay_panel(int64_t panel, Word* to) const {
    const T* right = (const T*)call_.right;
    const int64_t first = first_column(panel), columns = first_column(panel + 1) - first;
    if (call_.right_is_transposed)
      lay_columns((const Word*)(right + first * call_.right_stride), call_.right_stride / WIDTH<Word>, words_, columns,
                  to);
    else
      lay_rows<COLUMNS>(right + first, call_.right_stride, call_.inner, columns, panel_, to);
  }

  void multiply_rows(int64_t first_row, int64_t first_panel, int64_t end_panel, const Word* panels) const {
    const int64_t end_row = std::min(first_row + unit_rows(), call_.rows);
    const int64_t strip = words_ * ROWS + LANES;  // a line more: else all of them began in the same set of a cache
    const bool ends_in_part = (end_row - first_row) % ROWS != 0;
    const int64_t words = call_.left_is_transposed ? strip * unit_rows() / ROWS : ends_in_part ? words_ * ROWS : 0;
    own_memory.reserve(words);
    Word* strips = own_memory.take<Word>(words);
    const T* left = (const T*)call_.left;
    const Word* left_words = (const Word*)left;
    const int64_t stride = call_.left_stride / WIDTH<Word>;
    if (call_.left_is_transposed)
      lay_rows<ROWS>(left + first_row, call_.left_stride, call_.inner, end_row - first_row, strip, strips);
    else if (ends_in_part)
      lay_last(left_words + (end_row - (end_row - first_row) % ROWS) * stride, (end_row - first_row) % ROWS, strips);
    alignas(64) float tile[ROWS * COLUMNS];
    for (int64_t panel = first_panel; panel < end_panel; ++panel, panels += panel_) {
      const int64_t first = first_column(panel), columns = first_column(panel + 1) - first;
      for (int64_t row = first_row; row < end_row; row += ROWS) {
        const int64_t rows = std::min<int64_t>(ROWS, end_row - row);
        R* result = (R*)call_.result + row * call_.result_stride + first;
        fetch_result(result, rows, columns);
        if (panel == first_panel && !call_.left_is_transposed)
          fetch_left(left_words + (row + ROWS) * stride, std::min<int64_t>(ROWS, end_row - row - ROWS));
        if (call_.left_is_transposed)
          multiply_columns(columns, words_, strips + (row - first_row) / ROWS * strip, 1, ROWS, panels, tile);
        else if (rows == ROWS)
          multiply_columns(columns, words_, left_words + row * stride, stride, 1, panels, tile);
        else
          multiply_columns(columns, words_, strips, words_, 1, panels, tile);
        put(tile, rows, columns, call_.is_added, result, call_.result_stride);
      }
    }
  }

  // Where a tile will be written, and what the next one is made of, may be in no cache.
  void fetch_result(const R* result, int64_t rows, int64_t columns) const {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t end : {int64_t(0), columns - 1}) __builtin_prefetch(result + r * call_.result_stride + end, 1);
  }

  void fetch_left(const Word* from, int64_t rows) const {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t w = 0; w < words_; w += LANES)
        __builtin_prefetch(from + r * call_.left_stride / WIDTH<Word> + w, 0, 2);
  }

  // The last rows, and empty ones: as many as a tile has.
  void lay_last(const Word* from, int64_t rows, Word* to) const {
    for (int64_t r = 0; r < ROWS; ++r)
      for (int64_t w = 0; w < words_; ++w)
        to[r * words_ + w] = r < rows ? from[r * call_.left_stride / WIDTH<Word> + w] : Word{};
  }

  const ProductCall& call_;
  int64_t words_, panel_, panels_;
  bool is_long_;
};

}  // namespace

extern "C" void product(const ProductCall* call) {
  FOR_TYPE(call->is_bfloat16, {
    using Word = WordOf<T>;
    if constexpr (sizeof(Word) == sizeof(T) * WIDTH<Word>) {
      if (call->result_is_float)
        Multiplication<T, Word, float>(*call).run();
      else
        Multiplication<T, Word, T>(*call).run();
    }
  })
}

#else

// Nobody calls it: cpu/matmul.py.
extern "C" void product(const ProductCall*) {}

#endif
