#!/usr/bin/env bash
# Prints the sbatch options of a site file, one per line, for the job scripts in this folder:
#   sbatch $(cluster/options.sh SITE_FILE) --nodes 16 cluster/many-nodes.sbatch SITE_FILE CONFIG RUN_DIR
# `transmamba submit` does this and more; these scripts are examples, and for machines where it cannot run.
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
# SLURM signals the ranks of srun directly; those of mpirun get the signal from the script.
notice=USR1@${SITE_SIGNAL_SECONDS:-180}
if [ "${SITE_LAUNCHER:-}" = mpirun ]; then notice=B:$notice; fi
[ "${SITE_SIGNAL_SECONDS:-180}" = 0 ] || option signal "$notice"
# shellcheck disable=SC2086  # split into words on purpose
printf '%s\n' ${SITE_SBATCH_OPTIONS:-}
