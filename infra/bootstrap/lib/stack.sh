# The stack of docker-compose.yml: its environment and secrets, its parts, its health.
# shellcheck shell=bash

STACK_ENV=$STATE/stack.env

# demo.env or test.env, and this machine's secrets, in one file that compose reads.
stack_env_make() {
  local source=$INFRA/stack/demo.env
  [[ $PROJECT == kontena ]] || source=$INFRA/stack/test.env
  (
    umask 077
    [[ -e $STATE/secrets.env ]] || secrets_make >"$STATE/secrets.env"
    { cat "$source"
      # A project of another name takes its ports and addresses from the file, its name from the caller.
      say "COMPOSE_PROJECT_NAME=$PROJECT"
      cat "$STATE/secrets.env"
    } >"$STACK_ENV"
  )
}

secrets_make() {
  say "POSTGRES_PASSWORD=$(random_hex 16)"
  say "KONTENA_SECRET=$(random_hex 32)"
  say "KONTENA_ADMIN_TOKEN=$(random_hex 24)"
}

random_hex() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }

stack_env_load() {
  set -a
  # shellcheck disable=SC1090 # made above
  . "$STACK_ENV"
  set +a
}

compose() {
  local files=(-f "$ROOT/docker-compose.yml") command
  [[ $PROJECT == kontena ]] || files+=(-f "$ROOT/docker-compose.test.yml")
  read -ra command < <(compose_command)
  "${command[@]}" -p "$PROJECT" --project-directory "$ROOT" "${files[@]}" "$@"
}

# Local stacks are built of these; the tests' one has two hosts more, for a second grid.
stack_nodes() {
  say "node-1 node-2 node-3"
  [[ -z ${COMPOSE_PROFILES:-} ]] || say "node-4 node-5"
}

stack_start() {
  local nodes
  # read fails at the end of its input, which is where it is to stop.
  read -rd '' -a nodes < <(stack_nodes) || true
  compose up -d --remove-orphans postgres redis registry migrate api-1 api-2 edge "${nodes[@]}"
}

stack_healthy() {
  local node
  wait_until 60 "the edge has made its certificates" ca_fetch
  wait_until 120 "the Master answers at https://localhost:$API_PORT" \
    curl -fsS -m 2 --cacert "$STATE/ca.pem" "https://localhost:$API_PORT/v1/ping"
  for node in $(stack_nodes); do
    wait_until 60 "$node's engine answers" docker exec "$PROJECT-$node" docker version --format '{{.Server.Version}}'
  done
}

ca_fetch() {
  docker exec "$PROJECT-edge" cat /var/lib/edge-ca/ca.pem >"$STATE/ca.new" && mv "$STATE/ca.new" "$STATE/ca.pem"
}

# ---- the registry ---------------------------------------------------------------------------------------------

# What the hosts pull.
PUSHED=(agent redis testapp-webservice toolbox)

images_push() {
  local name jobs=() job
  wait_until 60 "the registry answers" curl -fsS -m 2 "http://127.0.0.1:$REGISTRY_PORT/v2/"
  for name in "${PUSHED[@]}"; do image_push "$name" & jobs+=($!); done
  for job in "${jobs[@]}"; do wait "$job"; done
}

image_push() {
  local name=$1 remote=127.0.0.1:$REGISTRY_PORT/kontena/$1:latest id
  id=$(docker image inspect --format '{{.Id}}' "kontena/$name:$PROJECT")
  if [[ $(cat "$STATE/pushed-$name" 2>/dev/null) == "$id" ]] && registry_has "$name"; then
    say "kontena/$name: the registry has it"
    return
  fi
  docker tag "$id" "$remote"
  docker push "$remote"
  docker rmi "$remote"
  say "$id" >"$STATE/pushed-$name"
}

# The registry's volume may be younger than the note of what was pushed.
registry_has() {
  local args=() kind
  for kind in vnd.docker.distribution.manifest.{v2,list.v2} vnd.oci.image.{manifest.v1,index.v1}; do
    args+=(-H "Accept: application/$kind+json")
  done
  curl -fsI -m 5 -o /dev/null "${args[@]}" "http://127.0.0.1:$REGISTRY_PORT/v2/kontena/$1/manifests/latest"
}

# ---- taking it down -------------------------------------------------------------------------------------------

label() { say "label=com.docker.compose.project=$PROJECT"; }
STACK_LABEL=io.kontena.stack=local

# resources container|network|volume [LABEL]: "ID NAME" of all that carries the project's name, and the label.
resources() {
  local filters=(--filter "$(label)")
  [[ -z ${2:-} ]] || filters+=(--filter "label=$2")
  case $1 in
    container) docker ps -a --format '{{.ID}} {{.Names}}' "${filters[@]}" ;;
    network) docker network ls --format '{{.ID}} {{.Name}}' "${filters[@]}" ;;
    volume) docker volume ls --format '{{.Name}} {{.Name}}' "${filters[@]}" ;;
  esac
}

# Those that are ours. What the tests run beside compose is known by the image that it is of.
resources_own() {
  resources "$1" "$STACK_LABEL"
  [[ $1 != container ]] || resources container "$INPUTS_LABEL"
}

# Any compose project may have this name, such as one in a directory called `kontena`.
others_spare() {
  local kind others=()
  for kind in "$@"; do
    mapfile -t -O "${#others[@]}" others < <(
      LC_ALL=C comm -23 <(resources "$kind" | LC_ALL=C sort) <(resources_own "$kind" | LC_ALL=C sort -u) |
        sed "s/^[^ ]*/$kind/")
  done
  ((${#others[@]} == 0)) ||
    die "of a compose project $PROJECT, but not of this stack; remove or rename first:" "${others[@]/#/$'\n  '}"
}

# By label and not through compose: it also takes what a stack left whose files and secrets are gone.
stack_remove() {
  foreign_spare
  others_spare container network volume
  resources_own container | cut -d' ' -f1 | sort -u | xargs -r -n 1 -P 16 docker rm --force --volumes
  resources_own network | cut -d' ' -f1 | xargs -r docker network rm
  resources_own volume | cut -d' ' -f1 | xargs -r docker volume rm --force
}

# A stack whose secrets are not here is another clone's, or what one left behind when it was deleted. A demo that
# somebody may be looking at is not taken away; a test's stack is, unless the test is still running.
foreign_spare() {
  local owner
  [[ ! -e $STATE/secrets.env ]] || return 0
  owner=$(resources_own container | sed -n '1s, .*,,p' |
    xargs -r docker inspect --format '{{index .Config.Labels "com.docker.compose.project.working_dir"}}')
  [[ -z $owner ]] || ! stack_in_use "$owner" ||
    die "the stack $PROJECT belongs to $owner: run \`make down PROJECT=$PROJECT\` there first"
}

stack_in_use() {
  local lock=$1/.kontena/$PROJECT.lock
  [[ -e $1/.kontena/$PROJECT/secrets.env ]] || return 1
  [[ $PROJECT != kontena ]] || return 0
  [[ -e $lock ]] && ! flock --nonblock "$lock" true
}

# With its secrets here the stack is kept as it is; but compose would take others' containers for its own orphans.
leftovers_remove() { if [[ -e $STATE/secrets.env ]]; then others_spare container; else stack_remove; fi; }
