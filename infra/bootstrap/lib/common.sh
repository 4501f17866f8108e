# Ground that every other part stands on: where things are, and how a step is run, timed, shown and logged.
#
# A step is a function with a name. Its output goes to a log file; the terminal shows one line with the seconds that
# passed. When it fails, that line is followed by the end of the log. Steps run in a subshell: what one learns for
# another goes through a file.
#
# Every script works from the tree's root.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
INFRA=$ROOT/infra

PROJECT=${PROJECT:-kontena}
STATE=$ROOT/.kontena/$PROJECT
LOGS=$STATE/log
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/kontena/target}
export CARGO_TARGET_DIR

say() { printf '%s\n' "$*"; }
title() { if [[ -t 1 ]]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n%s\n' "$*"; fi; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
now_ms() { local t=${EPOCHREALTIME/[.,]/}; say $((t / 1000)); }
seconds() { printf '%d.%d' $(($1 / 1000)) $(($1 % 1000 / 100)); }

# Secrets and keys live in the state directory.
state_make() { umask 022; mkdir -p "$LOGS"; chmod 700 "$ROOT/.kontena"; }

# One at a time per project. The lock ends with the script that took it; what that calls goes under the same lock.
lock() {
  [[ ${KONTENA_LOCKED:-} != "$PROJECT" ]] || return 0
  exec 9>"$ROOT/.kontena/$PROJECT.lock"
  flock --nonblock 9 || die "another make is at work on $PROJECT"
  export KONTENA_LOCKED=$PROJECT
}

# step NAME TEXT FUNCTION [ARG..]
step() {
  local name=$1 text=$2 log=$LOGS/$1.log start pid status=0
  shift 2
  start=$(now_ms)
  # A process group of its own, so that an interrupt reaches everything the step started.
  set -m
  ( set -e; "$@" ) >"$log" 2>&1 </dev/null 9>&- &
  pid=$!
  set +m
  # shellcheck disable=SC2064 # this step's pid is meant
  trap "kill -- -$pid 2>/dev/null; printf '\n'; die 'interrupted during: $text (log: $log)'" INT TERM
  step_watch "$pid" "$text" "$start"
  wait "$pid" || status=$?
  trap - INT TERM
  step_end "$name" "$text" "$start" "$status" "$log"
}

# Shows the seconds while a step runs: in place on a terminal, every half minute elsewhere.
step_watch() {
  local pid=$1 text=$2 start=$3 shown=0 passed
  while kill -0 "$pid" 2>/dev/null; do
    passed=$(($(now_ms) - start))
    if [[ -t 1 ]]; then
      printf '\r  %-52s %5ss ' "$text" "$((passed / 1000))"
    elif ((passed / 30000 > shown)); then
      shown=$((passed / 30000))
      say "  .. $text: still running after $((passed / 1000))s"
    fi
    sleep 0.1
  done
}

step_end() {
  local name=$1 text=$2 start=$3 status=$4 log=$5 ms
  ms=$(($(now_ms) - start))
  [[ -t 1 ]] && printf '\r'
  if ((status == 0)); then
    printf '  %-52s %7ss  done\n' "$text" "$(seconds $ms)"
    step_record "$name" "$ms"
    return
  fi
  printf '  %-52s %7ss  FAILED\n' "$text" "$(seconds $ms)"
  printf '\nThe step "%s" failed (exit %d). End of %s:\n\n' "$name" "$status" "$log" >&2
  tail -n 40 "$log" | sed 's/^/    /' >&2
  exit 1
}

# One JSON line per step, for benchmarks.
step_record() {
  printf '{"step":"%s","seconds":%s,"at":"%s"}\n' "$1" "$(seconds "$2")" "$(date -u +%FT%TZ)" >>"$STATE/steps.jsonl"
}

# wait_until SECONDS TEXT COMMAND..: tries until the command succeeds; shows its last output when time is up.
wait_until() {
  local limit=$1 text=$2 end last
  shift 2
  end=$((SECONDS + limit))
  until last=$("$@" 2>&1); do
    if ((SECONDS >= end)); then
      say "not within ${limit}s: $text; last answer:" >&2
      say "$last" >&2
      return 1
    fi
    sleep 0.2
  done
}
