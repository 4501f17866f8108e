# The grid on the stack: everything here goes through the CLI, as a person would do it.
# shellcheck shell=bash

CA=$STATE/ca.pem
export KONTENA_CONFIG=$STATE/client.json

api_url() { say "https://localhost:$API_PORT"; }
# Whatever Master a person's environment names is not meant here.
kontena() {
  env --unset=KONTENA_URL --unset=KONTENA_TOKEN --unset=KONTENA_MASTER KONTENA_GRID="$GRID" \
    "$(binaries_dir)/kontena" "$@"
}
on_node() { local number=$1; shift; docker exec "$PROJECT-node-$number" "$@"; }

login() { kontena master login "$(api_url)" --token "$KONTENA_ADMIN_TOKEN" --ca "$CA" --name "$PROJECT"; }

grid_make() {
  kontena grid show "$GRID" || kontena grid create "$GRID" --trusted-subnet "$WAN_SUBNET"
  kontena grid use "$GRID"
}

# Hosts join one after another, so that node-1 has number 1.
nodes_join() {
  local token number
  token=$(kontena grid show "$GRID" --token)
  # The slow part goes at once; whether it worked shows when they join.
  for number in 1 2 3; do on_node "$number" docker pull --quiet kontena/agent & done
  wait
  for number in 1 2 3; do
    on_node "$number" env KONTENA_URI=wss://edge:443 KONTENA_TOKEN="$token" kontena-join
    wait_until 60 "node-$number is online" node_online "node-$number"
  done
}

# `node ls -o json` prints the API's list, or what is in it.
node_online() {
  kontena node ls -o json | jq -e --arg name "$1" '(.nodes? // .) | any(.name == $name and .connected)'
}

testapp_deploy() { kontena stack install "$ROOT/examples/testapp/kontena.yml"; }

testapp_answers() { wait_until 60 "the page of testapp answers" page_fetch; }

# ---- what a person wants to see -------------------------------------------------------------------------------

# db's container as seen by its host: "node-2 testapp.db-1"
db_container() {
  kontena container ls -o json |
    jq -er '(.containers? // .)[] | select(.service == "db" and .stack == "testapp") | "\(.node) \(.name)"' | head -n 1
}

in_db() {
  local node name
  read -r node name < <(db_container)
  docker exec "$PROJECT-$node" docker exec "$name" "$@"
}

page_fetch() {
  # shellcheck disable=SC2016 # for the shell inside
  in_db bash -c 'exec 3<>"/dev/tcp/$1/80" || exit
    printf "GET / HTTP/1.0\r\n\r\n" >&3; page=$(cat <&3); grep -q " 200 " <<<"$page" && grep "<p>" <<<"$page"' \
    - "testapp-webservice.$GRID.kontena.local"
}

show_names() {
  local name
  for name in testapp-db testapp-webservice testapp-webservice-1 testapp-webservice-2; do
    name=$name.$GRID.kontena.local
    printf '  %-46s %s\n' "$name" "$(in_db getent ahostsv4 "$name" | awk '{print $1}' | sort -uV | xargs)"
  done
}

show() {
  local node name
  title "Nodes of the grid $GRID"
  kontena node ls
  title "Containers and their overlay addresses"
  kontena container ls
  read -r node name < <(db_container)
  title "Names, asked in $name on $node"
  show_names
  title "http://testapp-webservice.$GRID.kontena.local/, fetched in $name on $node"
  page_fetch | sed -E 's/<[^>]*>//g; s/^/  /'
  show_next
}

show_next() {
  local project=""
  [[ $PROJECT == kontena ]] || project="PROJECT=$PROJECT "
  title "The Master answers at $(api_url)"
  cat <<TEXT
  CA certificate   ${CA#"$ROOT"/}
  admin's token    KONTENA_ADMIN_TOKEN in ${STATE#"$ROOT"/}/secrets.env

  Next:
    eval "\$(${project}infra/bootstrap/env)"         puts \`kontena\` on the PATH, logged in
    kontena service scale testapp/webservice 5
    kontena container ls
    make help
TEXT
}

# What tests/ reads to find its stack.
test_env_make() {
  cat <<ENV
KONTENA_TEST_DATABASE_URL=postgres://kontena:$POSTGRES_PASSWORD@127.0.0.1:$POSTGRES_PORT/kontena
KONTENA_TEST_REDIS_URL=redis://127.0.0.1:$REDIS_PORT
KONTENA_TEST_URL=$(api_url)
KONTENA_TEST_CA=$CA
KONTENA_TEST_ADMIN_TOKEN=$KONTENA_ADMIN_TOKEN
KONTENA_TEST_PROJECT=$PROJECT
KONTENA_TEST_GRID=$GRID
KONTENA_TEST_WAN_SUBNET=$WAN_SUBNET
KONTENA_TEST_CLI=$(binaries_dir)/kontena
KONTENA_TEST_CLI_CONFIG=$KONTENA_CONFIG
KONTENA_TEST_VM=$VM
ENV
}
