#include "model/shared_prefixes.h"

#include <algorithm>

namespace oarlock {
namespace {

struct Group {
  int begin, end;  // into the sequences ordered by their first block
  int64_t blocks;
  int64_t spared() const { return blocks * (end - begin - 1); }
};

const int32_t* table_of(const Batch& batch, int sequence) {
  return batch.block_tables + int64_t(sequence) * batch.block_table_stride;
}

// Full blocks before the one that the sequence's token is written to.
int64_t full_blocks(const Batch& batch, int sequence) { return (batch.context_lens[sequence] - 1) / kBlockTokens; }

}  // namespace

PrefixGroups find_prefix_groups(const Batch& batch, int64_t least, int most) {
  std::vector<int32_t> ordered;
  for (int s = 0; s < batch.sequences; ++s) {
    if (batch.query_starts[s + 1] - batch.query_starts[s] == 1 && full_blocks(batch, s) > 0) ordered.push_back(s);
  }
  std::stable_sort(ordered.begin(), ordered.end(),
                   [&](int32_t a, int32_t b) { return table_of(batch, a)[0] < table_of(batch, b)[0]; });
  std::vector<Group> groups;
  const int count = int(ordered.size());
  for (int begin = 0, end; begin < count; begin = end) {
    const int32_t* first = table_of(batch, ordered[size_t(begin)]);
    int64_t blocks = full_blocks(batch, ordered[size_t(begin)]);
    for (end = begin + 1; end < count; ++end) {
      const int32_t* table = table_of(batch, ordered[size_t(end)]);
      if (table[0] != first[0]) break;
      blocks = std::min(blocks, full_blocks(batch, ordered[size_t(end)]));
      blocks = std::mismatch(first, first + blocks, table).first - first;
    }
    const Group group{begin, end, blocks};
    if (end - begin > 1 && group.spared() >= least) groups.push_back(group);
  }
  std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.spared() > b.spared(); });
  if (groups.size() > size_t(most)) groups.resize(size_t(most));

  PrefixGroups found;
  found.shared_blocks.resize(size_t(batch.sequences));
  found.starts.push_back(0);
  for (const Group& group : groups) {
    for (int i = group.begin; i < group.end; ++i) {
      found.members.push_back(ordered[size_t(i)]);
      found.shared_blocks[size_t(ordered[size_t(i)])] = int32_t(group.blocks);
    }
    found.starts.push_back(int32_t(found.members.size()));
  }
  return found;
}

bool is_settled(const Batch& batch) {
  if (batch.tokens != batch.sequences) return false;
  // A block may be shared in the step that fills it.
  for (int s = 0; s < batch.sequences; ++s) {
    if (batch.context_lens[s] % kBlockTokens != 0) continue;
    const int64_t at = batch.context_lens[s] / kBlockTokens - 1;
    for (int other = 0; other < batch.sequences; ++other) {
      if (other != s && batch.context_lens[other] > (at + 1) * kBlockTokens &&
          table_of(batch, other)[at] == table_of(batch, s)[at]) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace oarlock
