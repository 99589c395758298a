// Which kernel a weight gets, and how a product is cut into pieces of work for the threads.
//
// A piece is a chunk of rows by some panels. Weights are read from memory once for a chunk of rows; the chunk's activations
// stay in the L2 cache. With few rows the last pieces are smaller, so that the threads end together.
#include <algorithm>

#include "base/error.h"
#include "cpu/gemm/gemm.h"
#include "cpu/gemm/kernel.h"
#include "cpu/gemm/memory.h"

namespace oarlock::cpu {

const Kernel& choose_kernel(Isa isa, WeightFormat format, DType compute) {
  bool wide = isa >= Isa::avx512;
  // Quantized weights become tiles by way of f16 arithmetic; a machine with tiles has it unless a hypervisor hides it.
  bool tiles = isa == Isa::amx && __builtin_cpu_supports("avx512fp16");
  switch (format) {
    case WeightFormat::f32:
      return wide ? kAvx512F32 : kAvx2F32;
    case WeightFormat::bf16:
      if (compute == DType::bf16 && isa == Isa::amx) return kAmxBf16;
      if (compute == DType::bf16 && isa == Isa::avx512_bf16) return kDotBf16;
      return wide ? kAvx512Bf16 : kAvx2Bf16;
    case WeightFormat::int8:
      if (compute == DType::f32) return wide ? kAvx512Int8SpansF32 : kAvx2Int8SpansF32;
      if (isa == Isa::amx) return kAmxInt8Spans;
      if (isa >= Isa::avx512_vnni) return kVnniInt8Spans;
      return wide ? kAvx512Int8Spans : kAvx2Int8Spans;
    case WeightFormat::int8_groups:
      if (compute == DType::f32) return wide ? kAvx512Int8F32 : kAvx2Int8F32;
      if (tiles) return kAmxInt8;
      if (isa >= Isa::avx512_vnni) return kVnniInt8;
      return wide ? kAvx512Int8 : kAvx2Int8;
    case WeightFormat::int4:
      if (compute == DType::f32) return wide ? kAvx512Int4SpansF32 : kAvx2Int4SpansF32;
      if (isa == Isa::amx) return kAmxInt4Spans;
      if (isa >= Isa::avx512_vnni) return kVnniInt4Spans;
      return wide ? kAvx512Int4Spans : kAvx2Int4Spans;
    case WeightFormat::int4_groups:
      if (compute == DType::f32) return wide ? kAvx512Int4F32 : kAvx2Int4F32;
      if (tiles) return kAmxInt4;
      if (isa >= Isa::avx512_vnni) return kVnniInt4;
      return wide ? kAvx512Int4 : kAvx2Int4;
    default:
      throw InvalidArgument("weights on the CPU are held in f32, bf16, int8 or int4, not f16 or keep");
  }
}

namespace {

constexpr int64_t kScratch = kWeightScratch + kSums * 4;
constexpr int64_t kLongK = 2048;  // beyond it, a piece's rows of x do not stay in the L2 cache

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Bytes of a prepared row, and of its terms by group.
int64_t prepared_row(Input input, int64_t rows, int64_t k) {
  if (input == Input::as_is) return 0;
  if (input == Input::span_digits || input == Input::span_words) return 2 * whole_tiles(k);
  return (input == Input::f32 || (input == Input::raised && rows == 1) ? 4 : 2) * k;
}
int64_t term_row(Input input, int64_t k) {
  return input == Input::as_is || input == Input::f32 || input == Input::tiles || input == Input::raised ? 0 : term_stride(k);
}

// Panels into pieces: fours, then pairs, then, unless panels belong together, single ones.
struct Pieces {
  int64_t fours, pairs, singles;

  Pieces(int64_t panels, int threads, bool no_singles) {
    singles = no_singles || threads == 1 ? panels % 2 : std::min<int64_t>(panels, 2 * threads);
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

// Many rows by dense tiles: each thread keeps to its own rows, and to a piece's panels for all of them (held_rows.inl).
bool holds_panels(const Kernel& kernel, int64_t rows) {
  return kernel.input == Input::tiles && kernel.layout == Layout::bf16 && rows > kNearRows;
}

// x as the kernel wants it; in parallel when that pays for waking the threads.
Activations prepare(ThreadPool& pool, Workspace& workspace, const Tensor& x, const Kernel& kernel) {
  Activations a;
  a.rows = x.rows;
  a.k = x.cols;
  a.in_place = holds_panels(kernel, x.rows);
  if (a.in_place || kernel.input == Input::as_is || (kernel.input == Input::f32 && x.dtype == DType::f32)) {
    a.data = x.as<uint8_t>();
    a.stride = x.stride * size_of(x.dtype);
    return a;
  }
  Prepare job;
  job.x = x;
  job.stride = prepared_row(kernel.input, x.rows, x.cols);
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
    pool.for_each_near((x.rows + 15) / 16,
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

// How the rows and panels of a product become pieces of work.
struct Plan {
  int64_t chunk, chunks;  // rows of a piece; pieces that all rows make
  Pieces pieces;          // panels, when a piece has up to four
  int64_t deep;           // panels of a piece, otherwise 0
  int64_t count;          // pieces that all panels make
  bool draws_on = false;  // the last pieces draw the next weight's first ones from memory
  bool near = false;      // each thread keeps to its own rows, which its cache then has from the operation before

  Plan(const Activations& a, const PackedWeight& w, int threads)
      : chunk(0), chunks(0), pieces(w.panels, threads, w.gated || a.rows > 32), deep(0), count(pieces.count()) {
    const Kernel& kernel = *w.kernel;
    bool deep_kernel = kernel.most_panels > kMaxPanels, long_k = a.k > kLongK;
    int64_t fitting = kernel.row_bytes / std::max<int64_t>(a.stride, 1) / 32 * 32;
    // Tiles: sums rest between parts of a long k, for kMaxRows rows; otherwise they leave at once, for any number.
    int64_t most = deep_kernel ? (long_k ? kMaxRows : std::min<int64_t>(fitting, 1024)) : std::min<int64_t>(fitting, kMaxRows);
    most = std::max<int64_t>(most, 32);
    draws_on = kernel.layout != Layout::bf16 && kernel.layout != Layout::f32 && a.rows <= 16;
    const bool held =
        a.in_place || (is_spans(kernel.layout) && deep_kernel && a.rows > kNearRows && opens_whole(kernel.layout, a.k));
    if (held) {
      near = true;
      most = std::clamp<int64_t>(round_up((a.rows + threads - 1) / threads, 32), kNearRows, kMaxRows);
    }
    chunks = (a.rows + most - 1) / most;
    chunk = round_up((a.rows + chunks - 1) / chunks, 32);
    chunks = (a.rows + chunk - 1) / chunk;
    if (held) {
      deep = std::clamp<int64_t>(kHeldBytes / opened_bytes(kernel.layout, a.k, w.panel_bytes) / 4 * 4, 2, kHeldPanels);
      count = (w.panels + deep - 1) / deep;
    } else if (deep_kernel && a.rows > 64) {
      // Wide pieces read x less often where it does not stay in the cache, if enough of them are left for the threads.
      int64_t enough = w.panels * chunks / (6 * threads) / 2 * 2;
      deep = std::clamp<int64_t>(enough, 2, long_k ? kDeepPanels : 8);
      count = (w.panels + deep - 1) / deep;
    }
  }
  int64_t first(int64_t piece) const { return deep ? piece * deep : pieces.first(piece); }
};

void multiply(ThreadPool& pool, Workspace& workspace, const Tensor& out, const Tensor& x, const PackedWeight& w,
              const float* bias) {
  if (x.rows == 0) return;
  Activations a = prepare(pool, workspace, x, *w.kernel);
  Plan plan(a, w, pool.size());
  int64_t items = plan.chunks * plan.count;
  auto piece_of_work = [&](int64_t item, int thread) {
    int64_t row0 = item / plan.count * plan.chunk, piece = item % plan.count;
    int64_t panel = plan.first(piece), last = piece + 1 < plan.count ? plan.first(piece + 1) : w.panels;
    int64_t next = item + (plan.near ? 1 : pool.size()), col = (w.gated ? panel / 2 : panel) * kPanel;
    Product product;
    product.x = &a;
    product.row0 = row0;
    product.rows = int(std::min(plan.chunk, x.rows - row0));
    product.panels = int(last - panel);
    product.weights = w.data + panel * w.panel_bytes;
    product.panel_bytes = w.panel_bytes;
    if (plan.near && piece + 1 == plan.count) {
      product.ahead = w.next ? w.next->data : nullptr;
    } else if (next < items) {
      product.ahead = w.data + plan.first(next % plan.count) * w.panel_bytes;
      product.ahead_panel_bytes = w.panel_bytes;
    } else if (w.next && plan.draws_on && kMaxPanels * (next - items) < w.next->panels) {
      product.ahead = w.next->data + kMaxPanels * (next - items) * w.next->panel_bytes;
      product.ahead_panel_bytes = w.next->panel_bytes;
    }
    product.shift = w.shift;
    product.unit = w.unit;
    product.out = out.as<uint8_t>() + (row0 * out.stride + col) * size_of(out.dtype);
    product.out_dtype = out.dtype;
    product.out_stride = out.stride;
    product.cols = out.cols - col;
    product.bias = bias ? bias + col : nullptr;
    product.gated = w.gated;
    product.scratch = workspace.thread_scratch(thread);
    product.c = reinterpret_cast<float*>(product.scratch + kWeightScratch);
    w.kernel->product(product);
  };
  plan.near ? pool.for_each_near(items, piece_of_work) : pool.for_each(items, piece_of_work);
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
