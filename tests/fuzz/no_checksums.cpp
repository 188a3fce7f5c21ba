// Replaces data/hdf5/h5_checksum.cpp in the fuzzers of HDF5 files: every checksum matches, so that mutations reach the
// code after the check.
#include "data/hdf5/h5_bytes.h"

namespace tmamba::h5_detail {

bool lookup3_holds(const uint8_t*, size_t, uint32_t) { return true; }
bool fletcher32_holds(const uint8_t*, size_t, uint32_t) { return true; }

}  // namespace tmamba::h5_detail
