// Copies of chosen rows: memory traffic only, so there is no version by instruction set.
#include "cpu/elementwise/gather.h"

#include <cstring>

#include "base/error.h"

namespace oarlock::cpu {

void gather_rows(ThreadPool& pool, Tensor out, Tensor x, const int32_t* rows) {
  require(out.dtype == x.dtype && out.cols == x.cols, "gather_rows: out and x differ in dtype or columns");
  constexpr int64_t kRowsAnItem = 16;
  int64_t element = size_of(x.dtype);
  pool.for_each((out.rows + kRowsAnItem - 1) / kRowsAnItem, [&](int64_t item, int) {
    for (int64_t r = item * kRowsAnItem; r < (item + 1) * kRowsAnItem && r < out.rows; ++r) {
      std::memcpy(out.as<char>() + r * out.stride * element, x.as<char>() + rows[r] * x.stride * element,
                  size_t(x.cols * element));
    }
  });
}

}  // namespace oarlock::cpu
