# What must be on the machine. Only what is missing is installed, and only where apt is; nothing that is there is
# touched. Elsewhere the missing things are named, and the newcomer installs them in the machine's own way.
# shellcheck shell=bash

# Where rustup puts cargo; a shell that was open before does not know it yet.
CARGO_BIN=${CARGO_HOME:-$HOME/.cargo}/bin
[[ ! -d $CARGO_BIN ]] || PATH=$PATH:$CARGO_BIN

# command:Debian package
TOOLS=(
  curl:curl git:git jq:jq cc:gcc ld.mold:mold debootstrap:debootstrap
)
# What the tests run on the machine itself; an import is a module of the system's Python.
TEST_TOOLS=(
  shellcheck:shellcheck nft:nftables ip:iproute2 bridge:iproute2 ping:iputils-ping wg:wireguard-tools wireguard-go:wireguard-go
  iptables:iptables iptables-nft:iptables iptables-legacy:iptables "import pyroute2:python3-pyroute2"
)
# What the benchmark `overlay` runs on the machine itself: tools to measure with, and what ours is measured beside.
BENCH_TOOLS=(
  iperf3:iperf3 ping:iputils-ping ethtool:ethtool ip:iproute2 bridge:iproute2 nft:nftables iptables:iptables
  iptables-nft:iptables iptables-legacy:iptables dockerd:docker.io docker:docker.io nebula:nebula nebula-cert:nebula
  wg:wireguard-tools wireguard-go:wireguard-go
)

# What builds libFuzzer.
FUZZ_TOOLS=(cc:gcc c++:g++)

# The packages of those commands and modules that are not there.
packages_missing() {
  local entry
  for entry in "$@"; do tool_present "${entry%%:*}" || say "${entry##*:}"; done
}

# Packages of modules are for the system's interpreter; another may be the first in PATH.
tool_present() {
  case $1 in
    import\ *) /usr/bin/python3 -c "$1" 2>/dev/null ;;
    *) have "$1" ;;
  esac
}

tools_missing() {
  packages_missing "${TOOLS[@]}"
  [[ -e /etc/ssl/certs/ca-certificates.crt ]] || say ca-certificates
  # Linking statically needs libc's archives.
  [[ -n $(cc -print-file-name=libc.a 2>/dev/null | grep / || true) ]] || say libc6-dev
  have dockerd || engine_answers || say docker.io
  have docker || say docker.io
  compose_command >/dev/null || say docker-compose
  iptables_present || say iptables
}

# The engine, when it runs here and not in a virtual machine, calls iptables.
iptables_present() { engine_answers || have iptables; }

# Prints the compose command of this machine: v2 as a plugin or v1 as a program.
compose_command() {
  if docker compose version >/dev/null 2>&1; then say "docker compose"; return; fi
  if have docker-compose; then say docker-compose; return; fi
  return 1
}

tools_install() {
  local missing
  # First what nobody but the person can mend, and before much is installed.
  have cargo || die "no Rust toolchain: see https://rustup.rs"
  ! have docker || engine_permitted
  mapfile -t missing < <(tools_missing | sort -u)
  packages_ensure "${missing[@]}"
}

packages_ensure() {
  say "missing: ${*:-nothing}"
  (($# == 0)) || packages_install "$@"
}

packages_install() {
  have apt-get || die "please install: $*"
  ((EUID == 0)) || die "please install, or run as root: $*"
  apt-get update
  # Services are not started by the packages: the engine's start is a step of its own.
  DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install --yes --no-install-recommends "$@"
}

# What only the tests need.
test_tools_install() {
  local missing
  mapfile -t missing < <(packages_missing "${TEST_TOOLS[@]}" | sort -u)
  packages_ensure "${missing[@]}"
  cargo fmt --version && cargo clippy --version || rustup component add rustfmt clippy
  cargo nextest --version || cargo_install cargo-nextest
  # Its speed does not matter, the minutes of building it do.
  cargo deny --version || cargo_install cargo-deny --debug
}

# What only the benchmark `overlay` needs.
bench_tools_install() {
  local missing
  mapfile -t missing < <(packages_missing "${BENCH_TOOLS[@]}" | sort -u)
  packages_ensure "${missing[@]}"
}

# What only fuzzing needs.
fuzz_tools_install() {
  local missing
  have cargo || die "no Rust toolchain: see https://rustup.rs"
  mapfile -t missing < <(packages_missing "${FUZZ_TOOLS[@]}" | sort -u)
  packages_ensure "${missing[@]}"
}

# Away from the tree: its build settings and its build cache are not for tools.
cargo_install() { env --chdir=/ --unset=CARGO_TARGET_DIR cargo install --locked "$@"; }
