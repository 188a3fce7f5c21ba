#!/usr/bin/env bash
# A run on a disk without space, without inodes, and in a read-only directory must fail before its first step. Needs the
# right to mount (root, or user namespaces): it mounts tmpfs file systems that only this script sees.
# usage: tests/long/disks.sh [BUILD=build/cpu]
set -euo pipefail
cd "$(dirname "$0")/../.."
program="$(realpath "${1:-build/cpu}")/launch/transmamba"
[ -n "${TMAMBA_DISKS_INSIDE:-}" ] || TMAMBA_DISKS_INSIDE=1 exec unshare --map-root-user --mount bash "$0" "$@"
text="$(realpath README.md)"
folder="$(mktemp -d)"
trap 'cd /; umount -q "$folder"/disk/run/checkpoints "$folder/disk" 2>/dev/null; rm -rf "$folder"' EXIT
cd "$folder"
mkdir disk
for _ in $(seq 20); do cat "$text"; done >text.txt
"$program" prepare text.txt --output data --tokenizer bytes >/dev/null
cat >run.toml <<TOML
[model]
dim = 64
heads = 2
layers = 2
ffn = 128
schedule = [0, 32]
chunk = 16
[data]
train = "data/train.h5"
seq_len = 64
[train]
steps = 4
global_batch = 2
[checkpoint]
every = 2
[run]
dir = "disk/run"
TOML

expect() {  # WHAT, words of the message
  local code=0
  OMP_NUM_THREADS=1 "$program" train run.toml >log 2>&1 || code=$?
  if [ "$code" -eq 0 ] || ! grep -q "$2" log || [ -s disk/run/metrics.jsonl ]; then
    echo "$1: NOT reported before the first step (exit code $code)"
    cat log
    exit 1
  fi
  echo "$1: $(grep "$2" log)"
}
mount -t tmpfs -o size=300k tmpfs disk
expect "no space" "No space left"
umount disk
mount -t tmpfs -o size=100m,nr_inodes=9 tmpfs disk
expect "no inodes" "No space left"
umount disk
mount -t tmpfs -o size=100m tmpfs disk
mkdir -p disk/run/checkpoints
mount --bind disk/run/checkpoints disk/run/checkpoints
mount -o remount,bind,ro disk/run/checkpoints
expect "read-only folder" "Read-only file system"
