// In the fuzzers of HDF5 files, in the place of data/hdf5/h5_checksum.cpp: every checksum is right, so that mutations
// reach what lies behind.
#include "data/hdf5/h5_bytes.h"

namespace tmamba::h5_detail {

bool lookup3_holds(const uint8_t*, size_t, uint32_t) { return true; }
bool fletcher32_holds(const uint8_t*, size_t, uint32_t) { return true; }

}  // namespace tmamba::h5_detail
