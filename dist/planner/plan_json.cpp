// Plans as JSON. Messages are arrays [payload, peer, segment, begin, end, bytes]: a plan has many of them.
#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "dist/planner/plan.h"
#include "kernels/base/rng.h"

namespace tmamba {

namespace {

using Json = nlohmann::ordered_json;
constexpr int kVersion = 3;  // 2: grain; 3: levels of recompute

// Reads a number that fits its type; nlohmann's own get() would truncate one that does not.
template <class Int>
void read(const Json& json, const std::string& what, Int& value) {
  if (!json.is_number_integer()) throw UserError(str(what, " is ", json.dump(), ", which is no integer"));
  const auto wide = json.get<int64_t>();
  const bool fits = !(json.is_number_unsigned() && json.get<uint64_t>() > INT64_MAX);
  if (!fits || wide < std::numeric_limits<Int>::min() || wide > std::numeric_limits<Int>::max()) {
    throw UserError(str(what, " = ", json.dump(), " is out of range"));
  }
  value = static_cast<Int>(wide);
}
void read(const Json& json, const std::string& what, bool& value) {
  if (!json.is_boolean()) throw UserError(str(what, " is ", json.dump(), ", neither true nor false"));
  value = json.get<bool>();
}
void read(const Json& json, const std::string& what, std::vector<int64_t>& values) {
  if (!json.is_array()) throw UserError(str(what, " is ", json.dump(), ", which is no list"));
  values.clear();
  for (const Json& entry : json) read(entry, what, values.emplace_back());
}

void read(const Json& json, const std::string& what, Recompute& value) {
  if (!json.is_string()) throw UserError(str(what, " is ", json.dump(), ", which is no name"));
  value = value_named(kRecomputeLevels, json.get<std::string>());
}

// A field as it is written.
Json json_of(Recompute value) { return name_of(value); }
template <class T>
Json json_of(const T& value) {
  return value;
}

Json messages_json(const std::vector<PlanMessage>& messages) {
  Json list = Json::array();
  for (const PlanMessage& m : messages) {
    list.push_back(Json::array({name_of(m.what), m.peer, m.segment, m.range.begin, m.range.end, m.bytes}));
  }
  return list;
}

// No range of a plan may end after `end`, so that sizes computed from ranges cannot overflow.
std::vector<PlanMessage> messages_from(const Json& list, int64_t end) {
  std::vector<PlanMessage> messages;
  for (const Json& m : list) {
    if (m.size() != 6) throw UserError(str("a message has 6 fields, not ", m.size(), ": ", m.dump()));
    PlanMessage message;
    message.what = value_named(kPayloads, m.at(0).get<std::string>());
    read(m.at(1), "a message's peer", message.peer), read(m.at(2), "a message's segment", message.segment);
    read(m.at(3), "a message's range", message.range.begin), read(m.at(4), "a message's range", message.range.end);
    read(m.at(5), "a message's bytes", message.bytes);
    if (message.range.begin < 0 || message.range.begin > message.range.end || message.range.end > end) {
      throw UserError(str("the range of message ", m.dump(), " is not within 0 and ", end));
    }
    messages.push_back(message);
  }
  return messages;
}

Json exchange_json(const Exchange& e) {
  return Json::array({e.layer, e.backward ? "backward" : "forward", name_of(e.kind), name_of(e.op)});
}

Exchange exchange_from(const Json& e) {
  const auto direction = e.at(1).get<std::string>();
  if (direction != "forward" && direction != "backward") throw UserError(str("\"", direction, "\" is not a direction"));
  int layer = 0;
  read(e.at(0), "an exchange's layer", layer);
  return {.layer = layer,
          .backward = direction == "backward",
          .kind = value_named(kExchangeKinds, e.at(2).get<std::string>()),
          .op = value_named(enum_values<Collective, kCollectives>(), e.at(3).get<std::string>())};
}

Plan plan_from(const Json& json) {
  if (json.at("version") != Json(kVersion)) {
    throw UserError(str("plan version ", json.at("version").dump(), ", this program reads ", kVersion));
  }
  Plan plan;
  const Json& dims = json.at("dims");
  size_t known = 0;
  for_each_field(plan.dims, [&](const std::string& name, const char*, auto& value) {
    if (!dims.contains(name)) return;  // added after the plan was saved: keeps its default
    read(dims.at(name), name, value);
    ++known;
  });
  if (known != dims.size()) throw UserError("dims has a field that this program does not know");
  const PlanDims& d = plan.dims;
  // Ranges are of tokens, or of the elements of a head's state.
  constexpr int64_t most_tokens = int64_t{1} << 40, widest_head = int64_t{1} << 20;
  if (d.tokens < 0 || d.tokens > most_tokens || d.head_dim < 0 || d.head_dim > widest_head) {
    throw UserError(str("tokens = ", d.tokens, " or head_dim = ", d.head_dim, " is out of range"));
  }
  const int64_t end = std::max(d.tokens, d.head_dim * d.head_dim);
  for (const Json& name : json.at("transports")) plan.transports.push_back(transport_named(name.get<std::string>()));
  for (const Json& e : json.at("exchanges")) plan.exchanges.push_back(exchange_from(e));
  for (const Json& steps : json.at("programs")) {
    auto& program = plan.programs.emplace_back();
    for (const Json& step : steps) {
      PlanStep& read_step = program.emplace_back();
      read(step.at("exchange"), "a step's exchange", read_step.exchange);
      read_step.sends = messages_from(step.at("sends"), end);
      read_step.receives = messages_from(step.at("receives"), end);
    }
  }
  return plan;
}

}  // namespace

std::string plan_to_json(const Plan& plan) {
  Json dims, transports = Json::array(), exchanges = Json::array();
  for_each_field(plan.dims, [&](const char* name, const char*, const auto& value) { dims[name] = json_of(value); });
  for (const Transport& transport : plan.transports) transports.push_back(name_of(transport));
  for (const Exchange& e : plan.exchanges) exchanges.push_back(exchange_json(e));
  std::string text =
      str("{\"version\":", kVersion, ",\n\"dims\":", dims.dump(), ",\n\"transports\":", transports.dump(),
          ",\n\"exchanges\":", exchanges.dump(), ",\n\"programs\":[");
  for (size_t r = 0; r < plan.programs.size(); ++r) {
    text += r == 0 ? "\n[" : ",\n[";
    for (size_t i = 0; i < plan.programs[r].size(); ++i) {
      const PlanStep& step = plan.programs[r][i];
      const Json line = {{"exchange", step.exchange},
                         {"sends", messages_json(step.sends)},
                         {"receives", messages_json(step.receives)}};
      text += (i == 0 ? "\n" : ",\n") + line.dump();
    }
    text += "]";
  }
  return text + "]}\n";
}

Plan plan_from_json(const std::string& text) {
  try {
    return plan_from(Json::parse(text));
  } catch (const nlohmann::json::exception& error) {
    throw UserError(str("not a plan: ", error.what()));
  } catch (const UserError& error) {
    throw UserError(str("not a plan: ", error.what()));
  }
}

std::string dims_difference(const PlanDims& plan, const PlanDims& run) {
  std::string difference;
  for_each_field(plan, [&](const std::string& name, const char* key, const auto& planned) {
    for_each_field(run, [&](const std::string& other, const char*, const auto& needed) {
      if constexpr (std::is_same_v<decltype(planned), decltype(needed)>) {
        if (name != other || planned == needed || !difference.empty()) return;
        difference =
            str(name, " = ", json_of(planned).dump(), ", but this run has ", json_of(needed).dump(), " (", key, ")");
      }
    });
  });
  return difference;
}

std::string plan_hash(const Plan& plan) {
  constexpr char digits[] = "0123456789abcdef";
  const uint64_t hash = stream_id(plan_to_json(plan));
  std::string text;
  for (int shift = 60; shift >= 0; shift -= 4) text += digits[hash >> shift & 15];
  return text;
}

}  // namespace tmamba
