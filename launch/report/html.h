// Self-contained HTML pages (no network, no other files), for light and dark mode, phones and print.
#pragma once

#include <string>
#include <vector>

namespace tmamba {

// Escapes text for HTML and SVG. Invalid UTF-8 and control characters become the replacement character.
std::string html_escaped(const std::string& text);

// Truncates text to `width` characters, ending with "..."; never splits a UTF-8 character.
std::string shortened(const std::string& text, size_t width);

// <table>; the cells are HTML. The first column is left-aligned text, the others are right-aligned numbers.
std::string html_table(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows);

// <section> with a heading; `body` is HTML, `title` text.
std::string html_section(const std::string& title, const std::string& body);

// The whole page; `title` and `subtitle` are text, `body` HTML. It includes the charts' style and a script that
// shows the values under the pointer; everything else works without scripts.
std::string html_page(const std::string& title, const std::string& subtitle, const std::string& body);

}  // namespace tmamba
