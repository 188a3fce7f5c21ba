// The messages of a send_recv group that a rank sends to itself.
#pragma once

#include <span>
#include <vector>

#include "dist/comm/collective_args.h"

namespace tmamba {

struct SelfMessage {
  Tensor to;
  ConstTensor from;
};

// Pairs the k-th send to this rank with the k-th receive from it; throws Error if numbers, sizes or types differ.
std::vector<SelfMessage> match_self_messages(const CallSite& site, std::span<const Message> messages);

}  // namespace tmamba
