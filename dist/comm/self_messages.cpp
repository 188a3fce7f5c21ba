#include "dist/comm/self_messages.h"

namespace tmamba {

std::vector<SelfMessage> match_self_messages(const CallSite& site, std::span<const Message> messages) {
  std::vector<Tensor> receives;
  std::vector<ConstTensor> sends;
  for (const Message& message : messages) {
    if (message.peer != site.comm.rank()) continue;
    if (message.recv.numel() > 0) receives.push_back(message.recv);
    if (message.send.numel() > 0) sends.push_back(message.send);
  }
  if (receives.size() != sends.size()) {
    throw Error(
        str(site.text(), ": ", sends.size(), " sends to itself, but ", receives.size(), " receives from itself"));
  }
  std::vector<SelfMessage> pairs;
  for (size_t i = 0; i < sends.size(); ++i) {
    if (receives[i].bytes() != sends[i].bytes() || receives[i].dtype() != sends[i].dtype()) {
      throw Error(str(site.text(), ": message ", i, " to itself is ", sends[i].shape(), " ", name_of(sends[i].dtype()),
                      ", its receive ", receives[i].shape(), " ", name_of(receives[i].dtype())));
    }
    pairs.push_back({receives[i], sends[i]});
  }
  return pairs;
}

}  // namespace tmamba
