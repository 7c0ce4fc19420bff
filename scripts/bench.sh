#!/bin/sh
# Measures Netyard side by side with its peers and writes Markdown tables to a file; progress goes to standard error.
#   scripts/bench.sh BINDIR [RESULTS]
# What matters most comes first. BENCH_MINUTES (60) bounds the whole: what is not measured by then is left out, and said so.
# BENCH_PARTS names the parts to measure, BENCH_PAIRS (3) says how often each takes its turn, BENCH_SECONDS (0.4) for how long.
set -eu
bindir=$(cd "$1" && pwd)
results=${2:-$bindir/bench.md}
images=$(cd "$(dirname "$0")/../docs/src/images" && pwd)
PATH="$bindir:$PATH"
export PATH

parts=${BENCH_PARTS:-peers growth latency testpmd-loop upkeep vde boot bridge vf}
pairs=${BENCH_PAIRS:-3}
seconds=${BENCH_SECONDS:-0.4}
end=$(($(date +%s) + 60 * ${BENCH_MINUTES:-60}))

# Whatever happens, no emulated host of ours stays behind; one that was there before does.
was_up=no
case $(lab host status --format json) in *'"up"'*) was_up=yes ;; esac
cleanup() {
    if [ "$was_up" = no ]; then lab host down >/dev/null 2>&1 || true; fi
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say() {
    printf '%s\n' "$*" >>"$results"
}

# part TITLE SECONDS COMMAND...: a part that is known to take so many seconds, if there is time for it.
part() {
    title=$1 needed=$2
    shift 2
    left=$((end - $(date +%s)))
    say "## $title" ''
    if [ "$left" -lt "$needed" ]; then
        say "Left out: $left s were left of $needed s that it takes." ''
        return
    fi
    if ! "$@" >>"$results"; then say '' "Ended before its time: \`$*\`."; fi
    read -r load _ </proc/loadavg
    say '' "Load average at the end: $load on $(nproc) processors." ''
}

: >"$results"
say "# Measured on $(uname -sr), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" ''
for name in $parts; do
    case $name in
    peers)
        # It takes fewer turns for each row by itself when time is short.
        part 'Frames a second' 60 netyard-bench peers --only throughput --pairs "$pairs" --seconds "$seconds" \
            --limit $((end - $(date +%s)))
        ;;
    latency) part 'Latency' 90 netyard-bench peers --only latency --pairs "$pairs" --seconds "$seconds" ;;
    vde) part 'vde_switch' 30 netyard-bench peers --only vde --pairs "$pairs" --seconds "$seconds" ;;
    growth) part 'How cost grows' 120 netyard-bench growth --pairs "$pairs" --seconds "$seconds" --images "$images" ;;
    testpmd-loop) part 'With another generator' 120 netyard-bench testpmd-loop --pairs "$pairs" ;;
    upkeep) part 'What else the switch costs' 60 netyard-bench upkeep --pairs "$pairs" --seconds "$seconds" ;;
    boot) part 'Boot and memory' 420 netyard-bench boot ;;
    bridge) part 'Two guests' 420 netyard-bench bridge ;;
    vf) part 'A virtual function' 480 netyard-bench vf ;;
    *)
        echo "$name: no such part: peers growth latency testpmd-loop upkeep vde boot bridge vf" >&2
        exit 2
        ;;
    esac
done
cat "$results"
