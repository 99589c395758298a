// Checks of the products, of the kernels between them, and of attention over the paged cache.
#include <algorithm>
#include <numeric>

#include "cuda/check.h"
#include "cuda/elementwise.h"
#include "cuda/weights.h"
#ifdef OARLOCK_CUDA_HOPPER
#include "cuda/panel.h"
#include "cuda/tile.h"
#endif

namespace oarlock::cuda::check {
namespace {

double dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += double(a[i]) * b[i];
  return sum;
}

// A weight from float values that are already rounded to the type.
std::unique_ptr<Weight> pack(CudaOps& ops, const std::vector<float>& values, int64_t n, int64_t k, bool gated) {
  const int64_t half = gated ? n / 2 : n;
  std::vector<WeightPiece> pieces = {{SourceFormat::f32, half, k, values.data()}};
  if (gated) pieces.push_back({SourceFormat::f32, half, k, values.data() + half * k});
  return ops.pack(pieces, WeightFormat::keep, gated);
}

// A product in tiles or panels of any plan, not only of the one that is chosen; false where the device or the shape has none.
bool product_of_any_plan(CudaOps& ops, const Weight& w, Tensor out, Tensor x, After after, std::string& what) {
#ifdef OARLOCK_CUDA_HOPPER
  const StreamWeight& weight = static_cast<const CudaWeight&>(w).stream;
  if (ops.device().kernels != &kHopperKernels || x.cols % 64 != 0 || x.rows <= kStreamMaxRows) return false;
  if (x.rows <= kTileMaxRows) {
    TilePlan plan{16 * integer(5, 16), 1 << integer(0, 2)};
    if (plan.splits > x.cols / 64 || (w.n + plan.tile_rows - 1) / plan.tile_rows > 24) plan.splits = 1;
    tile_product(ops.stream(), ops.device(), weight, out, x, nullptr, after, plan);
    what += " in tiles of " + std::to_string(plan.tile_rows) + " by " + std::to_string(plan.splits);
    return true;
  }
  if (!takes_panels(weight)) return false;
  PanelPlan plan{after == After::gate ? kGatedWidths[integer(0, 5)] : kStoredWidths[integer(0, 2)], 1, 1};
  const int split = 2 << integer(0, 1), panels = int((w.n + kSplitWidth - 1) / kSplitWidth * ((x.rows + 127) / 128));
  if (after == After::store && integer(0, 1) == 1 && panels * split <= 100 && split <= x.cols / 64) {
    plan = {kSplitWidth, split, 1};
  } else if (x.rows > 128) {
    plan.share_weight = integer(1, 2);
  }
  panel_product(ops.stream(), ops.device(), weight, out, x, nullptr, after, plan);
  what += " in panels of " + std::to_string(plan.width) + ", " + std::to_string(plan.splits) + " splits, shared by " +
          std::to_string(plan.share_weight);
  return true;
#else
  return (void)ops, (void)w, (void)out, (void)x, (void)after, (void)what, false;
#endif
}

struct Sequence {
  int context, fresh;  // tokens after the step, and of these the step's
  std::vector<int32_t> blocks;
  std::vector<float> keys, values;  // [context, kv_heads, D], rotated
};

}  // namespace

void check_linear(CudaOps& ops, Report& report) {
  const DType type = ops.activation_dtype();
  const int shapes[][2] = {{64, 64}, {1152, 896}, {200, 72}, {576, 576}, {2048, 1536}, {4096, 576}, {9728, 128}, {30000, 192}};
  for (auto [n, k] : shapes) {
    std::vector<float> w = normals(size_t(n) * size_t(k), 1.f / std::sqrt(float(k)));
    round_all(w, type);
    auto plain = pack(ops, w, n, k, false), gated = n % 16 == 0 ? pack(ops, w, n, k, true) : nullptr;
    std::vector<float> bias = normals(size_t(n), 1);
    const float* device_bias = ops.upload(bias.data(), n);
    for (int rows : {1, 2, 8, 9, 17, 32, 33, 64, 65, 100, 128, 129, 300}) {
      if (report.quick && ((rows != 2 && rows != 17 && rows != 64 && rows != 129) || int64_t(n) * k > 500000)) continue;
      std::vector<float> x = normals(size_t(rows) * size_t(k), 1);
      round_all(x, type);
      Tensor input = tensor(x, type, rows, k);
      std::vector<double> want(size_t(rows) * size_t(n));
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < n; ++c)
          want[size_t(r) * size_t(n) + size_t(c)] = dot(&x[size_t(r) * size_t(k)], &w[size_t(c) * size_t(k)], k);
      }
      const std::string what =
          "linear " + std::string(name(type)) + " " + std::to_string(rows) + "x" + std::to_string(n) + "x" + std::to_string(k);
      Tensor logits = poisoned(DType::f32, rows, n);
      ops.linear(logits, input, *plain, nullptr);
      ops.synchronize();
      report.close(to_host(logits), want, tolerance(DType::f32), what + " to float");
      std::string planned = what;
      logits = poisoned(DType::f32, rows, n);
      if (product_of_any_plan(ops, *plain, logits, input, After::store, planned)) {
        ops.synchronize();
        report.close(to_host(logits), want, tolerance(DType::f32), planned);
      }
      if (gated) {
        Tensor out = poisoned(type, rows, n / 2);
        planned = what + " gated";
        if (integer(0, 1) == 0 || !product_of_any_plan(ops, *gated, out, input, After::gate, planned)) {
          ops.gated_linear(out, input, *gated);
        }
        ops.synchronize();
        std::vector<double> product(size_t(rows) * size_t(n / 2));
        for (int r = 0; r < rows; ++r) {
          for (int c = 0; c < n / 2; ++c) {
            const double gate = want[size_t(r) * size_t(n) + size_t(c)], up = want[size_t(r) * size_t(n) + size_t(n / 2 + c)];
            product[size_t(r) * size_t(n / 2) + size_t(c)] = gate / (1 + std::exp(-gate)) * up;
          }
        }
        report.close(to_host(out), product, 2 * tolerance(type), planned);
      }
      Tensor out = poisoned(type, rows, n);
      ops.linear(out, input, *plain, device_bias);
      ops.synchronize();
      for (size_t i = 0; i < want.size(); ++i) want[i] += bias[i % size_t(n)];
      report.close(to_host(out), want, tolerance(type), what + " with bias");
    }
  }
}

void check_elementwise(CudaOps& ops, Report& report) {
  const DType type = ops.activation_dtype();
  for (int cols : {64, 576, 896, 4096, 8192}) {
    const int rows = integer(1, 40), vocab = 50;
    std::vector<float> table = normals(size_t(vocab) * size_t(cols), 1), delta = normals(size_t(rows) * size_t(cols), 1),
                       weight = normals(size_t(cols), 1);
    round_all(table, type);
    round_all(delta, type);
    auto packed = pack(ops, table, vocab, cols, false);
    std::vector<int32_t> ids;
    for (int r = 0; r < rows; ++r) ids.push_back(integer(0, vocab - 1));
    Tensor residual = poisoned(DType::f32, rows, cols), out = poisoned(type, rows, cols);
    const int outside = integer(0, 3);  // ids before the table's first, which another rank would have
    for (int32_t& id : ids) id += outside;
    ops.embed(residual, *packed, to_device(ids), outside);
    for (int32_t& id : ids) id -= outside;
    const float* device_weight = ops.upload(weight.data(), cols);
    for (int pass = 0; pass < 3; ++pass) {  // alone, with a sum in the activations' type, with one in float
      Tensor added = tensor(delta, pass == 1 ? type : DType::f32, rows, cols);
      ops.add_norm(out, residual, pass == 0 ? nullptr : &added, device_weight, 1e-5f);
      ops.synchronize();
      std::vector<double> want(delta.size()), sum(delta.size());
      for (int r = 0; r < rows; ++r) {
        double squares = 0;
        for (int c = 0; c < cols; ++c) {
          const size_t i = size_t(r) * size_t(cols) + size_t(c);
          sum[i] = double(table[size_t(ids[size_t(r)]) * size_t(cols) + size_t(c)]) + pass * double(delta[i]);
          squares += sum[i] * sum[i];
        }
        for (int c = 0; c < cols; ++c) {
          const size_t i = size_t(r) * size_t(cols) + size_t(c);
          want[i] = sum[i] / std::sqrt(squares / cols + 1e-5) * weight[size_t(c)];
        }
      }
      const std::string what = "norm of " + std::to_string(rows) + "x" + std::to_string(cols) + " pass " + std::to_string(pass);
      report.close(to_host(out), want, tolerance(type), what);
      report.close(to_host(residual), sum, 1e-6, what + " residual");
    }
    std::vector<int32_t> picked = {rows - 1, 0, rows / 2};
    Tensor gathered = poisoned(DType::f32, 3, cols);
    ops.gather_rows(gathered, residual, to_device(picked));
    ops.synchronize();
    std::vector<float> all = to_host(residual), got = to_host(gathered);
    bool same = true;
    for (size_t i = 0; i < got.size(); ++i)
      same &= got[i] == all[size_t(picked[i / size_t(cols)]) * size_t(cols) + i % size_t(cols)];
    report.expect(same, "gather of " + std::to_string(cols) + " columns");
  }
}

// Whole layers of attention: prompts arrive in random pieces, mixed with single tokens, through rope_and_cache.
void check_attention(CudaOps& ops, Report& report) {
  const DType type = ops.activation_dtype();
  struct Case {
    int heads, kv_heads, dim, window;
    bool norms;
  };
  for (const Case& c : {Case{32, 8, 128, 0, false}, Case{14, 2, 64, 0, true}, Case{9, 3, 64, 100, false},
                        Case{16, 1, 128, 0, true}, Case{4, 4, 128, 700, false}, Case{32, 8, 64, 0, false}}) {
    if (report.quick && (c.window > 100 || (c.heads == 32 && c.dim == 64))) continue;  // the kernels of others
    const int D = c.dim, pool = 900, width = (c.heads + 2 * c.kv_heads) * D, table_width = 60, max_context = 3000;
    std::vector<float> rotary(size_t(max_context) * size_t(D));
    for (int p = 0; p < max_context; ++p) {
      for (int i = 0; i < D / 2; ++i) {
        const double angle = p * std::pow(10000.0, -2.0 * i / D);
        rotary[size_t(p * D + i)] = float(std::cos(angle));
        rotary[size_t(p * D + D / 2 + i)] = float(std::sin(angle));
      }
    }
    std::vector<float> q_norm = normals(size_t(D), 1), k_norm = normals(size_t(D), 1);
    const float *device_rotary = ops.upload(rotary.data(), int64_t(rotary.size())),
                *device_q = c.norms ? ops.upload(q_norm.data(), D) : nullptr,
                *device_k = c.norms ? ops.upload(k_norm.data(), D) : nullptr;
    const KvLayer cache = ops.make_kv_layer(pool, c.kv_heads, D);
    const AttentionShape shape{c.heads, c.kv_heads, D, 1.f / std::sqrt(float(D)), c.window};
    std::vector<int32_t> free_blocks(pool);
    std::iota(free_blocks.begin(), free_blocks.end(), 0);
    std::shuffle(free_blocks.begin(), free_blocks.end(), generator());
    std::vector<Sequence> sequences(report.quick ? 4 : c.kv_heads >= 8 ? 40 : 9);
    for (int step = 0; step < (report.quick ? 5 : 6); ++step) {
      std::vector<int32_t> positions, slots, starts = {0}, contexts, tables;
      for (size_t s = 0; s < sequences.size(); ++s) {
        Sequence& sequence = sequences[s];
        const bool grows = step < 2 || (step < 4 && s % 2 == 0);  // then a mixed step, then single tokens only
        sequence.fresh = grows ? (s == 3 ? integer(report.quick ? 200 : 500, report.quick ? 300 : 900)
                                         : integer(2, c.kv_heads >= 8 || report.quick ? 60 : 200))
                               : 1;
        for (int i = 0; i < sequence.fresh; ++i) {
          const int position = sequence.context + i;
          if (position / kBlockTokens == int(sequence.blocks.size())) {
            sequence.blocks.push_back(free_blocks.back());
            free_blocks.pop_back();
          }
          positions.push_back(position);
          slots.push_back(sequence.blocks.back() * kBlockTokens + position % kBlockTokens);
        }
        sequence.context += sequence.fresh;
        starts.push_back(int(positions.size()));
        contexts.push_back(sequence.context);
        for (int b = 0; b < table_width; ++b)
          tables.push_back(b < int(sequence.blocks.size()) ? sequence.blocks[size_t(b)] : -1);
      }
      const int tokens = int(positions.size());
      std::vector<float> qkv = normals(size_t(tokens) * size_t(width), 1);
      round_all(qkv, type);
      Batch batch;
      batch.tokens = tokens;
      batch.sequences = int(sequences.size());
      batch.positions = to_device(positions);
      batch.slots = to_device(slots);
      batch.query_starts = to_device(starts);
      batch.context_lens = to_device(contexts);
      batch.block_tables = to_device(tables);
      batch.block_table_stride = table_width;
      Tensor device_qkv = tensor(qkv, type, tokens, width), out = poisoned(type, tokens, c.heads * D);
      if (step % 2 == 1) {  // from float32
        device_qkv = poisoned(type, tokens, width);
        rope_and_cache(ops.stream(), device_qkv, to_device(qkv), shape, device_q, device_k, 1e-6f, device_rotary, cache, batch);
      } else {
        ops.rope_and_cache(device_qkv, shape, device_q, device_k, 1e-6f, device_rotary, cache, batch);
      }
      ops.attention(out, device_qkv, shape, cache, batch);
      ops.synchronize();

      std::vector<double> want(size_t(tokens) * size_t(c.heads * D));
      std::vector<double> weights;
      for (size_t s = 0; s < sequences.size(); ++s) {
        Sequence& sequence = sequences[s];
        for (int t = starts[s]; t < starts[s + 1]; ++t) {
          for (int head = 0; head < c.heads + c.kv_heads; ++head) {
            float* x = &qkv[size_t(t) * size_t(width) + size_t(head * D)];
            const std::vector<float>& norm = head < c.heads ? q_norm : k_norm;
            const double scale = c.norms ? 1 / std::sqrt(dot(x, x, D) / D + 1e-6) : 1;
            for (int i = 0; i < D / 2; ++i) {
              const float* table = &rotary[size_t(positions[size_t(t)] * D)];
              const double a = x[i] * scale * (c.norms ? norm[size_t(i)] : 1),
                           b = x[i + D / 2] * scale * (c.norms ? norm[size_t(i + D / 2)] : 1);
              x[i] = round_to(type, float(a * table[i] - b * table[D / 2 + i]));
              x[i + D / 2] = round_to(type, float(b * table[i] + a * table[D / 2 + i]));
            }
          }
          const float* k = &qkv[size_t(t) * size_t(width) + size_t(c.heads * D)];
          sequence.keys.insert(sequence.keys.end(), k, k + c.kv_heads * D);
          sequence.values.insert(sequence.values.end(), k + c.kv_heads * D, k + 2 * c.kv_heads * D);
        }
        // A few rows of every sequence, the first and the last among them.
        for (int t = starts[s]; t < starts[s + 1]; ++t) {
          const int position = positions[size_t(t)], oldest = c.window > 0 ? std::max(0, position - c.window + 1) : 0;
          const bool looked_at = t == starts[s] || t + 1 == starts[s + 1] || t % 37 == 0;
          for (int head = 0; looked_at && head < c.heads; ++head) {
            const int kv = head / (c.heads / c.kv_heads);
            double top = -1e30, total = 0;
            weights.assign(size_t(position + 1), 0);
            for (int p = oldest; p <= position; ++p) {
              weights[size_t(p)] = shape.scale * dot(&qkv[size_t(t) * size_t(width) + size_t(head * D)],
                                                     &sequence.keys[size_t(p * c.kv_heads + kv) * size_t(D)], D);
              top = std::max(top, weights[size_t(p)]);
            }
            double* to = &want[size_t(t) * size_t(c.heads * D) + size_t(head * D)];
            for (int p = oldest; p <= position; ++p) total += weights[size_t(p)] = std::exp(weights[size_t(p)] - top);
            for (int p = oldest; p <= position; ++p) {
              const float* v = &sequence.values[size_t(p * c.kv_heads + kv) * size_t(D)];
              for (int i = 0; i < D; ++i) to[i] += weights[size_t(p)] / total * v[i];
            }
          }
        }
      }
      const std::vector<float> all = to_host(out);
      std::vector<float> got;
      std::vector<double> expected;
      bool written = true;
      for (size_t s = 0; s < sequences.size(); ++s) {
        for (int t = starts[s]; t < starts[s + 1]; ++t) {
          const bool looked_at = t == starts[s] || t + 1 == starts[s + 1] || t % 37 == 0;
          for (int i = 0; i < c.heads * D; ++i) {
            const size_t at = size_t(t) * size_t(c.heads * D) + size_t(i);
            written &= !std::isnan(all[at]);
            if (looked_at) got.push_back(all[at]), expected.push_back(want[at]);
          }
        }
      }
      const std::string what = "attention " + std::string(name(type)) + " heads " + std::to_string(c.heads) + "/" +
                               std::to_string(c.kv_heads) + " of " + std::to_string(D) + " window " + std::to_string(c.window) +
                               " step " + std::to_string(step);
      report.expect(written, what + ": every element is a number");
      report.close(got, expected, 2 * tolerance(type), what);
    }
  }
}

}  // namespace oarlock::cuda::check
