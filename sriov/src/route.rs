//! Which functions the host cannot do without: those that carry its default route, and those with mounted file systems.

use crate::inventory::Function;
use crate::sysfs::Sysfs;

/// The interface of `function` that carries an IPv4 or IPv6 default route of the main table, itself or through a bridge, a bond
/// or a VLAN on top of it.
pub fn default_route(sysfs: &Sysfs, function: &Function) -> Option<String> {
    let routed = interfaces_with_default_route(sysfs);
    let found = function.net.iter().find(|net| {
        let mut seen = vec![net.name.clone()];
        let mut next = 0;
        while let Some(name) = seen.get(next).cloned() {
            let above = sysfs.names(format!("sys/class/net/{name}")).into_iter();
            for upper in above.filter_map(|entry| entry.strip_prefix("upper_").map(str::to_owned)) {
                if !seen.contains(&upper) {
                    seen.push(upper);
                }
            }
            next += 1;
        }
        seen.iter().any(|name| routed.contains(name))
    });
    found.map(|net| net.name.clone())
}

fn interfaces_with_default_route(sysfs: &Sysfs) -> Vec<String> {
    let v4 = sysfs.text("proc/net/route").unwrap_or_default();
    let v4 = v4.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        // Destination and mask are both zero.
        let default =
            fields.get(1) == Some(&"00000000") && fields.get(7).is_none_or(|mask| *mask == "00000000");
        default.then(|| fields[0].to_owned())
    });
    let v6 = sysfs.text("proc/net/ipv6_route").unwrap_or_default();
    let v6 = v6.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let default =
            fields.first().is_some_and(|net| net.bytes().all(|b| b == b'0')) && fields.get(1) == Some(&"00");
        let gateway = fields.get(4).is_some_and(|via| via.bytes().any(|b| b != b'0'));
        (default && gateway).then(|| fields.last().map(|name| (*name).to_owned()))?
    });
    v4.chain(v6).collect()
}

/// Where a disk of `function` is mounted, if one is: (`/dev/nvme0n1p1`, `/home`).
pub fn mounted_disk(sysfs: &Sysfs, function: &Function) -> Option<(String, String)> {
    let here = std::fs::canonicalize(sysfs.path(format!("sys/bus/pci/devices/{}", function.bdf))).ok()?;
    let disks: Vec<String> = sysfs
        .names("sys/class/block")
        .into_iter()
        .filter(|name| {
            std::fs::canonicalize(sysfs.path(format!("sys/class/block/{name}")))
                .is_ok_and(|path| path.starts_with(&here))
        })
        .map(|name| format!("/dev/{name}"))
        .collect();
    let mounts = sysfs.text("proc/self/mounts").unwrap_or_default();
    mounts.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (device, place) = (fields.next()?, fields.next()?);
        disks
            .iter()
            .any(|disk| disk == device)
            .then(|| (device.to_owned(), place.to_owned()))
    })
}
