#!/bin/sh
# Builds iommufd, and VFIO that uses it, for Debian's newer kernel, whose configuration leaves both out:
#   scripts/iommufd-modules.sh FOLDER
# Source, headers and build tools are Debian's own packages, downloaded and unpacked, not installed. What lies in FOLDER is
# kept when it was built for the kernel that apt knows.
set -eu

series=6.12
out=${1:?"iommufd-modules.sh: name a folder"}
release=$(apt-cache show --no-all-versions linux-headers-$series-amd64 |
    sed -n 's/^Depends: linux-headers-\([^ ]*\)-amd64 .*/\1/p')
if [ -z "$release" ]; then
    echo "iommufd-modules.sh: apt knows no linux-headers-$series-amd64; run apt-get update" >&2
    exit 1
fi
[ "$(cat "$out/release" 2>/dev/null)" != "$release" ] || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# As root, apt says that it cannot change to its own user for this folder.
apt-get -q -o APT::Sandbox::User=root download "linux-headers-$release-amd64" "linux-headers-$release-common" \
    "linux-kbuild-$release" linux-source-$series
for package in ./*.deb; do
    dpkg-deb -x "$package" root
    rm "$package"
done
headers=$work/root/usr/src/linux-headers-$release-amd64
sed -i "s#/usr/src/#$work/root&#; s#/usr/lib/#$work/root&#" "$headers/Makefile"
# Type information for the debugger would need a tool more.
rm -f "$headers/vmlinux"

tar -xf root/usr/src/linux-source-$series.tar.xz linux-source-$series/drivers/iommu/iommufd \
    linux-source-$series/drivers/iommu/iommu-priv.h linux-source-$series/drivers/vfio linux-source-$series/lib/interval_tree.c
source=$work/linux-source-$series
build=$work/build
mkdir build
mv "$source/drivers/iommu/iommufd" "$source/drivers/iommu/iommu-priv.h" "$source/drivers/vfio" build
rm build/iommufd/Makefile build/vfio/Makefile build/vfio/pci/Makefile
echo 'obj-m := iommufd/ vfio/' >build/Kbuild
# The kernel has this without the part that iommufd needs; what it exports already must not be exported again.
cat >build/iommufd/interval_tree.c <<EOF
#include <linux/export.h>
#undef EXPORT_SYMBOL_GPL
#define EXPORT_SYMBOL_GPL(name)
#include "$source/lib/interval_tree.c"
EOF
cat >build/iommufd/Kbuild <<'EOF'
ccflags-y := -DCONFIG_IOMMUFD=1 -DCONFIG_IOMMUFD_DRIVER=1 -DCONFIG_INTERVAL_TREE_SPAN_ITER=1
obj-m := iommufd.o
iommufd-y := device.o fault.o hw_pagetable.o io_pagetable.o ioas.o main.o pages.o vfio_compat.o iova_bitmap.o interval_tree.o
EOF
cat >build/vfio/Kbuild <<'EOF'
ccflags-y := -DCONFIG_IOMMUFD=1 -DCONFIG_VFIO_DEVICE_CDEV=1
obj-m := vfio.o vfio_iommu_type1.o pci/
vfio-y := vfio_main.o device_cdev.o group.o iommufd.o container.o virqfd.o
EOF
cat >build/vfio/pci/Kbuild <<'EOF'
ccflags-y := -DCONFIG_IOMMUFD=1 -DCONFIG_VFIO_DEVICE_CDEV=1
obj-m := vfio-pci-core.o vfio-pci.o
vfio-pci-core-y := vfio_pci_core.o vfio_pci_intrs.o vfio_pci_rdwr.o vfio_pci_config.o
vfio-pci-y := vfio_pci.o vfio_pci_igd.o
EOF
make -s -C "$headers" M="$build" -j"$(nproc)" CONFIG_DEBUG_INFO_BTF_MODULES= modules

mkdir -p "$out"
find build -name '*.ko' | while read -r module; do
    strip --strip-debug -o "$out/$(basename "$module")" "$module"
done
echo "$release" >"$out/release"
