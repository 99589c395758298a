// Weights drawn from memory before they are wanted, for few rows: the processor is too busy with what it has to run that far
// ahead by itself. Included by kernel files inside their unnamed namespaces.
#pragma once

// A piece of each of several panels, `panel` bytes apart.
struct Drawn {
  const uint8_t* from;
  int64_t panel;
};

// Panels that come next, or null. Where a panel ends, they begin: of each the first tiles are drawn.
struct Following {
  const uint8_t* panels = nullptr;
  int64_t panel_bytes = 0;

  // What lies kAhead tiles behind `tile`, the panel's tile number `index` of `tiles`; kHead: bytes before a panel's first.
  template <int64_t kAhead, int64_t kTile, int64_t kHead>
  __attribute__((always_inline)) inline Drawn draw(const uint8_t* tile, int64_t panel, int64_t index, int64_t tiles) const {
    const int64_t beyond = index + kAhead - tiles;
    if (beyond < 0 || !panels) return {tile + kAhead * kTile, panel};
    return {panels + kHead + beyond * kTile, panel_bytes};
  }
};

// What follows panels [panel, panel + width) of a piece of work.
OARLOCK_INLINE Following following(const Product& job, int panel, int width) {
  if (panel + width >= job.panels) return {job.ahead, job.ahead_panel_bytes};
  return {job.weights + (panel + width) * job.panel_bytes, job.panel_bytes};
}
