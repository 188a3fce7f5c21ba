// Reads the text of one JSON line. Only that field is decoded: what Python's json module writes elsewhere and JSON does
// not have (NaN, Infinity, 1e400, lone surrogates) is accepted.
#pragma once

#include <string>
#include <string_view>

namespace tmamba {

// The string in `field` of the JSON object `line`: a part of `line`, or of `buffer`, which is overwritten, if it has
// escape sequences. Throws UserError with the reason, without file and line number, if `line` is not a JSON object or
// does not have the field exactly once with a string of valid Unicode.
std::string_view json_line_text(std::string_view line, std::string_view field, std::string& buffer);

}  // namespace tmamba
