// Object headers and what they hold, for h5_objects.cpp.
#pragma once

#include "data/hdf5/h5_objects.h"

namespace tmamba::h5_detail {

Object read_object(const Source& source, int64_t address);

// Adds the members of a group of the old form: a tree of names, which lie in a heap.
void read_symbol_table(const Source& source, int64_t tree, int64_t heap, std::map<std::string, Link>& links);

void read_link(Cursor cursor, std::map<std::string, Link>& links);
FileType read_type(Cursor cursor);
Extent read_extent(Cursor cursor);
Layout read_layout(Cursor cursor);
Filters read_filters(Cursor cursor);
void read_attribute(Cursor cursor, std::map<std::string, Attribute>& attributes);

}  // namespace tmamba::h5_detail
