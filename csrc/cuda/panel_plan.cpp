// Which products of many rows are cut into panels, and how; seen to be quickest on an H200.
#include "cuda/panel.h"

namespace oarlock::cuda {
namespace {

// The width whose turns of the multiprocessors cost least: a turn is its panel's rows, and about 32 more for what it has of x.
// Of those that are as good, the first.
template <typename Widths>
int least_width(const Device& device, int64_t n, int64_t x_panels, const Widths& widths) {
  int64_t least = 0;
  int best = 0;
  for (const int width : widths) {
    const int64_t turns = ((n + width - 1) / width * x_panels + device.multiprocessors - 1) / device.multiprocessors;
    if (best == 0 || turns * (width + 32) < least) {
      least = turns * (width + 32);
      best = width;
    }
  }
  return best;
}

}  // namespace

PanelPlan choose_panel_plan(const Device& device, const StreamWeight& weight, int64_t rows, After after, bool with_bias) {
  PanelPlan plan;
  if (!takes_panels(weight)) return plan;
  const int64_t panels = (rows + kPanelRows - 1) / kPanelRows;
  if (after == After::gate) {
    // Between one panel of x and one and a half, much of the second is idle, and cuBLASLt has a tile that fits.
    if (rows <= kPanelRows || rows > kPanelRows * 11 / 8) plan.width = least_width(device, weight.n, panels, kGatedWidths);
    plan.share_weight = panels % 2 == 0 ? 2 : 1;
    return plan;
  }
  // Where panels of 64 rows are few, blocks split the columns. Clusters of four do not find room on every multiprocessor.
  const int64_t narrow = (weight.n + kSplitWidth - 1) / kSplitWidth;
  for (const int splits : {4, 2}) {
    const bool fits = narrow * splits <= device.multiprocessors - (splits > 2 ? 16 : 0);
    const bool fills = narrow * splits * 2 > device.multiprocessors || weight.k > 2 * weight.n;
    if (rows <= kPanelRows && fits && fills && weight.k >= 64 * splits) {
      plan.width = kSplitWidth;
      plan.splits = splits;
      return plan;
    }
  }
  // cuBLASLt would need another kernel for the bias.
  if (with_bias && rows <= 2 * kPanelRows) plan.width = least_width(device, weight.n, panels, kStoredWidths);
  return plan;
}

}  // namespace oarlock::cuda
