// Memory for packed weights and workspaces: 64-byte aligned pieces of large blocks that ask for 2 MiB pages, since streaming
// weights through 4 KiB pages costs a tenth of the read bandwidth. Pieces share blocks, so that a small weight wastes no page.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace oarlock::cpu {

// One mapping, unmapped with its last piece.
class Block {
 public:
  explicit Block(size_t bytes);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // The next free piece, zeroed; nullptr when too little is left.
  uint8_t* take(size_t bytes);

 private:
  uint8_t* base_;
  size_t size_, used_ = 0;
};

struct Piece {
  std::shared_ptr<Block> block;  // keeps data alive
  uint8_t* data = nullptr;
};

// Zeroed memory; DeviceError when there is none. Pages are taken from the machine when first written.
Piece allocate_piece(size_t bytes);

}  // namespace oarlock::cpu
