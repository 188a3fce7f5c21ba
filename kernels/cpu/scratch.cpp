#include "kernels/cpu/scratch.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/base/buffer.h"

namespace tmamba {

namespace {
constexpr size_t kAlignment = 64;
constexpr size_t kFirstBlock = size_t{1} << 20;

// Blocks never move, so pointers stay valid while the stack grows; once nothing is taken, several blocks are
// replaced by one that holds them all.
struct Stack {
  std::vector<Buffer> blocks;
  size_t block = 0;  // the block in use
  size_t used = 0;   // bytes of it

  void* take(size_t bytes) {
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    while (block < blocks.size() && used + bytes > blocks[block].bytes()) ++block, used = 0;
    if (block == blocks.size()) {
      blocks.emplace_back(std::max({bytes, kFirstBlock, total()}), Device::cpu);
      used = 0;
    }
    void* out = static_cast<char*>(blocks[block].data()) + used;
    used += bytes;
    return out;
  }

  void rewind(size_t to_block, size_t to_used) {
    block = to_block, used = to_used;
    if (block == 0 && used == 0 && blocks.size() > 1) {
      const size_t bytes = total();
      blocks.clear();
      blocks.emplace_back(bytes, Device::cpu);
    }
  }

  size_t total() const {
    size_t bytes = 0;
    for (const Buffer& b : blocks) bytes += b.bytes();
    return bytes;
  }
};

thread_local Stack stack;
}  // namespace

ScratchFrame::ScratchFrame() : block_(stack.block), used_(stack.used) {}
ScratchFrame::~ScratchFrame() { stack.rewind(block_, used_); }
void* ScratchFrame::take_bytes(size_t bytes) { return stack.take(bytes); }

}  // namespace tmamba
