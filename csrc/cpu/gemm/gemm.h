// Matrix products of the decoder on the CPU: weights packed once, then out = x w^T with bias, or silu(x gate^T) * (x up^T).
//
// Whatever the number of rows, threads or pieces of work, a row's result has the same bits: every output is one chain of
// sums along k in a fixed order, and no thread ever shares a chain. The chain belongs to the kernel (an instruction set and
// a weight format), chosen when the weight is packed; README.md here lists the kernels and what each computes.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/isa.h"
#include "base/ops.h"
#include "base/threads.h"

namespace oarlock::cpu {

struct Kernel;
class Block;

// A weight in panels of 16 output rows, in the order that its kernel reads.
class PackedWeight : public Weight {
 public:
  const Kernel* kernel = nullptr;
  const uint8_t* data = nullptr;  // panels, each panel_bytes long; gated: gate panel, up panel, gate panel, ...
  int64_t panels = 0, panel_bytes = 0;
  bool gated = false;
  float shift = 1, unit = 1;  // see tile_expand.inl
  DType compute = DType::bf16;
  const PackedWeight* next = nullptr;  // the one that is used after it, if known
  std::shared_ptr<Block> memory;
};

// Packs the pieces, stacked along n. `compute` is the dtype of the activations it will meet (bf16 or f32).
// The format asked for holds for the whole weight; quantized pieces that already have it keep their bits. `keep` takes the
// best format that any piece needs: int4_groups for q4_0 and q4_1, int8_groups for q8_0, `compute` for dense ones. A piece of
// another format is converted through float: q4 to int8_groups moves a value by at most 1/254 of its group's largest.
// InvalidArgument: k not a multiple of 32, pieces of unequal k, gated pieces that are not two of equal n, format f16.
std::unique_ptr<PackedWeight> pack(const std::vector<WeightPiece>& pieces, WeightFormat format, bool gated, DType compute,
                                   ThreadPool& pool);
// The same for a given instruction set; checks use it.
std::unique_ptr<PackedWeight> pack_for(Isa isa, const std::vector<WeightPiece>& pieces, WeightFormat format, bool gated,
                                       DType compute, ThreadPool& pool);

// Row n of the weight (of the pieces as stacked) as k floats; quantized weights as d*q (+ m), exactly.
void unpack_row(const PackedWeight& w, int64_t n, float* out);

// Scratch memory of the products, one for each ThreadPool. Products never allocate.
class Workspace {
 public:
  // Room for x of up to max_rows rows and max_k columns on `threads` threads.
  void reserve(int64_t max_rows, int64_t max_k, int threads);

  int64_t max_rows() const { return max_rows_; }
  int64_t max_k() const { return max_k_; }
  int threads() const { return threads_; }
  uint8_t* activations() const { return activations_; }
  uint8_t* thread_scratch(int thread) const;

 private:
  std::shared_ptr<Block> memory_;
  uint8_t* activations_ = nullptr;
  uint8_t* scratch_ = nullptr;
  int64_t max_rows_ = 0, max_k_ = 0;
  int threads_ = 0;
};

// out = x w^T (+ bias[n]). x: [rows, k] of the weight's compute dtype; out: [rows, n], bf16 or f32.
void linear(ThreadPool& pool, Workspace& workspace, const Tensor& out, const Tensor& x, const PackedWeight& w,
            const float* bias);
// out = silu(x gate^T) * (x up^T); out: [rows, n / 2].
void gated_linear(ThreadPool& pool, Workspace& workspace, const Tensor& out, const Tensor& x, const PackedWeight& w);

}  // namespace oarlock::cpu
