#!/usr/bin/env bash
# Prints the options of sbatch that a site file stands for, one a line, for the job scripts here:
#   sbatch $(cluster/options.sh SITE_FILE) --nodes 16 cluster/many-nodes.sbatch SITE_FILE CONFIG RUN_DIR
# `transmamba submit` does this and much more; these are for machines where it cannot run, and for reading.
set -euo pipefail
# shellcheck source=/dev/null
source "$1"
option() { [ -z "$2" ] || printf -- '--%s=%s\n' "$1" "$2"; }
option partition "${SITE_PARTITION:-}"
option account "${SITE_ACCOUNT:-}"
option qos "${SITE_QOS:-}"
option constraint "${SITE_CONSTRAINT:-}"
option time "${SITE_TIME:-}"
gpus=${SITE_GPU_TYPE:+$SITE_GPU_TYPE:}${SITE_GPUS_PER_NODE:-}
if [ -n "${SITE_GPUS_PER_NODE:-}" ]; then
  if [ "${SITE_GPU_OPTION:-}" = gres ]; then option gres "gpu:$gpus"; else option gpus-per-node "$gpus"; fi
fi
ranks=${SITE_RANKS_PER_NODE:-${SITE_GPUS_PER_NODE:-1}}
option ntasks-per-node "$ranks"
option cpus-per-task "${SITE_CPUS_PER_RANK:-}"
# srun's ranks get the notice themselves; mpirun's get it through the script.
notice=USR1@${SITE_SIGNAL_SECONDS:-180}
if [ "${SITE_LAUNCHER:-}" = mpirun ]; then notice=B:$notice; fi
[ "${SITE_SIGNAL_SECONDS:-180}" = 0 ] || option signal "$notice"
# shellcheck disable=SC2086  # words of their own
printf '%s\n' ${SITE_SBATCH_OPTIONS:-}
