#include "cpu/gemm/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>

#include "base/error.h"

namespace oarlock::cpu {
namespace {

constexpr size_t kHugePage = 2 << 20, kBlockBytes = 64 << 20, kAlign = 64;

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

Block::Block(size_t bytes) : size_(round_up(bytes, kHugePage)) {
  // One page more than wanted, then cut to alignment: a huge page starts at a multiple of its size.
  size_t mapped = size_ + kHugePage;
  void* at = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) throw DeviceError(concat("no memory for weights: ", bytes, " bytes refused"));
  uint8_t* start = static_cast<uint8_t*>(at);
  base_ = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<size_t>(start), kHugePage));
  if (base_ != start) munmap(start, base_ - start);
  if (size_t rest = start + mapped - (base_ + size_)) munmap(base_ + size_, rest);
  madvise(base_, size_, MADV_HUGEPAGE);  // where the kernel has no huge pages, small ones do
}

Block::~Block() { munmap(base_, size_); }

uint8_t* Block::take(size_t bytes) {
  if (round_up(bytes, kAlign) > size_ - used_) return nullptr;
  uint8_t* data = base_ + used_;
  used_ += round_up(bytes, kAlign);
  return data;
}

Piece allocate_piece(size_t bytes) {
  static std::mutex mutex;
  static std::weak_ptr<Block> current;
  std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Block> block = current.lock();
  if (block)
    if (uint8_t* data = block->take(bytes)) return {block, data};
  block = std::make_shared<Block>(std::max(bytes, kBlockBytes));
  current = block;
  return {block, block->take(bytes)};
}

}  // namespace oarlock::cpu
