# The stack's images. All are ours, built from infra/images/NAME on one base; no upstream tag is ever overwritten.
#
# Each image carries the hash of what went into it as a label and is built only when none with that hash is there. It
# is tagged with the project's name, so that two projects, or two clones, at work on one engine do not get each other's;
# `latest` is the last one. The base's root is Debian's own slim image where a registry can be reached, else made by
# debootstrap.
# shellcheck shell=bash

DEBIAN=bookworm
DEBIAN_MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
DEBIAN_SECURITY_MIRROR=${DEBIAN_SECURITY_MIRROR:-http://deb.debian.org/debian-security}
ROOT_IMAGE=kontena/debian:$DEBIAN
INPUTS_LABEL=io.kontena.image.inputs

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

# Each project its own: the demo stays as it is when the tests' stack is made of newer ones, and the other way round.
binaries_dir() { say "$ROOT/.kontena/bin-$PROJECT"; }

# Where cargo puts finished programs.
built_dir() { say "$CARGO_TARGET_DIR/$(rustc -vV | sed -n 's/^host: //p')/release"; }

# The build cache is shared between clones, but cargo tells their members apart by their files' times alone, and would
# take what it made of the other. Locks the cache (fd 8) and throws that away.
cache_claim() {
  local clone=$CARGO_TARGET_DIR/.kontena-clone
  mkdir -p "$CARGO_TARGET_DIR"
  exec 8>"$CARGO_TARGET_DIR/.kontena-lock"
  flock 8
  if [[ -f $clone && $(<"$clone") != "$ROOT" ]]; then
    cargo clean --release --workspace --target "$(rustc -vV | sed -n 's/^host: //p')"
  fi
  say "$ROOT" >"$clone"
}

# The place where cargo puts a finished program is shared too: another clone's would soon lie there. So they are taken
# away at once, and no other make builds meanwhile.
binaries_build() {
  local args=() binary built
  built=$(built_dir)
  for binary in "${BINARIES[@]}"; do args+=(--bin "$binary"); done
  mkdir -p "$(binaries_dir)"
  cache_claim
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
  # No such setting is a good answer too.
  apt-config dump | grep -E '^Acquire::(Check-|https?::Proxy|Retries)' || true
}

images_build() {
  local name
  # One make at a time: what is built but not yet tagged looks like rubbish to the other's clearing up.
  exec 8>"${TMPDIR:-/tmp}/kontena-images.lock"
  flock 8
  for name in "$@"; do image_build "$name"; done
}

image_build() {
  local name=$1 context hash
  [[ $name != base ]] || root_image
  context=$(mktemp -d)
  image_context "$name" "$context"
  hash=$(image_hash "$name" "$context")
  if [[ -z $(image_built "$name" "$hash") ]]; then image_build_context "$name" "$context" "$hash"; fi
  rm -rf "$context"
  image_tag "$name" "$(image_built "$name" "$hash")"
}

image_tag() {
  local name=$1 id=$2
  say "kontena/$name is $id"
  docker tag "$id" "kontena/$name:$PROJECT"
  docker tag "$id" "kontena/$name:latest"
  # The one that it replaced.
  docker image prune --force --filter "label=$INPUTS_LABEL" >/dev/null
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

image_below() { if [[ $1 == base ]]; then say "$ROOT_IMAGE"; else say "kontena/base:$PROJECT"; fi; }

# The image below counts as an input: a new base makes everything new.
image_hash() {
  local name=$1 context=$2
  { say "$name"
    docker image inspect --format '{{.Id}}' "$(image_below "$name")"
    apt_settings
    cd "$context" && find . -type f -printf '%m %p\n' -exec sha256sum {} + | LC_ALL=C sort
  } | sha256sum | cut -d' ' -f1
}

# The image that was made of these inputs, if there is one. What somebody committed from one of ours has its label, too,
# but not its name.
image_built() {
  local name=$1 hash=$2
  docker images --quiet --no-trunc --filter "label=$INPUTS_LABEL=$hash" --filter "reference=kontena/$name" | head -n 1
}

image_build_context() {
  local name=$1 context=$2 hash=$3 args=()
  args+=(--build-arg "BASE=$(image_below "$name")" --label "$INPUTS_LABEL=$hash" --tag "kontena/$name:$PROJECT")
  [[ $name != base ]] || args+=(--build-arg "APT_SETTINGS=$(apt_settings)")
  args+=(--build-arg "http_proxy=${http_proxy:-}" --build-arg "https_proxy=${https_proxy:-}")
  # The host's network also reaches what the host reaches through a local proxy or resolver.
  args+=(--network host)
  if docker buildx version >/dev/null 2>&1; then
    # The engine's own builder, whichever a person has chosen: others do not know the engine's images.
    docker buildx build --builder default --load "${args[@]}" "$context"
  else
    DOCKER_BUILDKIT=0 docker build "${args[@]}" "$context"
  fi
}

images_remove() {
  local ids
  mapfile -t ids < <(docker images --filter "label=$INPUTS_LABEL" --format '{{.Repository}}:{{.Tag}}')
  ids+=("$ROOT_IMAGE")
  # An image that is gone already, or still in use, is no reason to stop.
  docker rmi --force "${ids[@]}" || true
  docker image prune --force --filter "label=$INPUTS_LABEL"
  rm -rf "$ROOT"/.kontena/bin-*
}
