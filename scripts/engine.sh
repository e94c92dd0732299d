#!/usr/bin/env bash
# A Docker Engine with Compose for the tests of the containers, on a Debian machine that has none.
#
#   scripts/engine.sh up      start one, unless one answers already, and get the base image
#   scripts/engine.sh env     print what makes a shell use it: eval "$(scripts/engine.sh env)"
#   scripts/engine.sh images  build the images of tests/compose, which then find them made
#   scripts/engine.sh down    stop it and take away all that it left
#   scripts/engine.sh status  say which one is used
#
# Engine, Compose and, where no registry answers, the base image come from the Debian mirror that
# this machine already uses. Everything else is below ENGINE_DIR. Each command may be repeated.
# Exit codes: 0 done, 3 cannot be had here, with the reason on standard error.
set -euo pipefail

ENGINE_DIR=${ENGINE_DIR:-/var/tmp/conveyor-engine}
BASE_IMAGE=${SUITE_BASE_IMAGE:-python:3.11-slim-bookworm}
# For benchmarks of networks (RFC 2544): nobody's own addresses are among them.
SUBNETS=198.18
# Compose with `up --wait`, `build.secrets` and merging that removes.
COMPOSE_AT_LEAST=2.24
export DEBIAN_FRONTEND=noninteractive
trap 'echo "$0: failed at line $LINENO" >&2' ERR

refuse() {
  echo "no engine for containers: $*" >&2
  exit 3
}

say() { echo "engine: $*" >&2; }

ours() { [ -s "$ENGINE_DIR/docker.pid" ] && kill -0 "$(cat "$ENGINE_DIR/docker.pid")" 2> /dev/null; }

use_ours() {
  export DOCKER_HOST=unix://$ENGINE_DIR/docker.sock DOCKER_CONFIG=$ENGINE_DIR/config
}

answers() { timeout 20 docker info > /dev/null 2>&1; }

has_compose() {
  local version
  version=$(timeout 20 docker compose version --short 2> /dev/null) || return 1
  version=${version#v}
  [ "$(printf '%s\n' "$COMPOSE_AT_LEAST" "$version" | sort -V | head -n 1)" = "$COMPOSE_AT_LEAST" ]
}

install() { # <program that must be there> <package...>
  local program=$1
  shift
  command -v "$program" > /dev/null && return
  if [ -z "${updated:-}" ]; then
    timeout 300 apt-get update -qq || say "apt-get update failed; trying with the lists as they are"
    updated=1
  fi
  timeout 600 apt-get install -qq -y --no-install-recommends "$@" > /dev/null ||
    refuse "apt-get cannot install $*"
  command -v "$program" > /dev/null || refuse "$* has no $program"
}

mirror() {
  cat /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2> /dev/null |
    sed -n 's/^URIs: *//p; s/^deb \(\[[^]]*\] \)\?\(http[^ ]*\) .*/\2/p' | sed -n 1p || true
}

# Debian 12 has no Compose of today. That of Debian 13 needs nothing but a C library that 12 has,
# so it is unpacked beside the engine, and nothing of the machine is upgraded.
unpack_compose() {
  local dir=$ENGINE_DIR/apt from
  from=$(mirror)
  [ -n "$from" ] || refuse "no Debian mirror in the sources of apt"
  mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/packages" \
    "$ENGINE_DIR/config/cli-plugins"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from trixie main" \
    > "$dir/sources.list"
  local options=(-qq -o "Dir::Etc::SourceList=$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$dir/lists" -o "Dir::Cache=$dir/cache")
  timeout 300 apt-get "${options[@]}" update || refuse "no package list of Debian 13 at $from"
  (cd "$dir/packages" && timeout 300 apt-get "${options[@]}" download \
    docker-compose/trixie docker-buildx/trixie > /dev/null 2>&1) ||
    refuse "Compose cannot be downloaded from $from"
  local package
  for package in "$dir"/packages/*.deb; do dpkg -x "$package" "$ENGINE_DIR/programs"; done
  ln -sf "$ENGINE_DIR"/programs/usr/libexec/docker/cli-plugins/docker-* \
    "$ENGINE_DIR/config/cli-plugins/"
  rm -rf "$dir"
}

start_engine() {
  [ "$(uname -s)" = Linux ] || refuse "this is not Linux"
  [ "$(id -u)" -eq 0 ] || refuse "none answers, and only root can start one"
  command -v apt-get > /dev/null || refuse "none answers, and there is no apt-get to install one"
  pgrep -x dockerd > /dev/null && refuse "a dockerd runs and does not answer (DOCKER_HOST?)"
  install dockerd docker.io
  install iptables iptables
  install docker docker-cli
  mkdir -p "$ENGINE_DIR"
  use_ours
  has_compose || unpack_compose
  has_compose || refuse "docker compose does not work, or is older than $COMPOSE_AT_LEAST"
  clean_network
  {
    iptables -S FORWARD | head -n 1
    cat /proc/sys/net/ipv4/ip_forward
  } > "$ENGINE_DIR/before"
  setsid dockerd --storage-driver overlay2 --host "$DOCKER_HOST" --pidfile "$ENGINE_DIR/docker.pid" \
    --data-root "$ENGINE_DIR/data" --exec-root "$ENGINE_DIR/exec" \
    --bip "$SUBNETS.0.1/24" --default-address-pool "base=$SUBNETS.128.0/17,size=24" \
    > "$ENGINE_DIR/dockerd.log" 2>&1 < /dev/null 9>&- &
  local dockerd=$!
  for _ in $(seq 120); do
    answers && return
    kill -0 "$dockerd" 2> /dev/null || break
    sleep 0.5
  done
  tail -n 5 "$ENGINE_DIR/dockerd.log" >&2
  down
  refuse "dockerd does not start, see above"
}

# The image that the Dockerfile begins with: from its registry, or else one like it made of Debian
# packages, under the same name.
base_image() {
  docker image inspect "$BASE_IMAGE" > /dev/null 2>&1 && return
  timeout 180 docker pull --quiet "$BASE_IMAGE" > /dev/null 2>&1 && return
  [ "$BASE_IMAGE" = python:3.11-slim-bookworm ] ||
    refuse "$BASE_IMAGE cannot be pulled, and only python:3.11-slim-bookworm can be made here"
  say "no registry has $BASE_IMAGE for us: making one of Debian packages"
  local from
  from=$(mirror)
  [ -n "$from" ] || refuse "no Debian mirror in the sources of apt"
  [ "$(id -u)" -eq 0 ] || refuse "$BASE_IMAGE cannot be pulled, and only root can make it"
  install mmdebstrap mmdebstrap
  # shellcheck disable=SC2016  # $1 is for mmdebstrap
  timeout 600 mmdebstrap --quiet --variant=minbase --dpkgopt=force-unsafe-io \
    --include=python3,python3-venv,python3-pip,ca-certificates \
    --customize-hook='ln -s python3 "$1/usr/bin/python"' \
    --customize-hook='rm -f "$1"/usr/lib/python3.*/EXTERNALLY-MANAGED' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/*' \
    bookworm - "$from" | docker import --change 'CMD ["python3"]' - "$BASE_IMAGE" > /dev/null ||
    refuse "$BASE_IMAGE cannot be made from $from"
}

# What dockerd leaves in the network when it ends. Rules of others stay.
clean_network() {
  command -v iptables > /dev/null || return 0
  local table chain rule
  for table in nat filter; do
    for chain in PREROUTING INPUT FORWARD OUTPUT POSTROUTING; do
      { iptables -w -t $table -S $chain 2> /dev/null || true; } |
        { grep -E -- "DOCKER|docker0|br-[0-9a-f]{12}|$SUBNETS\." || true; } |
        while read -r rule; do
          # shellcheck disable=SC2086  # the words of a rule
          iptables -w -t $table ${rule/#-A/-D} || true
        done
    done
    for chain in $(iptables -w -t $table -S | sed -n 's/^-N \(DOCKER[^ ]*\)$/\1/p'); do
      iptables -w -t $table -F "$chain"
    done
    for chain in $(iptables -w -t $table -S | sed -n 's/^-N \(DOCKER[^ ]*\)$/\1/p'); do
      iptables -w -t $table -X "$chain"
    done
  done
  if [ -s "$ENGINE_DIR/before" ]; then
    local policy forwarding
    { read -r policy && read -r forwarding; } < "$ENGINE_DIR/before"
    # shellcheck disable=SC2086
    iptables -w $policy
    echo "$forwarding" > /proc/sys/net/ipv4/ip_forward
    rm -f "$ENGINE_DIR/before"
  fi
  local link
  for link in $(ip -o link show type bridge 2> /dev/null |
    sed -n 's/^[0-9]*: \(docker0\|br-[0-9a-f]\{12\}\):.*/\1/p'); do
    ip -4 -o addr show dev "$link" | grep -q " $SUBNETS\." && ip link del "$link"
  done
  return 0
}

# What this machine trusts when it downloads.
certificates() {
  local file
  for file in "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt deploy/nothing; do
    [ ! -f "$file" ] || { echo "$file" && return; }
  done
}

down() {
  if ours; then
    use_ours
    local containers pid
    mapfile -t containers < <(timeout 20 docker ps -aq)
    [ "${#containers[@]}" -eq 0 ] || timeout 120 docker rm -f "${containers[@]}" > /dev/null || true
    timeout 60 docker network prune -f > /dev/null || true
    pid=$(cat "$ENGINE_DIR/docker.pid")
    kill "$pid"
    for _ in $(seq 100); do
      kill -0 "$pid" 2> /dev/null || break
      sleep 0.2
    done
    kill -9 "$pid" 2> /dev/null || true
  fi
  [ -d "$ENGINE_DIR" ] || return 0
  [ "$(id -u)" -eq 0 ] && clean_network
  # A mounted namespace would keep the folder.
  sed -n "s|^[^ ]* \($ENGINE_DIR/[^ ]*\) .*|\1|p" /proc/mounts | sort -r | while read -r mounted; do
    umount "$mounted" || true
  done
  rm -rf "$ENGINE_DIR"
}

# Who starts one while another stops it would find half of it gone.
alone() {
  [ "$(id -u)" -ne 0 ] || { exec 9> "$ENGINE_DIR.lock" && flock -w 600 9; }
}

case ${1:-} in
  up)
    alone
    if ours; then
      use_ours
      answers || refuse "ours runs and does not answer; scripts/engine.sh down removes it"
    elif answers; then
      has_compose || refuse "the one that answers has no docker compose of $COMPOSE_AT_LEAST or newer"
    else
      start_engine
    fi
    base_image
    ;;
  env)
    if ours; then
      use_ours
      echo "export DOCKER_HOST=$DOCKER_HOST DOCKER_CONFIG=$DOCKER_CONFIG"
    fi
    ;;
  images)
    ! ours || use_ours
    answers || refuse "none answers"
    cd "$(dirname "$0")/.."
    export SUITE_IMAGE=conveyor:test SUITE_BUILD_CA=${SUITE_BUILD_CA:-$(certificates)}
    files="-f compose.yaml -f compose.postgres.yaml -f tests/compose/postgres.yaml"
    # shellcheck disable=SC2086
    POSTGRES_PASSWORD_FILE=deploy/nothing docker compose --env-file deploy/nothing $files \
      build --quiet gateway postgres
    ;;
  status)
    ! ours || use_ours
    answers || refuse "none answers"
    docker version --format 'engine {{.Server.Version}}'
    docker compose version --short | sed 's/^/compose /'
    ;;
  down)
    alone
    down
    rm -f "$ENGINE_DIR.lock"
    ;;
  *)
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0"
    exit 2
    ;;
esac
