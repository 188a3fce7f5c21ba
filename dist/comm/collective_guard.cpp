#include "dist/comm/collective_guard.h"

#include <exception>

namespace tmamba {

namespace {

// Runs `step`; returns "U" (UserError) or "E" (any other error) and the message, or "" if it succeeded.
std::string problem_of(const std::function<void()>& step) {
  try {
    step();
    return "";
  } catch (const UserError& error) {
    return str("U", error.what());
  } catch (const std::exception& error) {
    return str("E", error.what());
  }
}

Tensor bytes_of(std::string& text) { return Tensor(text.data(), {static_cast<int64_t>(text.size())}, DType::u8); }

}  // namespace

std::string broadcast_text(Communicator& comm, std::string text, int root) {
  int64_t bytes = static_cast<int64_t>(text.size());
  comm.broadcast(Tensor(&bytes, {1}, DType::i64), root).wait();
  text.resize(static_cast<size_t>(bytes));
  if (bytes > 0) comm.broadcast(bytes_of(text), root).wait();
  return text;
}

void CollectiveGuard::on_all(const std::function<void()>& step) {
  const std::string problem = problem_of(step);
  int64_t failed = problem.empty() ? comm_.size() : comm_.rank();
  comm_.all_reduce(Tensor(&failed, {1}, DType::i64), ReduceOp::min).wait();
  if (failed == comm_.size()) return;
  const std::string first_problem = broadcast_text(comm_, problem, static_cast<int>(failed));
  const std::string message =
      comm_.size() == 1 ? first_problem.substr(1) : str("rank ", failed, ": ", first_problem.substr(1));
  if (first_problem[0] == 'U') throw UserError(message);
  throw Error(message);
}

void CollectiveGuard::on_root(const std::function<void()>& step) {
  on_all([&] {
    if (is_root()) step();
  });
}

std::vector<std::string> CollectiveGuard::gather(const std::string& text) {
  const size_t ranks = static_cast<size_t>(comm_.size());
  std::vector<int64_t> ones(ranks, 1), bytes(ranks);
  int64_t own = static_cast<int64_t>(text.size());
  comm_.all_gather(Tensor(bytes.data(), {comm_.size()}, DType::i64), Tensor(&own, {1}, DType::i64), ones).wait();
  int64_t total = 0;
  for (int64_t count : bytes) total += count;
  std::string all(static_cast<size_t>(total), '\0'), mine = text;
  if (total > 0) comm_.all_gather(bytes_of(all), bytes_of(mine), bytes).wait();
  std::vector<std::string> texts;
  size_t begin = 0;
  for (int64_t count : bytes) {
    texts.push_back(all.substr(begin, static_cast<size_t>(count)));
    begin += static_cast<size_t>(count);
  }
  return texts;
}

}  // namespace tmamba
