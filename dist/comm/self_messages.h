// Messages of a send_recv group from a rank to itself.
#pragma once

#include <span>
#include <vector>

#include "dist/comm/collective_args.h"

namespace tmamba {

struct SelfMessage {
  Tensor to;
  ConstTensor from;
};

// The k-th send to oneself with the k-th receive from oneself; throws Error where they do not pair up.
std::vector<SelfMessage> match_self_messages(const CallSite& site, std::span<const Message> messages);

}  // namespace tmamba
