#include "cuda/ops_cuda.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "cuda/elementwise.h"
#include "cuda/weights.h"

namespace oarlock::cuda {
namespace {

// Up to so many tokens, q, k and v are rounded once, when they have been rotated, and not before as well. Of more, reading them
// in float32 would take time that shows.
constexpr int kRotatedInFloat = 128;

}  // namespace

CudaOps::CudaOps(int device, DType dtype, const OpsLimits& limits, bool batch_invariant)
    : device_(open_device(device)), dtype_(dtype), limits_(limits), batch_invariant_(batch_invariant) {
  require(dtype == DType::bf16 || dtype == DType::f16, "CUDA computes in bf16 or f16");
  OARLOCK_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  attention_workspace_.partials =
      static_cast<float*>(allocate(AttentionWorkspace::partial_bytes(limits.max_sequences, limits.heads, limits.head_dim)));
  attention_workspace_.counters =
      static_cast<int*>(allocate(size_t(limits.max_sequences) * size_t(limits.heads) * sizeof(int)));
  attention_workspace_.max_sequences = limits.max_sequences;
  if (const size_t bytes = device_.kernels->sampler_scratch(device_, limits.vocab); bytes > 0) {
    sampler_scratch_ = static_cast<float*>(allocate(bytes));
  }
  blas_workspace_ = allocate(BlasGemm::kWorkspaceBytes);
  sums_ = static_cast<float*>(allocate(size_t(std::min(limits.max_tokens, kRotatedInFloat)) * size_t(limits.qkv_cols) * 4));
  gated_ = allocate(size_t(limits.max_tokens) * size_t(limits.gated_rows) * 2);
}

CudaOps::~CudaOps() {
  cudaStreamSynchronize(stream_);
  for (void* memory : allocations_) cudaFree(memory);
  cudaStreamDestroy(stream_);
}

void CudaOps::join(std::shared_ptr<Comm> comm, const RanksLimits& limits) {
  ranks_ = std::make_unique<Ranks>(std::move(comm), stream_, limits);
}

size_t CudaOps::free_memory() const {
  size_t free = 0, total = 0;
  OARLOCK_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return free;
}

void CudaOps::synchronize() { OARLOCK_CUDA_CHECK(cudaStreamSynchronize(stream_)); }

void* CudaOps::allocate(size_t bytes) {
  void* memory = nullptr;
  const size_t wanted = std::max<size_t>(bytes, 256);
  cudaError_t status = cudaMalloc(&memory, wanted);
  if (status != cudaSuccess) {
    cudaGetLastError();  // the error is reported here and must not surface in a later call
    throw DeviceError(concat("the device has no room for ", wanted, " bytes (", free_memory(), " are free)"));
  }
  allocations_.push_back(memory);
  OARLOCK_CUDA_CHECK(cudaMemsetAsync(memory, 0, wanted, stream_));
  synchronize();
  return memory;
}

std::unique_ptr<Weight> CudaOps::pack(const std::vector<WeightPiece>& pieces, WeightFormat format, bool gated) {
  const bool fits = format == WeightFormat::keep || (format == WeightFormat::bf16 && dtype_ == DType::bf16) ||
                    (format == WeightFormat::f16 && dtype_ == DType::f16);
  require(fits, "CUDA holds weights in the compute dtype: format keep, or bf16 or f16 when that is the dtype");
  require(!pieces.empty(), "a weight needs at least one piece");
  auto weight = std::make_unique<CudaWeight>();
  weight->k = pieces[0].k;
  for (const auto& piece : pieces) {
    require(piece.k == weight->k, "pieces of one weight differ in columns: ", piece.k, " and ", weight->k);
    weight->n += piece.n;
  }
  require(weight->k % 8 == 0, "a weight's rows must be a multiple of 8 columns, not ", weight->k);
  require(!gated || (pieces.size() == 2 && pieces[0].n == pieces[1].n && pieces[0].n % 8 == 0),
          "a gated weight has two pieces of equal rows, a multiple of 8");
  weight->gated = gated;
  weight->format = dtype_ == DType::bf16 ? WeightFormat::bf16 : WeightFormat::f16;
  weight->bytes = weight->n * weight->k * 2;
  weight->data = allocate(size_t(weight->bytes));

  const size_t row_bytes = size_t(weight->k) * 2;
  const SourceFormat direct = dtype_ == DType::bf16 ? SourceFormat::bf16 : SourceFormat::f16;
  auto* to = static_cast<uint8_t*>(weight->data);
  std::vector<uint8_t> converted;
  for (const auto& piece : pieces) {
    // A gated weight's rows go in groups of eight to every other place.
    const int64_t step = std::max<int64_t>(8, (int64_t(64) << 20) / int64_t(row_bytes) / 8 * 8);
    for (int64_t first = 0; first < piece.n; first += step) {
      const int64_t count = std::min(step, piece.n - first);
      const void* from = static_cast<const uint8_t*>(piece.data) + size_t(first) * row_bytes;
      if (piece.format != direct) {
        converted.resize(size_t(count) * row_bytes);
        convert_rows(converted.data(), dtype_, piece, first, count);
        from = converted.data();
      }
      if (gated) {
        OARLOCK_CUDA_CHECK(cudaMemcpy2DAsync(to + size_t(first) * 2 * row_bytes, 16 * row_bytes, from, 8 * row_bytes,
                                             8 * row_bytes, size_t(count / 8), cudaMemcpyHostToDevice, stream_));
      } else {
        OARLOCK_CUDA_CHECK(
            cudaMemcpyAsync(to + size_t(first) * row_bytes, from, size_t(count) * row_bytes, cudaMemcpyHostToDevice, stream_));
      }
      synchronize();
    }
    to += gated ? 8 * row_bytes : size_t(piece.n) * row_bytes;
  }
  weight->stream = {weight->data, dtype_, weight->n, weight->k};
  return weight;
}

std::unique_ptr<Weight> CudaOps::random_weight(int64_t n, int64_t k, float limit, uint64_t seed) {
  auto weight = std::make_unique<CudaWeight>();
  weight->n = n;
  weight->k = k;
  weight->bytes = n * k * 2;
  weight->format = dtype_ == DType::bf16 ? WeightFormat::bf16 : WeightFormat::f16;
  weight->data = allocate(size_t(weight->bytes));
  weight->stream = {weight->data, dtype_, n, k};
  fill_random(stream_, weight->data, dtype_, n * k, limit, seed);
  return weight;
}

const float* CudaOps::upload(const float* values, int64_t count) {
  void* memory = allocate(size_t(count) * sizeof(float));
  OARLOCK_CUDA_CHECK(cudaMemcpyAsync(memory, values, size_t(count) * sizeof(float), cudaMemcpyHostToDevice, stream_));
  synchronize();
  return static_cast<const float*>(memory);
}

KvLayer CudaOps::make_kv_layer(int64_t blocks, int kv_heads, int head_dim) {
  require(head_dim % 64 == 0, "heads of ", head_dim, " elements have no CUDA kernel; 64 and 128 have");
  const size_t bytes = size_t(blocks) * size_t(kv_bytes_per_block(kv_heads, head_dim)) / 2;
  return {allocate(bytes), allocate(bytes)};
}

int64_t CudaOps::kv_bytes_per_block(int kv_heads, int head_dim) const {
  return int64_t(2) * kv_heads * (head_dim / 64) * kGroupBytes;
}

void CudaOps::embed(Tensor residual, const Weight& table, const int32_t* token_ids, int64_t first) {
  cuda::embed(stream_, residual, static_cast<const CudaWeight&>(table).data, dtype_, table.n, token_ids, first);
}

void CudaOps::add_norm(Tensor out, Tensor residual, const Tensor* delta, const float* weight, float epsilon) {
  if (out.rows > 0) cuda::add_norm(stream_, out, residual, delta, weight, epsilon);
}

bool CudaOps::product(Tensor out, Tensor x, const Weight& w, const float* bias, After after) {
  return device_.kernels->product(stream_, device_, static_cast<const CudaWeight&>(w).stream, out, x, bias, after,
                                  batch_invariant_);
}

void CudaOps::linear(Tensor out, Tensor x, const Weight& w, const float* bias) {
  if (x.rows == 0) return;
  if (product(out, x, w, bias, After::store)) return;
  blas_.run(stream_, blas_workspace_, out, x, static_cast<const CudaWeight&>(w).data, w.n);
  if (bias != nullptr) add_bias(stream_, out, bias);
}

void CudaOps::linear_to_rope(Tensor qkv, Tensor x, const Weight& w, const float* bias) {
  summed_ = !batch_invariant_ && x.rows <= kRotatedInFloat;
  if (summed_) qkv = {sums_, DType::f32, x.rows, w.n, w.n};
  linear(qkv, x, w, bias);
}

void CudaOps::gated_linear(Tensor out, Tensor x, const Weight& w) {
  if (x.rows == 0) return;
  if (product(out, x, w, nullptr, After::gate)) return;
  require(x.rows <= limits_.max_tokens && w.n <= limits_.gated_rows, "a gated product of ", x.rows, " rows and ", w.n,
          " columns exceeds the ", limits_.max_tokens, " and ", limits_.gated_rows, " reserved for");
  Tensor products{gated_, dtype_, x.rows, w.n, w.n};
  blas_.run(stream_, blas_workspace_, products, x, static_cast<const CudaWeight&>(w).data, w.n);
  gate(stream_, out, products);
}

void CudaOps::rope_and_cache(Tensor qkv, const AttentionShape& shape, const float* q_norm, const float* k_norm, float epsilon,
                             const float* rotary, KvLayer cache, const Batch& batch) {
  const float* sums = std::exchange(summed_, false) ? sums_ : nullptr;
  cuda::rope_and_cache(stream_, qkv, sums, shape, q_norm, k_norm, epsilon, rotary, cache, batch);
}

void CudaOps::attention(Tensor out, Tensor qkv, const AttentionShape& shape, KvLayer cache, const Batch& batch) {
  // The sizes alone say whether every sequence brings one token; otherwise each kernel picks its own.
  const Kernels& kernels = *device_.kernels;
  if (batch_invariant_ && batch.tokens > batch.sequences) {
    return kernels.attend_each(stream_, device_, attention_workspace_, out, qkv, shape, cache, batch);
  }
  if (batch.groups > 0) kernels.attend_shared(stream_, device_, attention_workspace_, qkv, shape, cache, batch);
  kernels.attend_decode(stream_, device_, attention_workspace_, out, qkv, shape, cache, batch, batch_invariant_);
  if (batch.tokens > batch.sequences) kernels.attend_prefill(stream_, device_, out, qkv, shape, cache, batch);
}

void CudaOps::gather_rows(Tensor out, Tensor x, const int32_t* rows) { cuda::gather_rows(stream_, out, x, rows); }

void CudaOps::sample(Tensor logits, const Sampling& sampling, const Sampled& sampled) {
  device_.kernels->sample(stream_, device_, sampler_scratch_, logits, sampling, sampled);
}

void CudaOps::all_reduce(Tensor x) { ranks_->all_reduce(x); }

void CudaOps::share_linear(Tensor delta, Tensor x, const Weight& w) {
  const bool sent = ranks_->share(delta, [&](const Channel& channel) {
    return device_.kernels->share(stream_, device_, static_cast<const CudaWeight&>(w).stream, delta, x, channel);
  });
  if (!sent) linear(delta, x, w, nullptr);
}

void CudaOps::sum_add_norm(Tensor out, Tensor residual, Tensor delta, const float* weight, float epsilon) {
  if (out.rows > 0) ranks_->sum_add_norm(out, residual, delta, weight, epsilon);
}

void CudaOps::sample_parts(Tensor part, const Batch& batch, const Sampling& sampling, const Sampled& sampled, int first) {
  const Sampled into = from_row(sampled, first);
  ranks_->sample(part, batch.all_plain, into, [&](Tensor whole) { sample(whole, from_row(sampling, first), into); });
}

Graph::Graph(cudaStream_t stream, const std::function<void()>& calls) {
  cudaGraph_t graph = nullptr;
  OARLOCK_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  try {
    calls();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  OARLOCK_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  cudaError_t status = cudaGraphInstantiate(&executable_, graph, 0);
  cudaGraphDestroy(graph);
  check_call(status, "cudaGraphInstantiate");
}

Graph::~Graph() {
  if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
}

void Graph::launch(cudaStream_t stream) const { OARLOCK_CUDA_CHECK(cudaGraphLaunch(executable_, stream)); }

}  // namespace oarlock::cuda
