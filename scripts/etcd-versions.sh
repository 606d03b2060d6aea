#!/usr/bin/env bash
# Fetch Debian's etcd versions into .cache/etcd/<version>/{etcd,etcdctl}, for the tests that run on each of them.
# Needs apt and dpkg, but not root: apt uses separate lists and caches, and leaves those of the system unchanged.
# What is there already is not fetched again.   usage: scripts/etcd-versions.sh [SUITE...]
set -euo pipefail
cd "$(dirname "$0")/.."

mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
keyring=${DEBIAN_KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}
cache=$PWD/.cache/etcd
suites=("$@")
[ ${#suites[@]} -gt 0 ] || suites=(bookworm trixie sid)

for tool in apt-get dpkg; do
  command -v "$tool" >/dev/null || { echo "$0: needs $tool (Debian or a derivative of it)" >&2; exit 1; }
done
[ -r "$keyring" ] || { echo "$0: needs $keyring (package debian-archive-keyring)" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$cache"

fetch() {
  local suite=$1 apt=$work/$1
  mkdir -p "$apt"/{state/lists/partial,cache/archives/partial,debs,root}
  touch "$apt/status"
  echo "deb [signed-by=$keyring] $mirror $suite main" >"$apt/sources.list"
  cat >"$apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::State "$apt/state";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Acquire::Languages "none";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
APT::Sandbox::User "";
// Images often carry hooks here that clean the system's own caches.
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Update::Pre-Invoke;
#clear DPkg::Post-Invoke;
CONF
  apt-get -q -q -c="$apt/apt.conf" update
  (cd "$apt/debs" && apt-get -q -q -c="$apt/apt.conf" download etcd-server etcd-client)
  for deb in "$apt"/debs/*.deb; do dpkg -x "$deb" "$apt/root"; done
  local version
  version=$("$apt/root/usr/bin/etcd" --version | sed -n 's/^etcd Version: //p')
  [ -n "$version" ] || { echo "$0: the etcd of $suite does not run here" >&2; return 1; }
  if [ ! -x "$cache/$version/etcd" ]; then
    # Moved into place as a whole: a fetch that was cut short leaves nothing that looks complete.
    mkdir -p "$work/ready"
    mv "$apt/root/usr/bin/etcd" "$apt/root/usr/bin/etcdctl" "$work/ready/"
    rm -rf "${cache:?}/$version"
    mv "$work/ready" "$cache/$version"
  fi
  echo "$version" >"$cache/.suite-$suite"
}

for suite in "${suites[@]}"; do
  known=$(cat "$cache/.suite-$suite" 2>/dev/null || true)
  if [ -n "$known" ] && [ -x "$cache/$known/etcd" ] && [ -x "$cache/$known/etcdctl" ]; then
    echo "etcd $known ($suite): there already"
    continue
  fi
  fetch "$suite"
  echo "etcd $(cat "$cache/.suite-$suite") ($suite): fetched"
done
