#pragma once

namespace tmamba {

// Exit codes of the program (design.md section 2).
enum ExitCode : int { kDone = 0, kFailed = 1, kBadInput = 2, kSavedAndStopped = 85, kNoProgress = 93 };

}  // namespace tmamba
