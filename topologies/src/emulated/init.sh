#!/bin/busybox sh
# First program of the emulated host. The outer machine's root comes read-only over 9p; what is written goes to memory and is
# gone with this host.
export PATH=/usr/sbin:/usr/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm /outer /private /host
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -s /proc/self/fd /dev/fd
modprobe -a $(cat /etc/netyard/modules) 2>/dev/null
hostname emulated
ip link set lo up
# A default route that a NIC's gateway advertises would keep the NIC from being given away.
echo 0 > /proc/sys/net/ipv6/conf/default/accept_ra
for nic in /proc/sys/net/ipv6/conf/*/accept_ra; do
    echo 0 > "$nic"
done
# Names are dropped from the cache for every session; the kernel's log needs no line about each.
echo 4 > /proc/sys/vm/drop_caches

for word in $(cat /proc/cmdline); do
    case $word in
        netyard.9p=*) options=${word#*=} ;;
    esac
done
mount -t 9p -o "ro,trans=virtio,version=9p2000.L,$options" outer /outer
mount -t tmpfs -o mode=0755 tmpfs /private
mkdir /private/upper /private/work
mount -t overlay -o lowerdir=/outer,upperdir=/private/upper,workdir=/private/work overlay /host
for folder in dev proc sys; do
    mkdir -p /host/$folder
    mount --rbind /$folder /host/$folder
done
for folder in run tmp var/tmp; do
    mkdir -p /host/$folder
    mount -t tmpfs -o mode=1777 tmpfs /host/$folder
done
chmod 0755 /host/run
mkdir -p /host/usr/lib/modules /host/run/outer
mount --bind /usr/lib/modules /host/usr/lib/modules
# As it is outside, whatever has been hidden or changed here.
mount --bind /outer /host/run/outer
mount -t cgroup2 cgroup2 /sys/fs/cgroup

exec busybox init
