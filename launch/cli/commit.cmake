# cmake -DSOURCE=FOLDER -DHEADER=FILE -P commit.cmake: writes the commit of FOLDER into a header, unless it is there
# already. "unknown" outside of a git repository.
execute_process(COMMAND git -C ${SOURCE} rev-parse --show-prefix OUTPUT_VARIABLE prefix ERROR_QUIET
  OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
set(commit "")
if("${failed}" STREQUAL "0" AND "${prefix}" STREQUAL "")
  execute_process(COMMAND git -C ${SOURCE} describe --always --dirty --abbrev=12 OUTPUT_VARIABLE commit ERROR_QUIET
    OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()
if("${commit}" STREQUAL "")
  set(commit unknown)
endif()
file(CONFIGURE OUTPUT ${HEADER} CONTENT "#define TMAMBA_COMMIT \"${commit}\"\n")
