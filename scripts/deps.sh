#!/bin/sh
# Installs the Debian packages that a Make target needs, and only those that are missing.
#   scripts/deps.sh build|run|test|bench|fuzz [--print]
# Needs root or sudo when something is missing; without either it lists the packages and stops with exit code 3.
set -eu

build="gcc libc6-dev make"
run="qemu-system-x86 busybox-static cpio iproute2 kmod dpkg-dev"
test="$run dpdk dpdk-dev iperf3 ethtool tcpdump openvswitch-switch-dpdk python3-venv"
bench="$test vde2"
# libFuzzer is C++; corpora are archives.
fuzz="g++ cpio"

case "${1:-}" in
build) want=$build ;;
run) want="$build $run" ;;
test) want="$build $test" ;;
bench) want="$build $bench" ;;
fuzz) want="$build $fuzz" ;;
*)
    echo "deps.sh: give one of build, run, test, bench, fuzz" >&2
    exit 2
    ;;
esac
if [ "${2:-}" = --print ]; then
    echo "$want"
    exit 0
fi

installed() {
    dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed
}
# QEMU 7.2 of Debian 12 has no SR-IOV NIC and no reconnect-ms; the backport has both.
qemu_is_old() {
    version=$(dpkg-query -W -f '${Version}' qemu-system-x86 2>/dev/null || echo 0)
    dpkg --compare-versions "$version" lt 1:9.2
}

missing=
for package in $want; do
    if ! installed "$package" || { [ "$package" = qemu-system-x86 ] && qemu_is_old; }; then
        missing="$missing $package"
    fi
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root=sudo
else
    echo "deps.sh: these Debian packages are missing and neither root nor sudo is at hand:$missing" >&2
    echo "deps.sh: qemu-system-x86 comes from bookworm-backports; as root: apt-get install -t bookworm-backports$missing" >&2
    exit 3
fi

echo "Installing:$missing"
export DEBIAN_FRONTEND=noninteractive
if ! $as_root apt-get update -qq; then
    echo "deps.sh: some package lists could not be read; going on with what is there" >&2
fi
case " $missing " in
*" qemu-system-x86 "*)
    if ! apt-cache policy qemu-system-x86 | grep -q bookworm-backports; then
        # The same archive that bookworm itself comes from.
        mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)
        echo "deb ${mirror:-http://deb.debian.org/debian} bookworm-backports main" |
            $as_root tee /etc/apt/sources.list.d/netyard-backports.list >/dev/null
        $as_root apt-get update -qq || true
    fi
    $as_root apt-get install -y -qq --no-install-recommends -t bookworm-backports qemu-system-x86
    ;;
esac
# shellcheck disable=SC2086 # the list is meant to be split
$as_root apt-get install -y -qq --no-install-recommends $missing
# A package's own service would take hugepages and cores from everything else on the machine.
case " $missing " in
*" openvswitch-switch-dpdk "*) $as_root systemctl disable --now openvswitch-switch 2>/dev/null || true ;;
esac
