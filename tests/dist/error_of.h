#pragma once

#include <string>

#include "kernels/base/check.h"

namespace tmamba {

// The message of the Error that f() throws; refused calls must throw before anything is sent, so all ranks can
// continue.
template <class F>
std::string error_of(F f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "(nothing was thrown)";
}

}  // namespace tmamba
