#!/usr/bin/env bash
# Builds the fuzzers (clang, AddressSanitizer, UndefinedBehaviorSanitizer, libFuzzer) and runs each for N inputs; the
# corpus is kept in build/fuzz/corpus, so that a later run continues from it. Inputs that crash a fuzzer are written to
# build/fuzz/found: fix the cause, and add the file to tests/fuzz/bad/TARGET.
# usage: tests/fuzz/run.sh [N=10000000] [TARGET...]; longer: tests/fuzz/run.sh 1000000000
set -euo pipefail
cd "$(dirname "$0")/../.."
runs="${1:-10000000}"
targets=("${@:2}")
[ "${#targets[@]}" -gt 0 ] || targets=(config options manifest checkpoint safetensors tokenizer token_file hdf5_export corpus)

command -v clang++ >/dev/null || { echo "the fuzzers need clang with libFuzzer: apt-get install clang" >&2; exit 2; }
cmake --preset fuzz >/dev/null
cmake --build --preset fuzz --target fuzz_seeds "${targets[@]/#/fuzz_}" >/dev/null
# Recording allocation stacks takes half of the time and is only needed to analyse a finding.
export ASAN_OPTIONS="${ASAN_OPTIONS:-malloc_context_size=0:quarantine_size_mb=8:detect_leaks=0}"
rm -rf build/fuzz/seeds
build/fuzz/tests/fuzz/fuzz_seeds build/fuzz/seeds
mkdir -p build/fuzz/found

failed=0
for target in "${targets[@]}"; do
  mkdir -p "build/fuzz/corpus/$target"
  options=(-runs="$runs" -max_len=4096 -timeout=20 -rss_limit_mb=1024 -malloc_limit_mb=512 -entropic=0
    -print_final_stats=1 -artifact_prefix="build/fuzz/found/$target-")
  [ ! -e "tests/fuzz/dictionaries/$target" ] || options+=(-dict="tests/fuzz/dictionaries/$target")
  inputs=("build/fuzz/corpus/$target" "build/fuzz/seeds/$target")
  [ ! -d "tests/fuzz/bad/$target" ] || inputs+=("tests/fuzz/bad/$target")
  log="build/fuzz/$target.log"
  if "build/fuzz/tests/fuzz/fuzz_$target" "${options[@]}" "${inputs[@]}" >"$log" 2>&1; then
    awk -v target="$target" '/^stat::number_of_executed_units/ {runs = $2} /^stat::average_exec_per_sec/ {rate = $2}
      / DONE / {for (i = 1; i < NF; ++i) if ($i == "cov:") cov = $(i + 1)}
      END {printf "%-12s %10d inputs, %6d a second, %5d branches, no finding\n", target, runs, rate, cov}' "$log"
  elif grep -q 'run interrupted' "$log"; then
    echo "$target: interrupted after $(sed -nE 's/^stat::number_of_executed_units: *//p' "$log") inputs, no finding till then"
    failed=1
  else
    echo "$target: a FINDING, see $log"
    grep -hE "ERROR|SUMMARY|what\(\)|Test unit written" "$log" || tail -3 "$log"
    failed=1
  fi
done
exit "$failed"
