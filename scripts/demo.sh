#!/bin/sh
# The demo: two Linux VMs on one switch, ping and iperf3 between them, a table.
#   scripts/demo.sh BINDIR
# Where the machine has no virtualization hardware the same lab runs twice: on QEMU's software CPU, and on our own VMM in an
# emulated host.
set -eu
cd "$(dirname "$0")/.."
PATH="$(cd "$1" && pwd):$PATH"
export PATH
file=topologies/labs/iperf.lab.yaml

# Whatever happens, nothing stays behind.
cleanup() {
    lab down "$file" >/dev/null 2>&1 || true
    lab host down >/dev/null 2>&1 || true
}
trap cleanup EXIT
trap 'exit 130' INT TERM

run() {
    title=$1
    shift
    printf '\n== %s\n' "$title"
    lab up "$file" "$@"
    lab status "$file"
    printf '\n'
    lab measure a b --seconds "${DEMO_SECONDS:-5}"
    lab down "$file"
}

if [ -w /dev/kvm ] && grep -qE '^flags.* (vmx|svm)( |$)' /proc/cpuinfo; then
    run 'The demo lab on our VMM' --engine vmm
else
    run 'The demo lab on QEMU with a software CPU, on our switch' --engine qemu
    run 'The demo lab on our VMM and our switch, in an emulated host' --engine vmm --host emulated
fi
