// Which kernel a weight gets, and how a product is cut into pieces of work for the threads.
//
// A piece is a chunk of rows by up to four panels. Weights are read from memory once for a chunk of rows; the chunk's
// activations stay in the L2 cache. The last pieces of a chunk are smaller, so that the threads end together.
#include <algorithm>

#include "base/error.h"
#include "cpu/gemm/gemm.h"
#include "cpu/gemm/kernel.h"
#include "cpu/gemm/memory.h"

namespace oarlock::cpu {

const Kernel& choose_kernel(Isa isa, WeightFormat format, DType compute) {
  bool wide = isa >= Isa::avx512;
  switch (format) {
    case WeightFormat::f32:
      return wide ? kAvx512F32 : kAvx2F32;
    case WeightFormat::bf16:
      if (compute == DType::bf16 && isa == Isa::amx) return kAmxBf16;
      if (compute == DType::bf16 && isa == Isa::avx512_bf16) return kDotBf16;
      return wide ? kAvx512Bf16 : kAvx2Bf16;
    case WeightFormat::int8:
      if (compute == DType::f32) return wide ? kAvx512Int8F32 : kAvx2Int8F32;
      if (isa == Isa::amx) return kAmxInt8;
      if (isa >= Isa::avx512_vnni) return kVnniInt8;
      return wide ? kAvx512Int8 : kAvx2Int8;
    case WeightFormat::int4:
      if (compute == DType::f32) return wide ? kAvx512Int4F32 : kAvx2Int4F32;
      if (isa == Isa::amx) return kAmxInt4;
      if (isa >= Isa::avx512_vnni) return kVnniInt4;
      return wide ? kAvx512Int4 : kAvx2Int4;
    default:
      throw InvalidArgument("weights on the CPU are held in f32, bf16, int8 or int4, not f16 or keep");
  }
}

namespace {

constexpr int64_t kScratch = kWeightScratch + kMaxRows * kStride * 4;

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Bytes of a prepared row, and of its terms by group.
int64_t prepared_row(Input input, int64_t k) { return input == Input::f32 ? 4 * k : input == Input::as_is ? 0 : 2 * k; }
int64_t term_row(Input input, int64_t k) { return input == Input::digits || input == Input::words ? term_stride(k) : 0; }

// Panels into pieces: fours, then pairs, then, unless gated, single ones.
struct Pieces {
  int64_t fours, pairs, singles;

  Pieces(int64_t panels, int threads, bool gated) {
    singles = gated || threads == 1 ? panels % 2 : std::min<int64_t>(panels, 2 * threads);
    if ((panels - singles) % 2) singles += singles < panels ? 1 : -1;
    int64_t rest = panels - singles;
    int64_t paired = std::min<int64_t>(rest, threads == 1 ? 0 : 4 * threads);
    if ((rest - paired) % 4) paired += paired + 2 <= rest ? 2 : -2;
    pairs = paired / 2;
    fours = (rest - paired) / 4;
  }
  int64_t count() const { return fours + pairs + singles; }
  int64_t first(int64_t piece) const {
    if (piece < fours) return 4 * piece;
    if (piece < fours + pairs) return 4 * fours + 2 * (piece - fours);
    return 4 * fours + 2 * pairs + (piece - fours - pairs);
  }
};

// x as the kernel wants it; in parallel when that pays for waking the threads.
Activations prepare(ThreadPool& pool, Workspace& workspace, const Tensor& x, const Kernel& kernel) {
  Activations a;
  a.rows = x.rows;
  a.k = x.cols;
  if (kernel.input == Input::as_is || (kernel.input == Input::f32 && x.dtype == DType::f32)) {
    a.data = x.as<uint8_t>();
    a.stride = x.stride * size_of(x.dtype);
    return a;
  }
  Prepare job;
  job.x = x;
  job.stride = prepared_row(kernel.input, x.cols);
  job.data = workspace.activations();
  int64_t padded = round_up(x.rows, 16);
  job.terms = job.data + padded * job.stride;
  job.scales = reinterpret_cast<float*>(job.terms + padded * term_row(kernel.input, x.cols));
  job.int4 = kernel.layout == Layout::int4_quads;
  a.data = job.data;
  a.stride = job.stride;
  a.terms = job.terms;
  a.scales = job.scales;
  constexpr int64_t kSerial = 48 << 10;  // elements
  if (x.rows * x.cols <= kSerial) {
    kernel.prepare(job, 0, x.rows);
  } else {
    pool.for_each((x.rows + 15) / 16,
                  [&](int64_t block, int) { kernel.prepare(job, block * 16, std::min(x.rows, block * 16 + 16)); });
  }
  return a;
}

void check(const ThreadPool& pool, const Workspace& workspace, const Tensor& out, const Tensor& x, const PackedWeight& w,
           int64_t cols) {
  require(x.cols == w.k, "linear: x has ", x.cols, " columns, the weight wants k = ", w.k);
  require(x.dtype == w.compute || (x.dtype == DType::f32 && w.kernel->input == Input::f32),
          "linear: x is not of the dtype that the weight was packed for");
  require(out.dtype == DType::bf16 || out.dtype == DType::f32, "linear: out must be bf16 or float32");
  require(out.rows == x.rows && out.cols == cols, "linear: out is ", out.rows, " x ", out.cols, ", the product ", x.rows, " x ",
          cols);
  require(x.rows <= workspace.max_rows() && x.cols <= workspace.max_k() && pool.size() <= workspace.threads(), "linear: x of ",
          x.rows, " x ", x.cols, " on ", pool.size(), " threads exceeds the workspace, reserved for ", workspace.max_rows(),
          " x ", workspace.max_k(), " on ", workspace.threads());
}

void multiply(ThreadPool& pool, Workspace& workspace, const Tensor& out, const Tensor& x, const PackedWeight& w,
              const float* bias) {
  if (x.rows == 0) return;
  const Kernel& kernel = *w.kernel;
  Activations a = prepare(pool, workspace, x, kernel);
  int64_t fitting = kernel.row_chunk_bytes / std::max<int64_t>(a.stride, 1) / 32 * 32;
  int64_t most = std::min<int64_t>(std::max<int64_t>(fitting, 32), kMaxRows);
  int64_t chunks = (x.rows + most - 1) / most, chunk = round_up((x.rows + chunks - 1) / chunks, 32);
  chunks = (x.rows + chunk - 1) / chunk;
  Pieces pieces(w.panels, pool.size(), w.gated);
  int64_t count = pieces.count();
  pool.for_each(chunks * count, [&](int64_t item, int thread) {
    int64_t row0 = item / count * chunk, piece = item % count;
    int64_t panel = pieces.first(piece), last = piece + 1 < count ? pieces.first(piece + 1) : w.panels;
    uint8_t* scratch = workspace.thread_scratch(thread);
    Product product;
    product.x = &a;
    product.row0 = row0;
    product.rows = int(std::min(chunk, x.rows - row0));
    product.panels = int(last - panel);
    product.weights = w.data + panel * w.panel_bytes;
    product.panel_bytes = w.panel_bytes;
    product.scratch = scratch;
    product.c = reinterpret_cast<float*>(scratch + kWeightScratch);
    kernel.product(product);
    Finish finish;
    int64_t col = w.gated ? panel / 2 * kPanel : panel * kPanel;
    finish.c = product.c;
    finish.rows = product.rows;
    finish.panels = product.panels;
    finish.dtype = out.dtype;
    finish.stride = out.stride;
    finish.cols = out.cols - col;
    finish.out = out.as<uint8_t>() + (row0 * out.stride + col) * size_of(out.dtype);
    finish.bias = bias ? bias + col : nullptr;
    finish.gated = w.gated;
    kernel.finish(finish);
  });
}

}  // namespace

void Workspace::reserve(int64_t max_rows, int64_t max_k, int threads) {
  require(max_rows >= 1 && max_k >= 1 && threads >= 1, "a workspace needs rows, columns and threads of at least 1");
  int64_t padded = round_up(max_rows, 32), columns = round_up(max_k, kGroup);
  int64_t activations = round_up(padded * (4 * columns + term_stride(columns) + 4), 4096);
  // Not from the shared blocks: these pages go when the workspace goes.
  memory_ = std::make_shared<Block>(activations + threads * kScratch);
  activations_ = memory_->take(activations);
  scratch_ = memory_->take(threads * kScratch);
  max_rows_ = max_rows;
  max_k_ = max_k;
  threads_ = threads;
}

uint8_t* Workspace::thread_scratch(int thread) const { return scratch_ + thread * kScratch; }

void linear(ThreadPool& pool, Workspace& workspace, const Tensor& out, const Tensor& x, const PackedWeight& w,
            const float* bias) {
  require(!w.gated, "linear: the weight was packed for gated_linear");
  check(pool, workspace, out, x, w, w.n);
  multiply(pool, workspace, out, x, w, bias);
}

void gated_linear(ThreadPool& pool, Workspace& workspace, const Tensor& out, const Tensor& x, const PackedWeight& w) {
  require(w.gated, "gated_linear: the weight was packed without its gate");
  check(pool, workspace, out, x, w, w.n / 2);
  multiply(pool, workspace, out, x, w, nullptr);
}

}  // namespace oarlock::cpu
