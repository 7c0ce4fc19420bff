#!/bin/sh
# Measures Netyard side by side with its peers and prints Markdown tables; progress goes to standard error.
#   scripts/bench.sh BINDIR
set -eu
PATH="$(cd "$1" && pwd):$PATH"
export PATH

# Whatever happens, no emulated host of ours stays behind; one that was there before does.
was_up=no
case $(lab host status --format json) in *'"up"'*) was_up=yes ;; esac
cleanup() {
    if [ "$was_up" = no ]; then lab host down >/dev/null 2>&1 || true; fi
}
trap cleanup EXIT
trap 'exit 130' INT TERM

load() {
    read -r load _ </proc/loadavg
    printf '\nLoad average: %s on %s processors.\n' "$load" "$(nproc)"
}

printf '## Boot and memory\n\n'
netyard-bench boot
load
printf '\n## Two guests\n\n'
netyard-bench bridge
load
printf '\n## A virtual function\n\n'
netyard-bench vf
load
# The generator and what it measures have a processor each; the emulated host would be a third.
cleanup
pairs=${BENCH_PAIRS:-3}
printf '\n## One processor of the switch\n\n'
netyard-bench peers --pairs "$pairs"
load
printf '\n## With another generator\n\n'
netyard-bench testpmd-loop --pairs "$pairs"
load
printf '\n## How cost grows\n\n'
netyard-bench growth --pairs "$pairs" --images "$(dirname "$0")/../docs/src/images"
printf '\n## What else the switch costs\n\n'
netyard-bench upkeep --pairs "$pairs"
load
