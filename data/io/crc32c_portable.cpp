// CRC32C for processors other than x86-64: tables only.
#include "data/io/crc32c.h"

namespace tmamba::crc32c_detail {

bool has_instruction() { return false; }

uint32_t by_instruction(uint32_t crc, const void* data, size_t bytes) { return by_tables(crc, data, bytes); }

}  // namespace tmamba::crc32c_detail
