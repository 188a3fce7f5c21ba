#!/bin/sh
# sanitize.sh PROGRAM [GTEST_FILTER]
# Runs a CUDA test program under compute-sanitizer's memcheck and racecheck. Prints the findings and fails if there are
# any. The default filters, for cuda_ops_test:
# - memcheck: all tests except the two with very long tensors, whose kernels smaller tests run too;
# - racecheck: of these, not cuBLAS matmuls and not the SSM scan. The wgmma kernels refill shared memory by bulk copies
#   ordered by mbarriers, and racecheck reports each refill as a race with earlier reads. The portable scan takes it
#   more than 200 s. Attention runs cases of up to 100 tokens only, which take 155 s.
# The tests run in SANITIZE_PARTS parallel parts, since each tool process uses one CPU core.
set -eu
program=$1
long='CudaLong.*:*IndicesAreSixtyFourBits'
scan='CudaSsd.ForwardAndBackward:CudaSsd.PortableKernels:CudaSsd.FromZero:CudaSsd.Accumulates*'
scan=$scan:CudaSsd.SegmentsOfSeveralChunks:CudaSsd.ManyChunks:CudaSsd.ExtremeDecays:CudaSsd.StatesInPlace
parts=${SANITIZE_PARTS:-8}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
failed=
for tool in memcheck racecheck; do
  case $tool in
    memcheck) filter=${2:-"-$long"} ;;
    racecheck) filter=${2:-"-$long:CudaLinear.*:CudaGraph.*:CudaAttention.LargeScores:$scan"}; export TMAMBA_TEST_SMALL=1 ;;
  esac
  part=0
  while [ "$part" -lt "$parts" ]; do
    GTEST_TOTAL_SHARDS=$parts GTEST_SHARD_INDEX=$part OMP_NUM_THREADS=1 TMAMBA_TEST_ONCE=1 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 "$program" --gtest_filter="$filter" \
      > "$logs/$tool.$part" 2>&1 &
    echo $! > "$logs/pid.$part"
    part=$((part + 1))
  done
  part=0
  while [ "$part" -lt "$parts" ]; do
    # A part without tests runs no kernel, which the tools report as an error.
    if ! wait "$(cat "$logs/pid.$part")" && ! grep -q '^\[==========\] Running 0 tests' "$logs/$tool.$part"; then
      failed="$failed $tool"
      grep -E '^=========|FAILED|Failure' "$logs/$tool.$part" | head -n 60
    fi
    part=$((part + 1))
  done
  passed=$(cat "$logs/$tool".* | grep -c '^\[       OK' || true)
  echo "$tool: $passed tests passed"
  [ "$passed" -gt 0 ] || failed="$failed $tool(no test)"
done
[ -z "$failed" ] || { echo "failed under:$failed" >&2; exit 1; }
