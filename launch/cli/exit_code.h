// The exit codes of the program: the one table of them.
#pragma once

#include <array>

namespace tmamba {

enum ExitCode : int { kDone = 0, kFailed = 1, kBadInput = 2, kSavedAndStopped = 85, kNoProgress = 93 };

struct ExitMeaning {
  ExitCode code;
  const char* meaning;
};
inline constexpr std::array kExitCodes{
    ExitMeaning{kDone, "done"},
    ExitMeaning{kFailed, "failed"},
    ExitMeaning{kBadInput, "invalid usage, configuration or data"},
    ExitMeaning{kSavedAndStopped, "saved and stopped on a signal or a file STOP; start it again to resume"},
    ExitMeaning{kNoProgress,
                "not to be restarted: no progress, or another attempt holds or took over the run directory"},
};

}  // namespace tmamba
