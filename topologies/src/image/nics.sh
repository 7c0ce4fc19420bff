#!/bin/busybox sh
# Set the host name and the NICs as the kernel command line says:
#   netyard.hostname=NAME
#   netyard.nic=MAC,[IP/PREFIX][,MTU]     once for each NIC

# The name of the NIC with this MAC.
find_nic() {
    for address in /sys/class/net/*/address; do
        read -r mac < "$address"
        if [ "$mac" = "$1" ]; then
            nic=${address#/sys/class/net/}
            nic=${nic%/address}
            return 0
        fi
    done
    return 1
}

set_nic() {
    IFS=, read -r mac ip mtu <<EOF
$1
EOF
    if ! find_nic "$mac"; then
        echo "netyard: no NIC has the MAC $mac"
        return
    fi
    set -- link set "$nic"
    [ -n "$mtu" ] && set -- "$@" mtu "$mtu"
    ip "$@" up
    [ -n "$ip" ] && ip address add "$ip" dev "$nic"
}

ip link set lo up
read -r cmdline < /proc/cmdline
for word in $cmdline; do
    case $word in
        netyard.hostname=*) hostname "${word#*=}" ;;
        netyard.nic=*) set_nic "${word#*=}" ;;
    esac
done
