#!/bin/busybox sh
# First program of the guest: the least that busybox's init and the agent need, in as few processes as can be.
export PATH=/usr/sbin:/usr/bin
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mkdir -p /dev/pts /dev/shm
busybox mount -t devpts devpts /dev/pts
busybox mount -t tmpfs tmpfs /run
busybox ln -s /proc/self/fd /dev/fd
# One line a module would fill the console; a module that is not for this machine is no failure.
busybox modprobe -a $(busybox cat /etc/netyard/modules) 2>/dev/null
# Whatever else is on the PCI bus: NICs and drives of the host.
busybox modprobe -a $(busybox cat /sys/bus/pci/devices/*/modalias) 2>/dev/null
/etc/netyard/nics
exec busybox init
