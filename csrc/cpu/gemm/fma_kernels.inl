// Products by float32 FMA: f32 weights, bf16 weights widened on the way, and quantized weights expanded to floats a chunk at
// a time (the float32 mode of a quantized model). Included by avx2.cpp and avx512.cpp inside their unnamed namespaces, after
// their struct Simd. Activations are float32.
#pragma once

#include "cpu/gemm/dense.inl"
#include "cpu/gemm/span_codes.inl"

struct FmaPolicy {
  using Vec = Simd::Floats;
  static constexpr int kMaxRegisters = Simd::kAccumulators;
  OARLOCK_INLINE Vec zero() { return Simd::zero(); }
  OARLOCK_INLINE Vec load(const float* from) { return Simd::load(from); }
  OARLOCK_INLINE void store(float* to, Vec v) { Simd::store(to, v); }
  OARLOCK_INLINE Simd::Broadcast activation(const uint8_t* row, int64_t pair, int step) {
    return Simd::broadcast(reinterpret_cast<const float*>(row) + 2 * pair + step);
  }
  OARLOCK_INLINE Vec step(Vec acc, Simd::Broadcast a, Vec w) { return Simd::fma(a, w, acc); }
};

struct FmaF32 : FmaPolicy {
  static constexpr int kSteps = 2, kChunk = 128;
  OARLOCK_INLINE Vec weight(const uint8_t* panel, int64_t pair, int step) {
    return Simd::load(reinterpret_cast<const float*>(panel) + (2 * pair + step) * kPanel);
  }
};

struct FmaBf16 : FmaPolicy {
  static constexpr int kSteps = 2, kChunk = 256;
  OARLOCK_INLINE Vec weight(const uint8_t* panel, int64_t pair, int step) {
    return step == 0 ? Simd::even_bf16(panel + pair * 64) : Simd::odd_bf16(panel + pair * 64);
  }
};

// Float32 copies of rows: the input of every kernel here.
void widen_rows(const Prepare& job, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const uint16_t* from = job.x.as<uint16_t>() + row * job.x.stride;
    uint32_t* to = reinterpret_cast<uint32_t*>(job.data + row * job.stride);
    for (int64_t i = 0; i < job.x.cols; ++i) to[i] = uint32_t(from[i]) << 16;
  }
}

constexpr int kExpandChunk = 256;  // elements of k: 64 KiB of floats for four panels

// [count][16] floats of k from 32 * first on, of a panel whose codes are in quads; span: tiles of one.
template <Layout kLayout>
void expand_panel(const uint8_t* panel, int64_t span, int64_t first, int64_t count, float* out) {
  constexpr bool kInt4 = kLayout == Layout::int4_quads;
  if (is_spans(kLayout)) {
    constexpr int64_t kTile = kLayout == Layout::int4_spans ? kInt4Tile : kInt8Tile;
    alignas(64) uint8_t opened[kInt8Tile];
    for (int64_t at = first * kGroup; at < first * kGroup + count; at += 4, out += 4 * kPanel) {
      const uint8_t* codes = panel + span_place(at / 64, span, kTile);
      const float* scales = reinterpret_cast<const float*>(panel + at / 64 / span * span_bytes(span, kTile));
      if (kLayout == Layout::int4_spans) {
        if (at % 64 == 0) open_tile(codes, opened);
        codes = opened;
      }
      codes += at % 64 * kPanel;
      for (int col = 0; col < kPanel; ++col)
        for (int j = 0; j < 4; ++j) out[j * kPanel + col] = scales[col] * float(int8_t(codes[col * 4 + j]));
    }
    return;
  }
  for (int64_t group = first; group < first + count / kGroup; ++group) {
    GroupView view = group_view<kInt4>(panel, group);
    float d[kPanel], m[kPanel];
    Simd::store(d, Simd::from_f16(view.d));
    if (kInt4) Simd::store(m, Simd::from_f16(view.m));
    for (int quad = 0; quad < 8; ++quad) {
      for (int col = 0; col < kPanel; ++col) {
        for (int j = 0; j < 4; ++j) {
          float* to = out + ((group - first) * kGroup + quad * 4 + j) * kPanel + col;
          if (kInt4) {
            int code = view.codes[(quad / 2) * 64 + col * 4 + j] >> (4 * (quad & 1)) & 15;
            *to = d[col] * float(code) + m[col];
          } else {
            *to = d[col] * float(int(view.codes[quad * 64 + col * 4 + j]) - 128);
          }
        }
      }
    }
  }
}

template <Layout kLayout>
void expanded_product(const Product& job) {
  float* scratch = reinterpret_cast<float*>(job.scratch);
  constexpr int64_t kPanelScratch = kExpandChunk * kPanel;
  static_assert(kMaxPanels * kPanelScratch * 4 <= kWeightScratch, "scratch too small");
  for (int64_t first = 0; first < job.x->k; first += kExpandChunk) {
    int64_t count = job.x->k - first < kExpandChunk ? job.x->k - first : kExpandChunk;
    for (int panel = 0; panel < job.panels; ++panel)
      expand_panel<kLayout>(job.weights + panel * job.panel_bytes, span_tiles(job.x->k), first / kGroup, count,
                            scratch + panel * kPanelScratch);
    dense_chunk<FmaF32>(job, job.x->data + job.row0 * job.x->stride + first * 4, job.scratch, kPanelScratch * 4, 0, count / 2,
                        first == 0, first + count == job.x->k);
  }
}
