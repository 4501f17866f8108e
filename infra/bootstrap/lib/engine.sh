# The Docker engine of this machine: used as it is when one answers, else started.
# shellcheck shell=bash

engine_answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

engine_start() {
  if engine_answers; then return; fi
  if [[ -d /run/systemd/system ]]; then
    systemctl start docker
  else
    engine_start_alone
  fi
  wait_until 60 "the Docker engine answers" engine_answers || { tail -n 30 /var/log/dockerd.log; return 1; }
}

# Without systemd the engine runs in the background, detached from this script's session.
engine_start_alone() {
  have dockerd || die "no Docker engine answers and there is no dockerd to start"
  setsid dockerd >>/var/log/dockerd.log 2>&1 </dev/null &
}
