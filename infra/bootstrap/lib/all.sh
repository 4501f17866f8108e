# shellcheck shell=bash
cd "$(dirname "${BASH_SOURCE[0]}")" || exit
# shellcheck source=common.sh
. ./common.sh
# shellcheck source=tools.sh
. ./tools.sh
# shellcheck source=engine.sh
. ./engine.sh
# shellcheck source=images.sh
. ./images.sh
# shellcheck source=vm.sh
. ./vm.sh
# shellcheck source=stack.sh
. ./stack.sh
# shellcheck source=grid.sh
. ./grid.sh
cd "$ROOT" || exit
