//! Which processes hold a VFIO group or device open.

use serde::Serialize;

use crate::inventory::Function;
use crate::sysfs::Sysfs;

/// A process that uses a function through VFIO.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// Process ID.
    pub pid: u32,
    /// Its command name.
    pub command: String,
}

/// The processes that have `function`'s VFIO group or character device open. Other users' processes show only to root.
pub fn of(sysfs: &Sysfs, function: &Function) -> Vec<User> {
    let mut nodes = Vec::new();
    if let Some(group) = function.iommu_group {
        nodes.push(format!("/dev/vfio/{group}"));
    }
    let cdevs = sysfs.names(format!("sys/bus/pci/devices/{}/vfio-dev", function.bdf));
    nodes.extend(cdevs.iter().map(|name| format!("/dev/vfio/devices/{name}")));

    let holds = |pid: u32| {
        sysfs.names(format!("proc/{pid}/fd")).iter().any(|fd| {
            let target = std::fs::read_link(sysfs.path(format!("proc/{pid}/fd/{fd}")));
            target.is_ok_and(|target| nodes.iter().any(|node| target.as_os_str() == node.as_str()))
        })
    };
    let pids = sysfs
        .names("proc")
        .into_iter()
        .filter_map(|name| name.parse().ok());
    pids.filter(|pid| holds(*pid))
        .map(|pid| User {
            pid,
            command: sysfs.text(format!("proc/{pid}/comm")).unwrap_or_default(),
        })
        .collect()
}
