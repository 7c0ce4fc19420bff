#!/bin/sh
# Runs fuzz targets under libFuzzer, one after the other, and says what came of each.
#   scripts/fuzz.sh SECONDS [TARGET...]   the targets, or all, for so long each
#   scripts/fuzz.sh pack [TARGET...]      makes tests/fuzz/corpus/TARGET.cpio anew of what was found
# A corpus is unpacked to target/fuzz/TARGET, where what is found stays for the next run.
set -eu
cd "$(dirname "$0")/../tests"
cargo=${CARGO:-cargo}
# The checks of a development build at the speed of an optimised one: most of the time is the fuzzer's own.
export CARGO_PROFILE_DEV_OPT_LEVEL=3

what=${1:-}
[ $# = 0 ] || shift
case $what in
pack) ;;
'' | *[!0-9]*)
    echo "fuzz.sh: give the seconds for each target, or pack" >&2
    exit 2
    ;;
esac

$cargo fuzz build --dev --sanitizer none
[ $# != 0 ] || set -- $($cargo fuzz list)

fuzz() {
    $cargo fuzz run --dev --sanitizer none "$@" >"$log" 2>&1
}

for target; do
    found=../target/fuzz/$target
    archive=$PWD/fuzz/corpus/$target.cpio
    log=../target/fuzz/$target.log
    mkdir -p "$found"
    [ ! -f "$archive" ] || (cd "$found" && cpio -idu --quiet <"$archive")
    printf '%-16s' "$target"
    if [ "$what" = pack ]; then
        least=$found.least
        rm -rf "$least"
        mkdir "$least"
        # One input for each edge that is reached: what else the fuzzer tells apart it finds again.
        fuzz "$target" "$least" "$found" -- -set_cover_merge=1 -use_counters=0 -use_cmp=0 || { tail -n 20 "$log" && exit 1; }
        # The same inputs make the same archive.
        find "$least" -type f -exec touch -d @0 {} +
        (cd "$least" && find . -type f | LC_ALL=C sort | cpio -o -H newc --reproducible --owner 0:0 --quiet) >"$archive"
        echo "$(find "$least" -type f | wc -l) inputs"
        rm -rf "$least"
        continue
    fi
    if ! fuzz "$target" "$found" -- -max_total_time="$what" -timeout=10; then
        echo "FAILED"
        tail -n 40 "$log"
        exit 1
    fi
    sed -n 's/^#\([0-9]*\)\tDONE *cov: \([0-9]*\) .*exec\/s: \([0-9]*\).*/\1 executions, \3 a second, \2 edges reached/p' "$log"
done
