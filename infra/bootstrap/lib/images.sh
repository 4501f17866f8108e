# The stack's images. All are ours, built from infra/images/NAME on one base; no upstream tag is ever overwritten.
#
# Each image carries the hash of what went into it as a label and is built again only when that differs. The base's
# root is Debian's own slim image where a registry can be reached, else made by debootstrap.
# shellcheck shell=bash

DEBIAN=bookworm
DEBIAN_MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
DEBIAN_SECURITY_MIRROR=${DEBIAN_SECURITY_MIRROR:-http://deb.debian.org/debian-security}
ROOT_IMAGE=kontena/debian:$DEBIAN
INPUTS_LABEL=io.kontena.inputs

# In the order of building: base comes first.
IMAGES=(base postgres redis registry edge node toolbox testapp-webservice api agent)

# What an image needs besides its own directory: "bin NAME" for a built binary, "dir PATH" for a directory of the tree.
image_needs() {
  case $1 in
    api) say "bin kontena-api" ;;
    agent) say "bin kontena-agent"; say "bin weavewait" ;;
    testapp-webservice) say "dir examples/testapp/webservice" ;;
  esac
}

# ---- binaries -------------------------------------------------------------------------------------------------

BINARIES=(kontena-api kontena-agent weavewait kontena)

binaries_dir() { say "$ROOT/.kontena/bin"; }

# The build cache is shared between clones, and so is the place where cargo puts a finished program: another clone's
# would soon lie there. So they are taken away at once, and no other make builds meanwhile.
binaries_build() {
  local args=() binary built
  built=$CARGO_TARGET_DIR/$(rustc -vV | sed -n 's/^host: //p')/release
  for binary in "${BINARIES[@]}"; do args+=(--bin "$binary"); done
  mkdir -p "$CARGO_TARGET_DIR" "$(binaries_dir)"
  exec 8>"$CARGO_TARGET_DIR/.kontena-lock"
  flock 8
  cargo build --release --workspace "${args[@]}" 8>&-
  for binary in "${BINARIES[@]}"; do
    # A running program cannot be written to, but replaced.
    cp "$built/$binary" "$(binaries_dir)/$binary.new"
    mv "$(binaries_dir)/$binary.new" "$(binaries_dir)/$binary"
  done
}

# ---- the base's root ------------------------------------------------------------------------------------------

root_image() {
  if docker image inspect "$ROOT_IMAGE" >/dev/null 2>&1; then return; fi
  root_image_pull || root_image_debootstrap
}

root_image_pull() {
  timeout 120 docker pull "debian:$DEBIAN-slim" && docker tag "debian:$DEBIAN-slim" "$ROOT_IMAGE"
}

root_image_debootstrap() {
  local dir
  dir=$(mktemp -d)
  debootstrap --variant=minbase "$DEBIAN" "$dir/root" "$DEBIAN_MIRROR"
  root_image_slim "$dir/root"
  tar -C "$dir/root" --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' -c . | docker import - "$ROOT_IMAGE"
  rm -rf "$dir"
}

root_image_slim() {
  local root=$1
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/var/log/*
  rm -rf "$root"/usr/share/{man,info,locale,lintian}/* "$root"/etc/resolv.conf "$root"/etc/hostname
  find "$root/usr/share/doc" -type f ! -name copyright -delete
  printf 'deb %s %s main\n' \
    "$DEBIAN_MIRROR" "$DEBIAN" "$DEBIAN_MIRROR" "$DEBIAN-updates" "$DEBIAN_SECURITY_MIRROR" "$DEBIAN-security" \
    >"$root/etc/apt/sources.list"
}

# ---- building -------------------------------------------------------------------------------------------------

# How this machine's apt reaches its packages holds inside a build too.
apt_settings() {
  have apt-config || return 0
  apt-config dump | grep -E '^Acquire::(Check-|https?::Proxy|Retries)' || true
}

images_build() { local name; for name in "$@"; do image_build "$name"; done; }

image_build() {
  local name=$1 context hash
  [[ $name != base ]] || root_image
  context=$(mktemp -d)
  image_context "$name" "$context"
  hash=$(image_hash "$name" "$context")
  if [[ $(image_label "kontena/$name:latest") == "$hash" ]]; then
    say "kontena/$name: nothing changed"
  else
    image_build_context "$name" "$context" "$hash"
  fi
  rm -rf "$context"
}

image_context() {
  local name=$1 context=$2 kind what
  cp -a "$INFRA/images/$name/." "$context"
  while read -r kind what; do
    case $kind in
      bin) cp "$(binaries_dir)/$what" "$context/" ;;
      dir) cp -a "$ROOT/$what/." "$context" ;;
    esac
  done < <(image_needs "$name")
}

# The image below counts as an input: a new base makes everything new.
image_hash() {
  local name=$1 context=$2 below=kontena/base:latest
  [[ $name != base ]] || below=$ROOT_IMAGE
  { docker image inspect --format '{{.Id}}' "$below"
    apt_settings
    cd "$context" && find . -type f -printf '%m %p\n' -exec sha256sum {} + | LC_ALL=C sort
  } | sha256sum | cut -d' ' -f1
}

image_label() { docker image inspect --format "{{index .Config.Labels \"$INPUTS_LABEL\"}}" "$1" 2>/dev/null || true; }

image_build_context() {
  local name=$1 context=$2 hash=$3 base=kontena/base:latest args=()
  [[ $name != base ]] || base=$ROOT_IMAGE
  args+=(--build-arg "BASE=$base" --label "$INPUTS_LABEL=$hash" --tag "kontena/$name:latest")
  [[ $name != base ]] || args+=(--build-arg "APT_SETTINGS=$(apt_settings)")
  args+=(--build-arg "http_proxy=${http_proxy:-}" --build-arg "https_proxy=${https_proxy:-}")
  # The host's network also reaches what the host reaches through a local proxy or resolver.
  if docker buildx version >/dev/null 2>&1; then args+=(--load); else export DOCKER_BUILDKIT=0; fi
  docker build --network host "${args[@]}" "$context"
  # The one it replaces.
  docker image prune --force --filter "label=$INPUTS_LABEL" >/dev/null
}

images_remove() {
  local ids
  mapfile -t ids < <(docker images --filter "label=$INPUTS_LABEL" --format '{{.Repository}}:{{.Tag}}')
  ids+=("$ROOT_IMAGE")
  docker rmi --force "${ids[@]}" || true
  docker image prune --force --filter "label=$INPUTS_LABEL"
  rm -rf "$(binaries_dir)"
}
