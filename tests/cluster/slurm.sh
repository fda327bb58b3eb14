#!/usr/bin/env bash
# A real Slurm on one machine, for tests: two virtual nodes with fake GPUs, partitions `main` (requeued when preempted)
# and `high` (preempts main). Debian's packages, root, no systemd, no cgroups, nothing in /etc. Everything of an
# instance lies in its base folder; instances of different folders and ports run side by side.
#
#   slurm.sh start [none|dbd]     none: no accounting, sacct fails (default); dbd: mariadb and slurmdbd, sacct works
#   slurm.sh stop                 ends its jobs, then its daemons (by pid file), nothing else
#   slurm.sh clean                stop, then remove the base folder: the next start counts job ids from 1 again
#   slurm.sh status               daemons and nodes; exit status 1 unless all are up
#   slurm.sh env                  what a shell needs to speak with it: eval "$(slurm.sh env)"
#   slurm.sh kill-node n1 [all]   kill -9 of that slurmd, its jobs run on as orphans; all: of its jobs too
#   slurm.sh start-node n1        start it again, wait until it is up
#   slurm.sh wait-idle [SECONDS]  until every node is idle (default 60)
#   slurm.sh reset                as after start: cancels and kills all jobs, starts dead nodes, waits until all are idle
# Exit status 3: this machine cannot have it (not root, no packages); 1: anything else.
#
# SLURM_TEST_DIR   base folder, its path under 60 characters (default /var/tmp/hyperlaw-slurm)
# SLURM_TEST_PORT  first of 20 free ports: slurmctld, slurmdbd, and +11, +12 the nodes (default 17100)
# SLURM_TEST_NODES, SLURM_TEST_CPUS, SLURM_TEST_GPUS  nodes, and what each claims to have (2 each)
set -euo pipefail
BASE=${SLURM_TEST_DIR:-/var/tmp/hyperlaw-slurm}
[ -e "$BASE/instance" ] && . "$BASE/instance" # port and accounting, as at its last start
PORT=${SLURM_TEST_PORT:-${port:-17100}}
NODES=${SLURM_TEST_NODES:-2} CPUS=${SLURM_TEST_CPUS:-2} GPUS=${SLURM_TEST_GPUS:-2}
RUN=$BASE/run LOG=$BASE/log
export SLURM_CONF=$BASE/slurm.conf MYSQL_UNIX_PORT=$RUN/mariadb.sock
export PATH=$PATH:/usr/sbin:/sbin

die() { echo "slurm.sh: $*" >&2; exit "${STATUS:-1}"; }
cannot() { STATUS=3 die "$@"; }

within() { # SECONDS COMMAND...: until the command succeeds
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || die "gave up waiting for: $* (logs in $LOG)"
    sleep 0.1
  done
}

# Daemons -----------------------------------------------------------------------------------------------------------

pid_of() { # NAME: the pid in NAME's file, if that process is such a daemon
  local pid; pid=$(cat "$RUN/$1.pid" 2>/dev/null) && [ -n "$pid" ] || return 1
  [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "${1%%-*}" ] && readlink "/proc/$pid/exe" >/dev/null && echo "$pid" # no zombie
}

end() { # NAME: TERM, after 5 s KILL
  local pid; pid=$(pid_of "$1") || { rm -f "$RUN/$1.pid"; return 0; }
  kill "$pid"
  for _ in $(seq 50); do pid_of "$1" >/dev/null || break; sleep 0.1; done
  ! pid_of "$1" >/dev/null || kill -9 "$pid" || true
  rm -f "$RUN/$1.pid"
}

processes_of_jobs() { # [NODE]: pids of slurmstepd, then of jobs, orphans included
  local node=${1:-} dir env jobs=()
  for dir in /proc/[0-9]*; do
    readlink "$dir/exe" >/dev/null || continue # a zombie, or of the kernel
    if [ "$(cat "$dir/comm" 2>/dev/null)" = slurmstepd ]; then # knows its node by nothing but the log it shares with slurmd
      [ -z "$(find "$dir/fd" -lname "$LOG/slurmd-${node:-*}.log" 2>/dev/null)" ] || echo "${dir#/proc/}"
    else
      env=$(tr '\0' '\n' 2>/dev/null <"$dir/environ" |
        grep -xE "SLURM_CONF=$SLURM_CONF|SLURMD_NODENAME=${node:-.*}") || continue
      [[ "$env" == *SLURM_CONF=* && "$env" == *SLURMD_NODENAME=* ]] || continue
      jobs+=("${dir#/proc/}")
    fi
  done
  [ ${#jobs[@]} = 0 ] || printf '%s\n' "${jobs[@]}"
}

kill_jobs() { # [NODE]
  local pids; pids=$(processes_of_jobs "$@")
  [ -z "$pids" ] || kill -9 $pids 2>/dev/null || true # some have just left by themselves
}

cancel() { # every job, without waiting for those that do not heed TERM
  timeout 10 squeue -h -o %A | xargs -r timeout 10 scancel --quiet || true # some have just ended
  kill_jobs
}

node_names() { seq -f "n%g" "$NODES"; }

known() { node_names | grep -qx "${1:-}" || die "no node ${1:-}; nodes are $(node_names | xargs)"; }

nodes_in() { # STATES NODE...: each of these nodes is in one of the states
  local states=$1 node state; shift
  for node; do
    state=$(timeout 10 sinfo -h -N -n "$node" -p main -o %T)
    [[ ",$states," == *",$state,"* ]] || return 1
  done
}

# Start -------------------------------------------------------------------------------------------------------------

install() {
  local want=(slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins) miss=() package
  [ "$ACCOUNTING" = none ] || want+=(slurmdbd mariadb-server)
  for package in "${want[@]}"; do dpkg -s "$package" >/dev/null 2>&1 || miss+=("$package"); done
  [ ${#miss[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || cannot "needs the Debian packages ${miss[*]}, and there is no apt-get here"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${miss[@]}"; } >"$LOG/apt.log" 2>&1 </dev/null ||
    { tail -15 "$LOG/apt.log" >&2; cannot "apt-get could not install ${miss[*]} (above: the end of $LOG/apt.log)"; }
}

accounting_lines() {
  [ "$ACCOUNTING" = none ] && { echo "JobAcctGatherType=jobacct_gather/none"; return; } # storage: none by default
  cat <<C
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$RUN/munge.sock
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
C
}

configure() {
  local host node i gpu; host=$(hostname -s)
  {
    cat <<C
ClusterName=test$PORT
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its credential has expired.
AuthInfo=socket=$RUN/munge.sock,cred_expire=5
SlurmctldPort=$PORT
StateSaveLocation=$BASE/state
SlurmctldPidFile=$RUN/slurmctld.pid
SlurmctldLogFile=$LOG/slurmctld.log
SlurmdSpoolDir=$BASE/spool-%n
SlurmdPidFile=$RUN/slurmd-%n.pid
SlurmdLogFile=$LOG/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
PropagateResourceLimits=NONE
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MinJobAge=30
KillWait=5
# A killed slurmd is missed after this; its jobs then start elsewhere.
SlurmdTimeout=12
SlurmctldTimeout=30
GresTypes=gpu
$(accounting_lines)
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=high Nodes=ALL Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
C
    for i in $(seq "$NODES"); do
      echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((PORT + 10 + i)) CPUs=$CPUS RealMemory=8000" \
        "Gres=gpu:$GPUS State=UNKNOWN"
    done
  } >"$BASE/slurm.conf"
  for gpu in $(seq 0 $((GPUS - 1))); do # a GPU is a character device: /dev/null under another name
    [ -e "$BASE/gpu$gpu" ] || mknod "$BASE/gpu$gpu" c 1 3 || cannot "mknod is not allowed here, fake GPUs need it"
  done
  for node in $(node_names); do
    mkdir -p "$BASE/spool-$node"
    for gpu in $(seq 0 $((GPUS - 1))); do echo "NodeName=$node Name=gpu File=$BASE/gpu$gpu"; done
  done >"$BASE/gres.conf"
  (umask 077; cat >"$BASE/slurmdbd.conf" <<C
AuthType=auth/munge
AuthInfo=socket=$RUN/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
SlurmUser=root
LogFile=$LOG/slurmdbd.log
PidFile=$RUN/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
C
  )
  printf 'port=%s accounting=%s\n' "$PORT" "$ACCOUNTING" >"$BASE/instance"
}

start_munged() {
  [ -s "$BASE/munge.key" ] || (umask 077; head -c 1024 /dev/urandom >"$BASE/munge.key")
  pid_of munged >/dev/null || munged --force --key-file="$BASE/munge.key" --pid-file="$RUN/munged.pid" \
    --socket="$RUN/munge.sock" --log-file="$LOG/munged.log" --seed-file="$BASE/munge.seed"
}

start_database() {
  local sql=(mariadb --no-defaults --socket="$RUN/mariadb.sock")
  [ -d "$BASE/db/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$BASE/db" \
    --auth-root-authentication-method=socket --skip-test-db >"$LOG/db-install.log" 2>&1
  if ! pid_of mariadbd >/dev/null; then
    setsid mariadbd --no-defaults --user=root --datadir="$BASE/db" --socket="$RUN/mariadb.sock" \
      --pid-file="$RUN/mariadbd.pid" --skip-networking --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 \
      >"$LOG/mariadbd.log" 2>&1 </dev/null &
  fi
  within 30 "${sql[@]}" -e 'create database if not exists slurm_acct_db'
  pid_of slurmdbd >/dev/null || slurmdbd
  within 30 sacctmgr -n -i list cluster
  sacctmgr -n list cluster format=cluster%30 | grep -qw "test$PORT" || sacctmgr -i add cluster "test$PORT" >/dev/null
}

failed_start() { # what slurmctld died of, and nothing left running
  local status=$?
  grep -hs 'fatal:' "$LOG/slurmctld.log" | tail -1 >&2 || true
  stop || true
  exit $status
}

start() {
  [ "$(id -u)" = 0 ] || cannot "needs root: it starts slurmd"
  [ ${#BASE} -lt 60 ] || die "base folder $BASE is too long a path for the sockets in it"
  case $ACCOUNTING in none | dbd) ;; *) die "accounting is none or dbd, not $ACCOUNTING" ;; esac
  mkdir -p "$RUN" "$LOG" "$BASE/state" "$BASE/db"
  chmod 755 "$BASE" "$RUN"
  if pid_of slurmctld >/dev/null; then
    [ "$ACCOUNTING" = "${accounting:-}" ] || die "up with accounting ${accounting:-}; stop it first"
  else
    trap failed_start EXIT
  fi
  install
  configure
  start_munged
  [ "$ACCOUNTING" = none ] || start_database
  pid_of slurmctld >/dev/null || slurmctld
  for node in $(node_names); do pid_of "slurmd-$node" >/dev/null || slurmd -N "$node"; done
  within 30 nodes_in idle,mixed,allocated $(node_names)
  trap - EXIT
}

stop() {
  local name
  [ -d "$RUN" ] || return 0
  if pid_of slurmctld >/dev/null; then
    cancel
    for _ in $(seq 20); do [ -n "$(timeout 5 squeue -h 2>/dev/null)" ] || break; sleep 0.1; done
  fi
  for name in $(node_names); do end "slurmd-$name"; done
  kill_jobs # also those that slurmctld no longer knows
  for name in slurmctld slurmdbd mariadbd munged; do end "$name"; done
}

status() {
  local name all=0
  local database=; [ "${accounting:-none}" = none ] || database="mariadbd slurmdbd"
  for name in munged $database slurmctld $(node_names | sed s/^/slurmd-/); do
    pid_of "$name" >/dev/null && echo "$name up" || { echo "$name down"; all=1; }
  done
  timeout 10 sinfo || all=1
  return $all
}

# -------------------------------------------------------------------------------------------------------------------

case ${1:-} in
  start) ACCOUNTING=${2:-none}; start; accounting=$ACCOUNTING; status ;;
  stop) stop ;;
  clean) [ ! -e "$BASE/instance" ] || { stop; rm -rf "$BASE"; } ;;
  status) status ;;
  env) echo "export SLURM_CONF=$SLURM_CONF SLURM_TEST_DIR=$BASE PATH=\$PATH:/usr/sbin:/sbin" ;;
  kill-node)
    known "${2:-}"
    pid=$(pid_of "slurmd-$2") || die "slurmd of $2 does not run"
    kill -9 "$pid"
    if [ "${3:-}" = all ]; then kill_jobs "$2"; fi ;;
  start-node)
    known "${2:-}"
    pid_of "slurmd-$2" >/dev/null || slurmd -N "$2"
    within 30 nodes_in idle,mixed,allocated "$2" ;;
  reset)
    cancel
    for node in $(node_names); do pid_of "slurmd-$node" >/dev/null || slurmd -N "$node"; done
    within 60 nodes_in idle $(node_names) ;;
  wait-idle) within "${2:-60}" nodes_in idle $(node_names) ;;
  *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
esac
