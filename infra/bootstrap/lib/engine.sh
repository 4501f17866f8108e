# The Docker engine of this machine: used as it is when one answers, else started.
# shellcheck shell=bash

engine_answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# An engine that this user may not ask is not one to start.
engine_permitted() {
  local error
  # Its failure is looked at below, by what it says.
  error=$(docker version --format '{{.Server.Version}}' 2>&1 >/dev/null) || true
  [[ ${error,,} != *"permission denied"* ]] || die "$error"
}

engine_start() {
  if engine_answers; then return; fi
  engine_permitted
  if [[ -d /run/systemd/system ]]; then
    systemctl start docker || { engine_log; return 1; }
  else
    engine_start_alone
  fi
  wait_until 60 "the Docker engine answers" engine_answers || { engine_log; return 1; }
}

engine_log() {
  if [[ -d /run/systemd/system ]]; then journalctl --no-pager -u docker -n 30; else tail -n 30 /var/log/dockerd.log; fi
}

# Without systemd the engine runs in the background, detached from this script's session.
engine_start_alone() {
  have dockerd || die "no Docker engine answers and there is no dockerd to start"
  setsid dockerd >>/var/log/dockerd.log 2>&1 </dev/null &
}
