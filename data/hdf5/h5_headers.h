// Object headers and their messages. Implementation of h5_objects.cpp. All functions throw UserError on damaged input.
#pragma once

#include "data/hdf5/h5_objects.h"

namespace tmamba::h5_detail {

Object read_object(const Source& source, int64_t address);

// Adds the members of a group stored as a symbol table: a version-1 B-tree at `tree`, whose names are in the local heap
// at `heap`.
void read_symbol_table(const Source& source, int64_t tree, int64_t heap, std::map<std::string, Link>& links);

void read_link(Cursor cursor, std::map<std::string, Link>& links);
Datatype read_datatype(Cursor cursor);
Dataspace read_dataspace(Cursor cursor);
DataLayout read_data_layout(Cursor cursor);
FilterPipeline read_filter_pipeline(Cursor cursor);
void read_attribute(Cursor cursor, std::map<std::string, Attribute>& attributes);

}  // namespace tmamba::h5_detail
