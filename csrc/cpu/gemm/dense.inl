// Dense products by register blocks: R rows by P panels of accumulators, one chain of sums an output, k ascending.
// Included by kernel files inside their unnamed namespace. A Policy says what a step is:
//   kSteps            steps that two elements of k take (2 for FMA, 1 for a pair dot product)
//   Vec, Broadcast    16 accumulators; an activation for all 16 lanes
//   zero, load, store of accumulators;  weight(panel, pair, step), activation(row, pair, step), step(acc, a, w)
//   kBytesPerPair     bytes of a panel for two elements of k
//   kChunk            elements of k after which the next rows come first, so that the panels stay in the L1 cache
// Between chunks the accumulators rest in c, which changes no bit.
#pragma once

#include "cpu/gemm/epilogue.inl"

template <class Policy, int R, int P>
__attribute__((noinline)) void dense_block(const uint8_t* x, int64_t stride, const uint8_t* weights, int64_t panel_bytes,
                                           int64_t first_pair, int64_t last_pair, bool fresh, float* c) {
  typename Policy::Vec acc[R][P];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) acc[r][p] = fresh ? Policy::zero() : Policy::load(c + r * kStride + p * kPanel);
  for (int64_t pair = first_pair; pair < last_pair; ++pair) {
#pragma GCC unroll 2
    for (int s = 0; s < Policy::kSteps; ++s) {
      typename Policy::Vec w[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) w[p] = Policy::weight(weights + p * panel_bytes, pair, s);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        auto a = Policy::activation(x + r * stride, pair, s);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = Policy::step(acc[r][p], a, w[p]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) Policy::store(c + r * kStride + p * kPanel, acc[r][p]);
}

using DenseBlock = void (*)(const uint8_t*, int64_t, const uint8_t*, int64_t, int64_t, int64_t, bool, float*);

// All rows by `panels` panels over [first_pair, last_pair); blocks of nearly equal height.
template <class Policy>
void dense_chunk(const Product& job, const uint8_t* x, const uint8_t* weights, int64_t panel_bytes, int64_t first_pair,
                 int64_t last_pair, bool fresh, bool complete) {
  int rows = job.rows, panels = job.panels;
  int64_t stride = job.x->stride;
  float* c = job.c;
  constexpr int kWide = Policy::kMaxRegisters / 6 >= 4 ? 4 : Policy::kMaxRegisters / 6;  // panels at six rows
  static constexpr DenseBlock kBlocks[6][3] = {
      {dense_block<Policy, 1, 1>, dense_block<Policy, 1, 2>, dense_block<Policy, 1, 4>},
      {dense_block<Policy, 2, 1>, dense_block<Policy, 2, 2>, dense_block < Policy, 2, Policy::kMaxRegisters >= 8 ? 4 : 1 > },
      {dense_block<Policy, 3, 1>, dense_block<Policy, 3, 2>, dense_block < Policy, 3, kWide == 4 ? 4 : 1 > },
      {dense_block<Policy, 4, 1>, dense_block < Policy, 4, kWide >= 2 ? 2 : 1 >, dense_block < Policy, 4,
       kWide == 4 ? 4 : 1 > },
      {dense_block<Policy, 5, 1>, dense_block < Policy, 5, kWide >= 2 ? 2 : 1 >, dense_block < Policy, 5,
       kWide == 4 ? 4 : 1 > },
      {dense_block<Policy, 6, 1>, dense_block < Policy, 6, kWide >= 2 ? 2 : 1 >, dense_block < Policy, 6,
       kWide == 4 ? 4 : 1 > }};
  int blocks = (rows + 5) / 6;
  for (int block = 0, row = 0; block < blocks; ++block) {
    int height = (rows - row + blocks - block - 1) / (blocks - block);
    int widest = Policy::kMaxRegisters / height;
    for (int panel = 0; panel < panels;) {
      int width = panels - panel >= 4 && widest >= 4 ? 4 : panels - panel >= 2 && widest >= 2 ? 2 : 1;
      kBlocks[height - 1][width / 2](x + row * stride, stride, weights + panel * panel_bytes, panel_bytes, first_pair,
                                     last_pair, fresh, c + row * kStride + panel * kPanel);
      panel += width;
    }
    if (complete) finish(job, row, height, 0, panels, c + row * kStride, kStride);
    row += height;
  }
}

template <class Policy>
void dense_product(const Product& job) {
  const uint8_t* x = job.x->data + job.row0 * job.x->stride;
  int64_t pairs = job.x->k / 2, chunk = job.rows <= 6 ? pairs : Policy::kChunk / 2;
  for (int64_t first = 0; first < pairs; first += chunk) {
    int64_t last = first + chunk < pairs ? first + chunk : pairs;
    dense_chunk<Policy>(job, x, job.weights, job.panel_bytes, first, last, first == 0, last == pairs);
  }
}
