#include "launch/run/switch_file.h"

#include <cstdio>

namespace tmamba {

void SwitchFile::clear() const {
  std::error_code error;
  std::filesystem::remove(file_, error);
  if (error) std::fprintf(stderr, "cannot remove %s: %s\n", file_.c_str(), error.message().c_str());
}

}  // namespace tmamba
