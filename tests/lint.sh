#!/usr/bin/env bash
# lint.sh format    checks the format of every source file (clang-format 14)
# lint.sh changed   clang-tidy on the .cpp files that differ from the merge base with main, for at most 30 seconds
# lint.sh all       clang-tidy on every .cpp file
# clang-tidy reads build/cpu/compile_commands.json.
set -euo pipefail
cd "$(dirname "$0")/.."

# sources PATTERN...: files of the repository with such names.
sources() {
  local pattern names=(-false)
  for pattern in "$@"; do names+=(-o -name "$pattern"); done
  find kernels dist data model launch tests -type f \( "${names[@]}" \) | sort
}

format() { sources '*.cpp' '*.h' '*.cu' '*.cuh' | xargs -P "$(nproc)" -n 40 clang-format-14 -n -Werror; }

# Without a merge base, as in a shallow clone: the files of the last commit.
changed_files() {
  local base='' ref
  for ref in origin/main main; do
    base=$(git merge-base HEAD "$ref" 2>/dev/null) && [ "$base" != "$(git rev-parse HEAD)" ] && break
    base=''
  done
  git diff --name-only --diff-filter=d "${base:-HEAD~1}" -- '*.cpp' 2>/dev/null || true
}

# tidy SECONDS: files from standard input; none is begun after that time. Only files of the CPU build have a command.
tidy() {
  local options=build/cpu/.lint
  mkdir -p $options
  # GCC's precompiled headers are not for clang.
  sed -E 's/ -include [^ ]*cmake_pch.hxx//; s/ -Winvalid-pch//; s/ -fopenmp//' \
    build/cpu/compile_commands.json >$options/compile_commands.json
  export LINT_END=$(($(date +%s) + $1)) LINT_OPTIONS=$options
  # shellcheck disable=SC2016
  { grep -Fxf <(sed -n 's/^ *"file": "\(.*\)",*$/\1/p' $options/compile_commands.json | sed "s|^$PWD/||" | sort -u) || true; } |
    xargs -r -P "$(nproc)" -I{} bash -c \
      '[ "$(date +%s)" -lt "$LINT_END" ] || { echo "lint: no time for {}; tests/run.sh --lint checks it"; exit 0; }
       clang-tidy-14 -p "$LINT_OPTIONS" --quiet --extra-arg=-Wno-unknown-warning-option --warnings-as-errors="*" {} 2>/dev/null'
}

case ${1:-} in
  format) format ;;
  changed) changed_files | tidy 30 ;;
  all) sources '*.cpp' | tidy 100000 ;;
  *) echo "lint.sh format|changed|all" >&2; exit 2 ;;
esac
