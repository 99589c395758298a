// Sampling without a sort, for a team of threads that is a cluster's or a block's: each block of the team has a contiguous
// slice of the vocabulary. Greedy rows need one pass. top-k and top-p cuts are found by refining a histogram of the logits'
// bits three times (11, 11 and 10 bits), with counts and masses in integers.
#pragma once

#include "cuda/ptx.cuh"
#include "cuda/sampler_row.cuh"

namespace oarlock::cuda::sampler {

constexpr int kBins = 2048, kPieces = 3, kPieceBits = 14, kMostWarps = 32;
constexpr float kMassScale = 4398046511104.f;  // 2^42: the weight of the likeliest token

struct Shared {
  uint64_t exchange[2];  // what this block tells the others, in turns
  uint64_t warp_values[kMostWarps];
  uint32_t counts[kBins];
  uint32_t masses[kPieces][kBins];  // a weight's 42 bits in three pieces, so that sums fit 32 bits
  uint64_t scan_counts[kMostWarps], scan_masses[kMostWarps];
  // What the first block finds in the merged histogram.
  uint64_t above_count, above_mass, total_count, total_mass;
  int bin;
  int token;
};

struct Cut {
  uint32_t key = 0;               // kept: keys above, and of those equal
  uint64_t quota = ~uint64_t(0);  // the first so many in order of id
};

struct Found {
  uint64_t above_count, above_mass, total_count, total_mass;
  int bin;
};

// The threads that work on a row: Team::kBlocks blocks of Team::kThreads threads.
//   rank(): this block's number; sync(): a barrier of all of them; peer(b): the Shared of block b
template <typename Team>
struct Context {
  static constexpr int kBlocks = Team::kBlocks, kThreads = Team::kThreads;
  Team team;
  Shared& shared;
  int turn = 0;

  __device__ Context(Team team, Shared& shared) : team(team), shared(shared) {}

  // The reduction of every thread's value, over the block and then the others; all get the result.
  template <typename F>
  __device__ uint64_t reduce(uint64_t value, F&& combine) {
    value = reduce_block(value, combine);
    if (threadIdx.x == 0) shared.exchange[turn] = value;
    team.sync();
    for (int b = 0; b < kBlocks; ++b) {
      const uint64_t theirs = team.peer(b)->exchange[turn];
      value = b == 0 ? theirs : combine(value, theirs);
    }
    turn ^= 1;
    return value;
  }

  template <typename F>
  __device__ uint64_t reduce_block(uint64_t value, F&& combine) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) value = combine(value, __shfl_xor_sync(~0u, value, d));
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared.warp_values[threadIdx.x / 32] = value;
    __syncthreads();
    value = shared.warp_values[0];
    for (int w = 1; w < kThreads / 32; ++w) value = combine(value, shared.warp_values[w]);
    return value;
  }

  // The sum of the values of all threads before this one, in order of block and thread; `total` gets the sum of all.
  __device__ uint64_t sum_before(uint64_t value, uint64_t& total) {
    uint64_t inclusive = value;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const uint64_t before = __shfl_up_sync(~0u, inclusive, d);
      if (lane >= d) inclusive += before;
    }
    __syncthreads();
    if (lane == 31) shared.warp_values[warp] = inclusive;
    __syncthreads();
    uint64_t before = inclusive - value, block = 0;
    for (int w = 0; w < kThreads / 32; ++w) {
      if (w < warp) before += shared.warp_values[w];
      block += shared.warp_values[w];
    }
    if (threadIdx.x == 0) shared.exchange[turn] = block;
    team.sync();
    total = 0;
    for (int b = 0; b < kBlocks; ++b) {
      const uint64_t theirs = team.peer(b)->exchange[turn];
      if (b < team.rank()) before += theirs;
      total += theirs;
    }
    turn ^= 1;
    return before;
  }
};

struct Max {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};

// The best (value, then lowest id) of a row as one number; 0 = the row holds what is no number, or nothing above -inf.
__device__ __forceinline__ uint64_t candidate(float x, int id) { return uint64_t(key_of(x)) << 32 | uint32_t(~id); }
constexpr uint64_t kPoison = ~uint64_t(0);

struct Slice {
  float* row;  // of the whole row, of which this block has [begin, end); the logits themselves, where these are not edited
  int begin, end;
};

__device__ __forceinline__ uint64_t candidate_or_poison(float x, int id) {
  return isnan(x) || x == INFINITY ? kPoison : x == -INFINITY ? 0 : candidate(x, id);
}

// Copies the slice to where it is worked on; the best of the row.
template <typename Team>
__device__ uint64_t load_slice(Context<Team>& context, const Slice& slice, const float* row) {
  constexpr int kThreads = Team::kThreads;
  uint64_t best = 0;
#pragma unroll 8
  for (int id = slice.begin + threadIdx.x; id < slice.end; id += kThreads) {
    const float x = row[id];
    if (slice.row != row) slice.row[id] = x;
    best = Max()(best, candidate_or_poison(x, id));
  }
  best = context.reduce(best, Max());
  return best == kPoison ? 0 : best;
}

// A thread's part of the best of [begin, end), which passes by in pieces of four when rows are aligned so.
template <int kThreads>
__device__ __forceinline__ uint64_t best_in_passing(const float* row, int begin, int end, bool aligned) {
  float best = -INFINITY;
  int best_id = 0;
  bool poisoned = false;
  auto look = [&](float x, int id) {
    poisoned |= !(x < INFINITY);
    if (x > best) best = x, best_id = id;
  };
  const int whole = aligned ? end / 4 * 4 : begin;
#pragma unroll 8
  for (int id = begin + int(threadIdx.x) * 4; id < whole; id += kThreads * 4) {
    const float4 x = *reinterpret_cast<const float4*>(row + id);
    look(x.x, id), look(x.y, id + 1), look(x.z, id + 2), look(x.w, id + 3);
  }
  for (int id = whole + int(threadIdx.x); id < end; id += kThreads) look(row[id], id);
  return poisoned ? kPoison : best == -INFINITY ? 0 : candidate(best, best_id);
}

// What there is to say of a row of which only the best is wanted.
__device__ __forceinline__ void write_best(const Sampled& sampled, int row_index, uint64_t best) {
  if (best == kPoison) best = 0;
  sampled.token[row_index] = best > 0 ? int(~uint32_t(best)) : 0;
  sampled.status[row_index] = best == 0;
  sampled.logprob[row_index] = 0;
}

// Forbids what the mask does not allow; the best of the row.
template <typename Team>
__device__ uint64_t mask_slice(Context<Team>& context, const Slice& slice, const uint32_t* mask) {
  constexpr int kThreads = Team::kThreads;
  uint64_t best = 0;
  for (int id = slice.begin + threadIdx.x; id < slice.end; id += kThreads) {
    if (mask != nullptr && (mask[id / 32] >> (id % 32) & 1) == 0) slice.row[id] = -INFINITY;
    best = Max()(best, candidate_or_poison(slice.row[id], id));
  }
  best = context.reduce(best, Max());
  return best == kPoison ? 0 : best;
}

// What a row's filters make of a logit.
struct Weigher {
  float largest, inverse_temperature, floor;
  __device__ uint64_t mass(float x) const {
    const float t = (x - largest) * inverse_temperature;
    return t >= floor ? __float2ull_rn(expf(t) * kMassScale) : 0;
  }
  __device__ bool eligible(float x) const { return (x - largest) * inverse_temperature >= floor; }
};

// Counts and masses of the logits whose key starts with `prefix` (above bit `shift + bits`), by the next bits of the key.
template <typename Team>
__device__ void histogram(Context<Team>& context, const Slice& slice, const Weigher& weigher, uint32_t least_key,
                          uint32_t prefix, int shift, int bits) {
  constexpr int kThreads = Team::kThreads;
  Shared& shared = context.shared;
  for (int i = threadIdx.x; i < kBins; i += kThreads) {
    shared.counts[i] = 0;
    for (int piece = 0; piece < kPieces; ++piece) shared.masses[piece][i] = 0;
  }
  __syncthreads();
#pragma unroll 4
  for (int id = slice.begin + threadIdx.x; id < slice.end; id += kThreads) {
    const float x = slice.row[id];
    const uint32_t key = key_of(x);
    if (key < least_key || x == -INFINITY || !weigher.eligible(x)) continue;
    if (shift + bits < 32 && key >> (shift + bits) != prefix) continue;
    const int bin = key >> shift & ((1 << bits) - 1);
    atomicAdd(&shared.counts[bin], 1u);
    const uint64_t mass = weigher.mass(x);
    for (int piece = 0; piece < kPieces; ++piece) {
      const uint32_t part = uint32_t(mass >> (piece * kPieceBits)) & (piece + 1 == kPieces ? ~0u : (1u << kPieceBits) - 1);
      if (part != 0) atomicAdd(&shared.masses[piece][bin], part);
    }
  }
  context.team.sync();
}

// Merges the blocks' histograms in the first block, which looks, from the largest key down, for the bin in which the count
// reaches `rank`, or, when rank is 0, the mass reaches the share `top_p` of all (or `mass`, when that is not 0).
template <typename Team>
__device__ Found find_bin(Context<Team>& context, uint64_t rank, float top_p, uint64_t mass) {
  constexpr int kThreads = Team::kThreads, kBlocks = Team::kBlocks;
  Shared& shared = context.shared;
  if (context.team.rank() == 0) {
    constexpr int kEach = kBins / kThreads;
    uint64_t counts[kEach] = {}, masses[kEach] = {}, count = 0, sum = 0;
    for (int i = 0; i < kEach; ++i) {
      const int bin = kBins - 1 - (int(threadIdx.x) * kEach + i);
      for (int b = 0; b < kBlocks; ++b) {
        const Shared* theirs = context.team.peer(b);
        counts[i] += theirs->counts[bin];
        for (int piece = 0; piece < kPieces; ++piece) masses[i] += uint64_t(theirs->masses[piece][bin]) << (piece * kPieceBits);
      }
      count += counts[i];
      sum += masses[i];
    }
    uint64_t count_to = count, sum_to = sum;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const uint64_t c = __shfl_up_sync(~0u, count_to, d), m = __shfl_up_sync(~0u, sum_to, d);
      if (lane >= d) count_to += c, sum_to += m;
    }
    if (lane == 31) shared.scan_counts[warp] = count_to, shared.scan_masses[warp] = sum_to;
    if (threadIdx.x == 0) shared.bin = -1;
    __syncthreads();
    uint64_t above_count = count_to - count, above_mass = sum_to - sum, total_count = 0, total_mass = 0;
    for (int w = 0; w < kThreads / 32; ++w) {
      if (w < warp) above_count += shared.scan_counts[w], above_mass += shared.scan_masses[w];
      total_count += shared.scan_counts[w];
      total_mass += shared.scan_masses[w];
    }
    if (threadIdx.x == 0) shared.total_count = total_count, shared.total_mass = total_mass;
    const uint64_t wanted = rank > 0 ? rank : mass > 0 ? mass : share_of(total_mass, top_p);
    for (int i = 0; i < kEach; ++i) {
      const uint64_t before = rank > 0 ? above_count : above_mass, here = rank > 0 ? counts[i] : masses[i];
      if (before < wanted && before + here >= wanted) {
        shared.bin = kBins - 1 - (int(threadIdx.x) * kEach + i);
        shared.above_count = above_count;
        shared.above_mass = above_mass;
      }
      above_count += counts[i];
      above_mass += masses[i];
    }
  }
  context.team.sync();
  const Shared* first = context.team.peer(0);
  const Found found = {first->above_count, first->above_mass, first->total_count, first->total_mass, first->bin};
  context.team.sync();
  return found;
}

// The key at which the count from above reaches `rank`, or the mass the share top_p of `total` (0: of all that is eligible,
// which is put there), and what lies above it.
struct Selected {
  bool exists;  // false: all of it stays below
  uint32_t key;
  uint64_t above_count, above_mass, wanted;
};
template <typename Team>
__device__ Selected select_key(Context<Team>& context, const Slice& slice, const Weigher& weigher, uint32_t least_key,
                               uint64_t rank, float top_p, uint64_t& total) {
  Selected out = {false, 0, 0, 0, 0};
  uint64_t mass = total > 0 ? share_of(total, top_p) : 0;
  uint32_t prefix = 0;
  int shift = 32;
  for (int bits : {11, 11, 10}) {
    shift -= bits;
    histogram(context, slice, weigher, least_key, prefix, shift, bits);
    const Found found = find_bin(context, rank > 0 ? rank - out.above_count : 0, top_p, mass > 0 ? mass - out.above_mass : 0);
    if (shift == 21) {
      if (total == 0) total = found.total_mass;
      if (mass == 0) mass = share_of(total, top_p);
      if (found.bin < 0) return out;
    }
    prefix = prefix << bits | uint32_t(found.bin);
    out.above_count += found.above_count;
    out.above_mass += found.above_mass;
  }
  out.exists = true;
  out.key = prefix;
  out.wanted = mass;
  return out;
}

template <typename Team>
__device__ int draw(Context<Team>& context, const Slice& slice, const RowSettings& row, float largest) {
  const Weigher weigher = {largest, 1.f / row.temperature, row.min_p > 0 ? logf(row.min_p) : -INFINITY};
  Cut cut;
  uint64_t total = 0;
  if (row.top_k > 0) {
    const Selected k = select_key(context, slice, weigher, 0, uint64_t(row.top_k), 1.f, total);
    if (k.exists) {
      cut.key = k.key;
      cut.quota = uint64_t(row.top_k) - k.above_count;
      total = k.above_mass + cut.quota * weigher.mass(value_of(k.key));
    }
  }
  if (row.top_p < 1) {
    const Selected p = select_key(context, slice, weigher, cut.key, 0, row.top_p, total);
    if (p.exists) {
      const uint64_t each = weigher.mass(value_of(p.key)), missing = p.wanted - p.above_mass;
      const uint64_t needed = each > 0 ? (missing + each - 1) / each : 1;
      cut.quota = p.key == cut.key && cut.quota < needed ? cut.quota : needed;
      cut.key = p.key;
    }
  }

  // Every warp walks a contiguous run of ids: first to rank the ties at the cut, then to sum the masses, then one to find.
  const int lane = threadIdx.x % 32, warps = Team::kThreads / 32, length = slice.end - slice.begin;
  const int run = (length + warps * 32 - 1) / (warps * 32) * 32;
  const int begin = min(slice.begin + int(threadIdx.x) / 32 * run, slice.end), end = min(begin + run, slice.end);
  uint64_t ties_before = 0, all = 0;
  if (cut.quota != ~uint64_t(0)) {
    uint64_t ties = 0;
#pragma unroll 4
    for (int id = begin + lane; id < end; id += 32) ties += key_of(slice.row[id]) == cut.key;
    ties_before = __shfl_sync(~0u, context.sum_before(ties, all), 0);
  }
  // The mass of this lane's of the 32 ids from `base` on; `ties` counts those at the cut, up to these and then with them.
  auto mass_of = [&](int base, uint64_t& ties) -> uint64_t {
    const float x = base + lane < end ? slice.row[base + lane] : -INFINITY;
    const uint32_t key = key_of(x), tied = __ballot_sync(~0u, key == cut.key);
    const uint64_t place = ties + uint64_t(__popc(tied & ((1u << lane) - 1)));
    ties += uint64_t(__popc(tied));
    if (x == -INFINITY || key < cut.key || (key == cut.key && place >= cut.quota)) return 0;
    return weigher.mass(x);
  };
  uint64_t mine = 0, ties = ties_before;
#pragma unroll 4
  for (int base = begin; base < end; base += 32) mine += mass_of(base, ties);
  uint64_t before = __shfl_sync(~0u, context.sum_before(mine, all), 0);
#pragma unroll
  for (int d = 16; d > 0; d /= 2) mine += __shfl_xor_sync(~0u, mine, d);
  const uint64_t wanted = __umul64hi(random_bits(row.seed, row.draw) << 11, all);
  int token = -1;
  if (before <= wanted && wanted < before + mine) {
    ties = ties_before;
    for (int base = begin; base < end && token < 0; base += 32) {
      uint64_t sum = mass_of(base, ties);
#pragma unroll
      for (int d = 1; d < 32; d *= 2) {
        const uint64_t below = __shfl_up_sync(~0u, sum, d);
        if (lane >= d) sum += below;
      }
      const uint32_t beyond = __ballot_sync(~0u, before + sum > wanted);
      if (beyond != 0) token = base + __ffs(int(beyond)) - 1;
      before += __shfl_sync(~0u, sum, 31);
    }
  }
  return int(context.reduce(uint64_t(token + 1), Max())) - 1;
}

// One row: `slice` is where this block's share of it is worked on.
template <typename Team>
__device__ void sample_row(Context<Team>& context, const Slice& slice, const float* raw, int64_t stride, int row_index,
                           const RowSettings& row, const Sampling& sampling, const Sampled& sampled) {
  constexpr int kThreads = Team::kThreads;
  const bool first = context.team.rank() == 0 && threadIdx.x == 0;

  if (row.only_best()) {
    const uint64_t best = context.reduce(best_in_passing<kThreads>(raw, slice.begin, slice.end, stride % 4 == 0), Max());
    if (first) write_best(sampled, row_index, best);
    return;
  }
  const uint64_t raw_best = load_slice(context, slice, raw);
  int token = row.target, status = raw_best == 0;
  const bool wants_logprobs = status == 0 && (row.top_logprobs >= 0 || row.target >= 0);
  float raw_largest = value_of(uint32_t(raw_best >> 32)), log_sum = 0;
  if (wants_logprobs) {
    double sum = 0;
    for (int id = slice.begin + threadIdx.x; id < slice.end; id += kThreads) sum += expf(slice.row[id] - raw_largest);
    auto add = [](uint64_t a, uint64_t b) {
      return uint64_t(__double_as_longlong(__longlong_as_double(int64_t(a)) + __longlong_as_double(int64_t(b))));
    };
    log_sum = float(log(__longlong_as_double(int64_t(context.reduce(uint64_t(__double_as_longlong(sum)), add)))));
    // The alternatives, best first: the best of what comes after the one before.
    uint64_t previous = kPoison;
    const int wanted = min(row.top_logprobs, kMaxTopLogprobs);
    for (int i = 0; i < wanted; ++i) {
      uint64_t best = 0;
      if (i == 0) {
        best = raw_best;
      } else if (previous > 0) {
        for (int id = slice.begin + threadIdx.x; id < slice.end; id += kThreads) {
          const float x = slice.row[id];
          const uint64_t mine = x == -INFINITY ? 0 : candidate(x, id);
          if (mine < previous && mine > best) best = mine;
        }
        best = context.reduce(best, Max());
      }
      if (first) {
        const int64_t at = int64_t(row_index) * kMaxTopLogprobs + i;
        sampled.top_ids[at] = best > 0 ? int(~uint32_t(best)) : -1;
        sampled.top_logprobs[at] = best > 0 ? value_of(uint32_t(best >> 32)) - raw_largest - log_sum : -INFINITY;
      }
      previous = best;
    }
  }
  if (status == 0 && token < 0) {
    uint64_t best = raw_best;
    if (row.edits_logits()) {
      edit_slice(slice.row, slice.begin, slice.end, row, sampling);
      best = mask_slice(context, slice, row.mask);
    }
    status = best == 0;
    if (status == 0) {
      token = row.temperature < kLeastTemperature ? int(~uint32_t(best))
                                                  : draw(context, slice, row, value_of(uint32_t(best >> 32)));
    }
  }
  if (first) {
    sampled.token[row_index] = status == 0 ? token : 0;
    sampled.status[row_index] = status;
    sampled.logprob[row_index] = wants_logprobs && status == 0 ? raw[token] - raw_largest - log_sum : 0.f;
  }
}

}  // namespace oarlock::cuda::sampler
