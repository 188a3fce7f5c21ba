// Plans as JSON. Messages are arrays [payload, peer, segment, begin, end, bytes]: a plan has many of them.
#include <nlohmann/json.hpp>

#include "dist/plan.h"
#include "kernels/base/rng.h"

namespace tmamba {

namespace {

using Json = nlohmann::ordered_json;
constexpr int kVersion = 2;  // 2: grain

// The fields of PlanDims by name, for writing and for reading.
template <class Dims, class Visit>
void for_each_field(Dims& dims, Visit&& visit) {
  visit("dim", dims.dim), visit("heads", dims.heads), visit("head_dim", dims.head_dim), visit("ffn", dims.ffn);
  visit("vocab", dims.vocab), visit("conv_width", dims.conv_width), visit("chunk", dims.chunk);
  visit("tied_head", dims.tied_head), visit("z_gate", dims.z_gate), visit("tokens", dims.tokens),
      visit("transpoints", dims.transpoints);
  visit("batch", dims.batch), visit("global_batch", dims.global_batch);
  visit("activation_bytes", dims.activation_bytes), visit("state_bytes", dims.state_bytes);
  visit("tp", dims.tp), visit("sp", dims.sp), visit("dp", dims.dp), visit("fold", dims.fold);
  visit("grain", dims.grain), visit("zero", dims.zero);
  visit("recompute", dims.recompute), visit("keep_keys", dims.keep_keys);
}

// The value among 0 .. count-1 with this name.
template <class Enum>
Enum enum_named(const std::string& name, int count, const char* what) {
  for (int i = 0; i < count; ++i) {
    if (name == name_of(static_cast<Enum>(i))) return static_cast<Enum>(i);
  }
  throw UserError(str("\"", name, "\" is not ", what));
}

Json messages_json(const std::vector<PlanMessage>& messages) {
  Json list = Json::array();
  for (const PlanMessage& m : messages) {
    list.push_back(Json::array({name_of(m.what), m.peer, m.segment, m.range.begin, m.range.end, m.bytes}));
  }
  return list;
}

std::vector<PlanMessage> messages_from(const Json& list) {
  std::vector<PlanMessage> messages;
  for (const Json& m : list) {
    if (m.size() != 6) throw UserError(str("a message has 6 fields, not ", m.size(), ": ", m.dump()));
    PlanMessage message;
    message.what = enum_named<Payload>(m.at(0).get<std::string>(), kPayloads, "something a message holds");
    message.peer = m.at(1).get<int>();
    message.segment = m.at(2).get<int>();
    message.range = {m.at(3).get<int64_t>(), m.at(4).get<int64_t>()};
    message.bytes = m.at(5).get<int64_t>();
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
  return {.layer = e.at(0).get<int>(),
          .backward = direction == "backward",
          .kind = enum_named<ExchangeKind>(e.at(2).get<std::string>(), kExchangeKinds, "an exchange"),
          .op = enum_named<Collective>(e.at(3).get<std::string>(), kCollectives, "a collective")};
}

Plan plan_from(const Json& json) {
  if (json.at("version").get<int>() != kVersion) {
    throw UserError(str("plan version ", json.at("version").dump(), ", this program reads ", kVersion));
  }
  Plan plan;
  const Json& dims = json.at("dims");
  for_each_field(plan.dims, [&](const char* name, auto& value) { dims.at(name).get_to(value); });
  for (const Json& name : json.at("transports")) plan.transports.push_back(transport_named(name.get<std::string>()));
  for (const Json& e : json.at("exchanges")) plan.exchanges.push_back(exchange_from(e));
  for (const Json& steps : json.at("programs")) {
    auto& program = plan.programs.emplace_back();
    for (const Json& step : steps) {
      program.push_back({.exchange = step.at("exchange").get<int>(),
                         .sends = messages_from(step.at("sends")),
                         .receives = messages_from(step.at("receives"))});
    }
  }
  return plan;
}

}  // namespace

std::string plan_to_json(const Plan& plan) {
  Json dims, transports = Json::array(), exchanges = Json::array();
  for_each_field(plan.dims, [&](const char* name, const auto& value) { dims[name] = value; });
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

std::string plan_hash(const Plan& plan) {
  constexpr char digits[] = "0123456789abcdef";
  const uint64_t hash = stream_id(plan_to_json(plan));
  std::string text;
  for (int shift = 60; shift >= 0; shift -= 4) text += digits[hash >> shift & 15];
  return text;
}

}  // namespace tmamba
