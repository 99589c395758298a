// Sampling from a vocabulary whose logits lie in parts: each part tells a share of a row, far less than its logits, and the
// shares of all parts mostly decide the token that one sampler would have drawn from the whole.
//
// A share has the part's best tokens and the weight of all. Greedy rows, targets and top-k are decided by that; so is a
// nucleus (top-p, min-p) unless it reaches beyond the best tokens of a part, when the row's logits are wanted after all. A draw
// without filters falls into the part that its place in the running sum of weights lies in, which is then asked for the token.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/sampler/draw.h"
#include "cpu/sampler/row.h"
#include "cpu/sampler/scan.h"

namespace oarlock::cpu {

constexpr int kMostShared = kMostTop;  // tokens of a share

struct Share {
  double weight;      // of all tokens of the part, the likeliest of it weighing 1, at the row's temperature
  double raw_weight;  // the same at temperature 1
  float largest;      // -inf when no token is above that
  float target;       // the target's logit, of the part that has it
  int32_t bad;        // NaN or +inf among the logits
  int32_t tokens;     // how many follow: fewer than were asked for when there are no more
  // then TokenLogit[], best first
};

// What a row wants of every part; the same on all ranks, which have the row's settings.
struct Wanted {
  bool logits = false;  // all of them, for penalties, bias, masks and wide top-k
  bool open = false;    // a second exchange may be needed
  int tokens = 0;       // in the share
};
Wanted wanted_of(const RowSettings& row, bool edited);

// The bytes of a share with so many tokens, a multiple of 8.
inline size_t share_bytes(int tokens) { return sizeof(Share) + size_t(tokens) * sizeof(TokenLogit); }

inline const TokenLogit* tokens_of(const Share& share) { return reinterpret_cast<const TokenLogit*>(&share + 1); }

// The share of `count` logits, whose first is token `first`, with up to `tokens` tokens behind it.
void make_share(const SamplerScans& scans, const float* logits, int64_t count, int64_t first, const RowSettings& row,
                int tokens, Share& share);

// How a row goes on once all shares are there.
struct Verdict {
  enum Kind : int32_t { drawn, find, logits };
  int32_t kind = drawn;
  int32_t part = 0;    // find: which has the token
  double weight = 0;   // find: how much of the part's own weight lies before it
  double log_sum = 0;  // of the exponentials of all logits, where a log-probability is wanted
};

// A row's token where the verdict was find; by the part that has it.
TokenLogit find_in_part(const SamplerScans& scans, const float* logits, int64_t count, int64_t first, float temperature,
                        double weight, RowScratch& scratch);

// One row of whose logits all shares are known, in order of parts.
class SharedRow {
 public:
  SharedRow(const Share* const* shares, int parts, const RowSettings& settings);

  // Decides the row, whose place in `sampled` is `row`, and writes it there; of a find all but the token and its
  // log-probability. target_part: the part that has the target, if there is one.
  Verdict draw(const SamplerScans& scans, int target_part, const Sampled& sampled, int row, RowScratch& scratch) const;

 private:
  double scale(int part, double factor) const;
  Verdict find(double u) const;
  bool draw_filtered(const SamplerScans& scans, double u, RowScratch& scratch, TokenLogit& chosen) const;
  double report(const Sampled& sampled, int row, RowScratch& scratch) const;

  const Share* const* shares_;
  const int parts_;
  const RowSettings& settings_;
  float largest_ = -INFINITY;
  int best_part_ = 0;
  bool bad_ = false;
};

// Writes a row's token, whose log-probability is its logit less log_sum.
void write_token(TokenLogit chosen, double log_sum, const RowSettings& settings, const Sampled& sampled, int row);

}  // namespace oarlock::cpu
