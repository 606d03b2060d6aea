#!/usr/bin/env bash
# Explore docs/protocol/agreement.pml and history.pml with Spin and print a table. Exits 1 if a property is violated, if
# a search does not complete within its bounds (180 s and 5500 MB each), or if a mutant that must be caught is not.
# Takes about 10 minutes of CPU time on one core (14 minutes on a busy machine); `quick` explores smaller bounds, and
# all mutants, in about two; `history` explores history.pml alone.
#
# Spin is taken from PATH, or else from Debian's package, unpacked into .cache/spin (no root needed).
# usage: scripts/spin.sh [quick | history]
set -euo pipefail
cd "$(dirname "$0")/.."

model=$PWD/docs/protocol/agreement.pml
readonly cache=$PWD/.cache/spin
readonly limit_s=180 limit_mb=5500
size=${1:-full}
case $size in full | quick | history) ;; *) echo "usage: $0 [quick | history]" >&2; exit 2 ;; esac

command -v gcc >/dev/null || { echo "$0: needs gcc, to compile what Spin generates" >&2; exit 1; }

find_spin() {
  if command -v spin; then return; fi
  if [ ! -x "$cache/usr/bin/spin" ]; then
    mkdir -p "$cache"
    # apt's sandbox user may not write here; without it the download needs no root either.
    if ! (cd "$cache" && apt-get -qq -o APT::Sandbox::User= download spin >&2 && dpkg -x spin_*.deb .); then
      echo "$0: no spin in PATH, and it could not be fetched: install it (Debian: apt-get install spin)" >&2
      return 1
    fi
  fi
  echo "$cache/usr/bin/spin"
}

spin=$(find_spin)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# explore EXPECTED NAME MACRO...    EXPECTED: safe, or caught
explore() {
  local expected=$1 name=$2 result states depth seconds
  shift 2
  local defines=("${@/#/-D}")
  (cd "$work" && rm -f ./*.trail && "$spin" -a "${defines[@]}" "$model" >spin.log &&
    gcc -O2 -w -DSAFETY -DCOLLAPSE -DMEMLIM=$limit_mb -o pan pan.c) || { cat "$work/spin.log" >&2; exit 1; }
  local before=$EPOCHREALTIME
  (cd "$work" && timeout "$limit_s" ./pan -m20000 -w24 >pan.log 2>&1) || true
  seconds=$(awk -v a="$before" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
  states=$(awk '/states, stored/ { print $1 }' "$work/pan.log")
  depth=$(sed -n 's/.*depth reached \([0-9]*\).*/\1/p' "$work/pan.log")
  result=$(judge "$work/pan.log")
  local verdict=ok
  case $expected:$result in
    safe:safe | caught:assertion | caught:deadlock) ;;
    *) verdict=WRONG failed=1 ;;
  esac
  printf '%-64s %10s %6s %7s  %-10s %s\n' "$name" "${states:--}" "${depth:--}" "$seconds" "$result" "$verdict"
}

judge() {
  if grep -q 'assertion violated' "$1"; then echo assertion
  elif grep -q 'invalid end state (at' "$1"; then echo deadlock
  elif grep -qE 'Search not completed|max search depth too small|out of memory' "$1"; then echo incomplete
  elif grep -q 'errors: 0' "$1"; then echo safe
  else echo incomplete
  fi
}

heading() {
  printf '\n%-64s %10s %6s %7s  %-10s %s\n' "$1" states depth seconds found ''
}

# bounds RANKS STEPS PLANS CRASHES FORGETS ELECTIONS [MACRO...]
bounds() {
  local ranks=$1 steps=$2 plans=$3 crashes=$4 forgets=$5 elections=$6
  local name="ranks $1, steps $2, plans $3; crashes $4, $5; elections $6"
  shift 6
  [ $# -eq 0 ] || name="$name, drifting"
  explore safe "$name" RANKS="$ranks" STEPS="$steps" PLANS="$plans" CRASHES="$crashes" FORGETS="$forgets" \
    ELECTIONS="$elections" "$@"
}

small=(STEPS=3 PLANS=1 CRASHES=1 FORGETS=0 ELECTIONS=1)
caught() { explore caught "$(tr 'A-Z_' 'a-z ' <<<"${1#MUTANT_}")" "$@"; }

explore_agreement() {
  heading "the protocol (crashes: of workers, of agents)"
  if [ "$size" = full ]; then
    bounds 2 3 2 2 0 0
    bounds 2 2 2 2 0 1
    bounds 2 3 2 1 1 1
    bounds 2 3 1 3 1 1
    bounds 3 3 1 1 1 1
    bounds 3 2 1 2 0 0
    bounds 3 3 2 1 0 0
    bounds 2 4 2 0 1 1 NO_COLLECTIVE
    bounds 3 3 1 0 1 1 NO_COLLECTIVE
  else
    bounds 2 3 1 2 0 1
    bounds 3 2 1 1 0 0
    bounds 2 3 2 0 0 0 NO_COLLECTIVE
  fi

  heading "rules that another rule backs up: still safe"
  backed=(RANKS=2 STEPS=2 PLANS=2 CRASHES=1 FORGETS=0 ELECTIONS=1)
  explore safe "commit does not compare the view" MUTANT_COMMIT_ANY_VIEW "${backed[@]}"
  explore safe "a new view leaves the open plan open" MUTANT_VIEW_LEAVES_PLAN_OPEN "${backed[@]}"
  explore safe "leaders are not fenced" MUTANT_NO_FENCING "${backed[@]}"

  heading "mutants: must be caught"
  caught MUTANT_GATE_WITHOUT_ABORT "${small[@]}"
  explore caught "commit any view, view leaves plan open" \
    MUTANT_COMMIT_ANY_VIEW MUTANT_VIEW_LEAVES_PLAN_OPEN "${small[@]}"
  caught MUTANT_VIEW_IGNORES_DECISION "${small[@]}"
  caught MUTANT_WAIT_AT_GATE "${small[@]}"
  caught MUTANT_EARLY_ACK RANKS=3 STEPS=2 PLANS=1 CRASHES=0 FORGETS=0 ELECTIONS=0
  caught MUTANT_LATE_PROMISE "${small[@]}"
  caught MUTANT_PROMISE_TWO STEPS=3 PLANS=2 CRASHES=1 FORGETS=0 ELECTIONS=0
  caught MUTANT_NEWCOMER_IGNORES_GATE "${small[@]}"
  caught MUTANT_FORGET_PREVIOUS STEPS=3 PLANS=1 CRASHES=2 FORGETS=0 ELECTIONS=0
  caught MUTANT_LEFT_IS_ARMED "${small[@]}"
  explore caught "left is armed, ranks drifting" MUTANT_LEFT_IS_ARMED NO_COLLECTIVE \
    STEPS=2 PLANS=1 CRASHES=0 FORGETS=0 ELECTIONS=0

  heading "beyond the promise: must fail"
  explore caught "an evicted worker runs on among the survivors" LIMIT_EVICTED_RUNS_ON "${small[@]}"
}

explore_history() {
  model=$PWD/docs/protocol/history.pml
  heading "etcd's history goes back (2 ranks, 2 steps)"
  was_back PLANS=2 CRASHES=0 ELECTIONS=0 EPOCHS=1
  if [ "$size" != quick ]; then
    was_back PLANS=2 CRASHES=0 ELECTIONS=1 EPOCHS=1
    was_back PLANS=2 CRASHES=0 ELECTIONS=0 EPOCHS=2
    was_back PLANS=1 CRASHES=1 ELECTIONS=0 EPOCHS=1
  fi

  heading "mutants: must be caught"
  local still=(PLANS=2 CRASHES=0 ELECTIONS=0) replaced=(PLANS=1 CRASHES=1 ELECTIONS=0)
  caught MUTANT_PROMISE_WITHOUT_PARENT "${still[@]}"
  caught MUTANT_NO_WRITING_BACK "${still[@]}"
  caught MUTANT_ABORT_BY_NUMBER "${still[@]}"
  caught MUTANT_ACK_BY_NUMBER "${still[@]}"
  caught MUTANT_WITHOUT_THE_ABSENT "${still[@]}"
  caught MUTANT_NO_EPOCH_FIRST "${still[@]}"
  caught MUTANT_NEWCOMERS_DO_NOT_WAIT "${replaced[@]}"
  caught MUTANT_NEW_ONES_NEED_NO_EPOCH "${replaced[@]}"

  heading "beyond the promise: must fail"
  explore caught "a plan open in the copy is decided before the epoch" LIMIT_DECIDED_BEFORE_NOTICED "${still[@]}"
  explore caught "a rank dies with what it alone knew" LIMIT_DIES_WITH_WHAT_IT_KNEW "${replaced[@]}"
}

was_back() {
  local name="$*"
  explore safe "$(tr 'A-Z=' 'a-z ' <<<"$name")" "$@"
}

[ "$size" = history ] || explore_agreement
explore_history

echo
if [ "$failed" -ne 0 ]; then
  echo "the model and what is said of it disagree: see WRONG above" >&2
  exit 1
fi
echo "every search completed; all is as it should be"
