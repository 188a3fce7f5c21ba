// A page that needs nothing but itself: no network, no files beside it; for light and dark, a phone and paper.
#pragma once

#include <string>
#include <vector>

namespace tmamba {

// Text as HTML and SVG show it. Bytes that are not UTF-8, and control characters, which no page may hold, are shown as
// a replacement character.
std::string html_escaped(const std::string& text);

// Text of at most `width` characters, the rest replaced by "..."; whole UTF-8 characters.
std::string shortened(const std::string& text, size_t width);

// <table>; the cells are HTML. The first column is text, the others are numbers, to the right.
std::string html_table(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows);

// <section> with a heading; `body` is HTML, `title` text.
std::string html_section(const std::string& title, const std::string& body);

// The whole page; `title` and `subtitle` are text, `body` HTML. It holds the charts' style, and a script that shows the
// values under the pointer; without scripts all else is there.
std::string html_page(const std::string& title, const std::string& subtitle, const std::string& body);

}  // namespace tmamba
