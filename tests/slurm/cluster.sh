#!/usr/bin/env bash
# A SLURM cluster of virtual nodes on this machine: munged, slurmctld and one slurmd per node, all run by the user who
# starts it. Key, sockets, ports and folder are its own, so that several clusters can run at once. Needs Debian's
# slurm_packages (launch/packages.sh); no systemd, no cgroups, no slurmdbd, no root.
#   cluster.sh start FOLDER FEATURES... starts it, with a node n0, n1, ... for each feature (a constraint for jobs)
#                                       FOLDER must be short, for the sockets. With OWNER=PID set it is stopped and
#                                       FOLDER removed after that process has ended
#   cluster.sh stop FOLDER              ends it and everything it has started
#   cluster.sh kill-node FOLDER NODE    kills a node's slurmd; start-node starts it again
# For SLURM's commands: export SLURM_CONF=FOLDER/slurm.conf; for ranks: source FOLDER/ranks.env.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"
folder=$(realpath -m "$2")
# stop() kills every process with the cluster's SLURM_CONF: the one that runs it must not have it.
if [[ $1 =~ ^(stop|guard)$ && -n ${SLURM_CONF:-} ]]; then exec env -u SLURM_CONF "$0" "$@"; fi

fail() { echo "error: $*" >&2; exit 1; }

# Ports that no process listens on, from a start drawn at random.
free_ports() {
  local count=$1 port=$((20000 + ($$ * 37 + RANDOM) % 10000)) found=()
  while [ ${#found[@]} -lt "$count" ]; do
    port=$((port + 1))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || found+=("$port")
  done
  echo "${found[@]}"
}

# SLURM resolves 127.0.0.1 only where an interface has another address (AI_ADDRCONFIG).
need_an_address() {
  hostname -I | tr ' ' '\n' | grep -qvE '^(127\.|::1$|$)' && return
  ip address add 10.254.254.254/32 dev lo || fail "only the loopback interface is up, and it cannot be given an address"
}

write_config() {
  local nodes=$# host user ports i
  host=$(hostname -s) user=$(id -un)
  getent hosts "$host" >/dev/null || fail "the host name $host has no address; add it to /etc/hosts"
  read -ra ports <<<"$(free_ports $((nodes + 1)))"
  cat >"$folder/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credentials have expired.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdSpoolDir=$folder/spool.%n
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmdLogFile=$folder/slurmd.%n.log
# One per node: PMIx creates folders of the same names in it on every node.
TmpFS=$folder/tmp.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/jobs.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,defer=0,requeue_delay=0
MpiDefault=pmix
GresTypes=gpu
ReturnToService=2
# On a busy machine a node answers late: tests that lose a node set it DOWN themselves, or find it by the job script.
SlurmdTimeout=120
MessageTimeout=30
KillWait=4
MinJobAge=3600
InactiveLimit=0
OverTimeLimit=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
RequeueExit=85
SlurmctldDebug=verbose
SlurmdDebug=verbose
CONF
  for ((i = 0; i < nodes; ++i)); do
    mkdir -p "$folder/spool.n$i" "$folder/tmp.n$i"
    chmod 1777 "$folder/tmp.n$i"
    echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[i + 1]} CPUs=32 RealMemory=1000 Gres=gpu:2 Feature=$1 State=UNKNOWN"
    shift
  done >>"$folder/slurm.conf"
  cat >>"$folder/slurm.conf" <<CONF
PartitionName=low Nodes=ALL Default=YES MaxTime=10 PriorityTier=1 PreemptMode=REQUEUE OverSubscribe=NO State=UP
PartitionName=high Nodes=ALL MaxTime=10 PriorityTier=10 PreemptMode=OFF OverSubscribe=NO State=UP
CONF
  # Device files that every machine has stand for GPUs: the list of visible GPUs has the same form.
  echo "NodeName=n[0-$((nodes - 1))] Name=gpu File=/dev/null,/dev/zero" >"$folder/gres.conf"
  # TCP only: ranks of two virtual nodes would use the same names for shared memory segments.
  cat >"$folder/ranks.env" <<CONF
export SLURM_CONF=$folder/slurm.conf
export OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,tcp OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_rmaps_base_oversubscribe=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
CONF
}

# wait_for SECONDS COMMAND...
wait_for() {
  local until=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt "$until" ] || return 1
    sleep 0.05
  done
}

show_logs() { tail -n 20 "$folder"/*.log >&2; }

start_node() { slurmd -N "$1" -f "$folder/slurm.conf" 9>&-; }

all_idle() { [ "$(sinfo -h -N -p low -t idle -o %N | wc -l)" -eq "$1" ]; }

start() {
  local i
  for program in munged slurmctld slurmd sinfo; do
    command -v "$program" >/dev/null || fail "$program is missing; install slurm_packages of launch/packages.sh"
  done
  [ ${#folder} -le 80 ] || fail "$folder: too long a path for sockets"
  mkdir -p "$folder/state"
  chmod 755 "$folder"
  need_an_address
  # Clusters start one after the other: the daemons must listen before another one looks for free ports.
  exec 9>"/tmp/tmamba-slurm-$(id -u).lock"  # of all clusters of this machine, wherever their folders are
  flock 9
  write_config "$@"
  export SLURM_CONF=$folder/slurm.conf
  (umask 077; head -c 128 /dev/urandom >"$folder/munge.key")
  # --force: munged refuses sockets below a folder that others may write to, such as /tmp.
  munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" --num-threads=2 >"$folder/munged.out" 2>&1 9>&- ||
    { cat "$folder/munged.out" >&2; fail "munged does not start"; }
  slurmctld -c -f "$folder/slurm.conf" 9>&-
  for ((i = 0; i < $#; ++i)); do start_node "n$i"; done
  if [ -n "${OWNER:-}" ]; then setsid "$0" guard "$folder" "$OWNER" </dev/null >/dev/null 2>&1 9>&- & fi
  wait_for 120 all_idle $# || { show_logs; sinfo >&2; fail "the nodes are not idle after 120 seconds"; }
}

# Starts no process: there may be hundreds to check.
alive() {
  local stat
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null && [[ ${stat##*) } != Z* ]]
}

# Running processes of this cluster: daemons by their pid files, steps and tasks by their environment.
processes() {
  local file pid
  for file in "$folder"/*.pid; do
    [ -s "$file" ] && read -r pid <"$file" && alive "$pid" && echo "$pid"
  done
  # shellcheck disable=SC2013  # no spaces in these names
  for file in $(grep -lzxF "SLURM_CONF=$folder/slurm.conf" /proc/[0-9]*/environ 2>/dev/null); do
    pid=${file#/proc/}; pid=${pid%/environ}
    # Not this process and its ancestors.
    [[ " $ancestors " == *" $pid "* ]] || ! alive "$pid" || echo "$pid"
  done
}

stop() {
  local pid=$$ left
  ancestors=""
  while [ "${pid:-0}" -gt 1 ]; do
    ancestors+=" $pid"
    pid=$(awk '/^PPid:/ {print $2}' "/proc/$pid/status" 2>/dev/null || true)
  done
  for _ in $(seq 40); do
    left=$(processes)
    [ -n "$left" ] || return 0
    # shellcheck disable=SC2086
    kill -KILL $left 2>/dev/null || true
    sleep 0.05
  done
  fail "these processes of the cluster do not end: $left"
}

guard() {
  while alive "$1"; do sleep 0.5; done
  stop
  rm -rf "$folder"
}

case "$1" in
  start) start "${@:3}" ;;
  guard) guard "$3" ;;
  stop) stop ;;
  kill-node) kill -KILL "$(cat "$folder/slurmd.$3.pid")" ;;
  start-node) export SLURM_CONF=$folder/slurm.conf; start_node "$3" ;;
  *) fail "unknown command $1" ;;
esac
