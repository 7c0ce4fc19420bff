//! What stands between a function and a guest, each obstacle with its cure.

use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use crate::address::Bdf;
use crate::bind;
use crate::inventory::{self, Function};
use crate::sysfs::Sysfs;
use crate::vf::Attributes;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, with a surprise.
    Warning,
    /// Will not work.
    Failure,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub text: String,
    /// What to do about it.
    pub cure: Option<String>,
}

impl Finding {
    fn ok(text: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            text: text.into(),
            cure: None,
        }
    }

    fn warning(text: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            text: text.into(),
            cure: Some(cure.into()),
        }
    }

    fn failure(text: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            level: Level::Failure,
            text: text.into(),
            cure: Some(cure.into()),
        }
    }
}

/// The host as a whole: IOMMU, interrupt remapping, driver, memory limit.
pub fn host(sysfs: &Sysfs) -> Vec<Finding> {
    let mut all = vec![iommu(sysfs)];
    if all[0].level == Level::Ok {
        all.push(interrupt_remapping(sysfs));
    }
    all.push(driver(sysfs));
    all.push(locked_memory(sysfs));
    all
}

/// One function: its group, and for a physical function what it can have.
pub fn function(sysfs: &Sysfs, function: &Function) -> Vec<Finding> {
    let name = function.name();
    let mut all = Vec::new();
    if let Some(sriov) = function.sriov {
        all.push(if sriov.total_vfs == 0 {
            Finding::failure(
                format!("{name} can have no virtual functions"),
                "turn on SR-IOV in the card's or the machine's firmware",
            )
        } else {
            Finding::ok(format!(
                "{name} has {} of {} virtual functions",
                sriov.num_vfs, sriov.total_vfs
            ))
        });
    }
    all.push(group(sysfs, function));
    if function.reset_methods.is_empty() {
        all.push(Finding::warning(
            format!("{} cannot be reset on its own", function.bdf),
            "a guest may find it as the last one left it; power the host off and on where that matters",
        ));
    }
    all
}

/// The virtual functions of `pf`, as the PF's driver tells them.
pub fn addresses(pf: &str, attributes: &[Attributes]) -> Vec<Finding> {
    let each = attributes.iter().map(|vf| {
        if vf.mac.is_zero() {
            Finding::warning(
                format!(
                    "VF {} of {pf} has no MAC address, so its guest gets another one at every boot",
                    vf.index
                ),
                format!("sriov set {pf} {} --mac auto", vf.index),
            )
        } else {
            Finding::ok(format!("VF {} of {pf} has MAC address {}", vf.index, vf.mac))
        }
    });
    each.collect()
}

fn iommu(sysfs: &Sysfs) -> Finding {
    let groups = sysfs.names("sys/kernel/iommu_groups").len();
    if groups > 0 {
        return Finding::ok(format!("the IOMMU is on, with {groups} groups"));
    }
    let cpu = sysfs.text("proc/cpuinfo").unwrap_or_default();
    let intel = cpu.contains("GenuineIntel");
    let (firmware, option) = if intel {
        ("VT-d", "intel_iommu=on")
    } else {
        ("AMD-Vi (IOMMU)", "amd_iommu=on")
    };
    let cmdline = sysfs.text("proc/cmdline").unwrap_or_default();
    let cure = if intel && !cmdline.split_whitespace().any(|word| word == option) {
        format!("add {option} to the kernel command line and turn on {firmware} in the firmware")
    } else {
        format!("turn on {firmware} in the firmware")
    };
    Finding::failure("the IOMMU is off: the kernel has no IOMMU group", cure)
}

fn interrupt_remapping(sysfs: &Sysfs) -> Finding {
    // Chips of remapped interrupts carry this prefix (`drivers/iommu/*/irq_remapping.c`).
    let remapped = sysfs.names("sys/kernel/irq").iter().any(|irq| {
        let chip = sysfs.text(format!("sys/kernel/irq/{irq}/chip_name"));
        chip.is_some_and(|chip| chip.starts_with("IR-") || chip.starts_with("DMAR"))
    });
    if remapped {
        Finding::ok("interrupt remapping is on")
    } else {
        Finding::failure(
            "interrupt remapping is off, so a device could send any interrupt to the host",
            "turn on x2APIC and interrupt remapping in the firmware; on a host that trusts its guests: \
             echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
        )
    }
}

fn driver(sysfs: &Sysfs) -> Finding {
    if sysfs.exists("sys/bus/pci/drivers/vfio-pci") {
        return Finding::ok("the vfio-pci driver is loaded");
    }
    let release = sysfs.text("proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = sysfs
        .text(format!("lib/modules/{release}/modules.dep"))
        .unwrap_or_default();
    if modules.contains("/vfio-pci.ko") {
        Finding::warning(
            "the vfio-pci driver is not loaded",
            "modprobe vfio-pci (`sriov bind` does it)",
        )
    } else {
        Finding::failure(
            format!("kernel {release} has no vfio-pci module"),
            "install the full kernel package, such as linux-image-amd64",
        )
    }
}

fn locked_memory(sysfs: &Sysfs) -> Finding {
    // CAP_IPC_LOCK is capability 14.
    let status = sysfs.text("proc/self/status").unwrap_or_default();
    let capable = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << 14) != 0);
    memory_limit(capable, getrlimit(Resource::Memlock).current)
}

fn memory_limit(capable: bool, limit: Option<u64>) -> Finding {
    match limit {
        _ if capable => Finding::ok("locked memory is not limited for this user"),
        None => Finding::ok("locked memory is not limited"),
        Some(bytes) => Finding::warning(
            format!(
                "at most {} MiB of memory can be locked, and a guest's whole memory must be",
                bytes >> 20
            ),
            "raise it above the guest's memory: ulimit -l unlimited, or LimitMEMLOCK=infinity in the service",
        ),
    }
}

fn group(sysfs: &Sysfs, function: &Function) -> Finding {
    let bdf = function.bdf;
    let Some(group) = function.iommu_group else {
        return Finding::failure(format!("{bdf} is in no IOMMU group"), "turn on the IOMMU first");
    };
    let others = bind::obstacles(sysfs, function);
    if others.is_empty() {
        return Finding::ok(format!("IOMMU group {group} of {bdf} is viable"));
    }
    let names: Vec<String> = others
        .iter()
        .map(|(bdf, driver)| format!("{bdf} ({driver})"))
        .collect();
    let why = match bridge_without_acs(sysfs, bdf) {
        Some(bridge) => format!("; no ACS on {bridge} above them"),
        None => String::new(),
    };
    Finding::failure(
        format!(
            "IOMMU group {group} of {bdf} is not viable: {} in it too{why}",
            names.join(", ")
        ),
        format!(
            "sriov bind {bdf} --group (takes them from the host as well; `sriov release` gives them back), or move the card to another slot"
        ),
    )
}

/// The nearest bridge above `bdf` that cannot keep the devices below it apart.
fn bridge_without_acs(sysfs: &Sysfs, bdf: Bdf) -> Option<Bdf> {
    let device = std::fs::canonicalize(sysfs.path(format!("sys/bus/pci/devices/{bdf}"))).ok()?;
    let mut above = device.ancestors().skip(1).map_while(|dir| {
        let name = dir.file_name()?.to_str()?;
        name.parse::<Bdf>().ok()
    });
    above.find(|bridge| {
        let config = sysfs.bytes(format!("sys/bus/pci/devices/{bridge}/config"));
        config.is_some_and(|config| !has_acs(&config))
    })
}

/// Whether an Access Control Services capability is in the extended configuration space (PCIe 6.0, 7.7.11).
fn has_acs(config: &[u8]) -> bool {
    const ACS: u32 = 0x000d;
    let mut offset = 0x100;
    // The list holds each capability once, and there is room for no more than this.
    for _ in 0..(0x1000 - 0x100) / 4 {
        let Some(header) = config.get(offset..offset + 4) else {
            return false;
        };
        let header = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        if header & 0xffff == ACS {
            return true;
        }
        offset = (header >> 20) as usize & !3;
        if offset < 0x100 {
            return false;
        }
    }
    false
}

/// What `sriov check` looks at when it is given no name: the PFs, their VFs and the other network functions.
pub fn candidates(sysfs: &Sysfs) -> Vec<Function> {
    let all = inventory::functions(sysfs).into_iter();
    all.filter(|function| function.is_network() || function.sriov.is_some())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_acs_wherever_it_stands_in_the_list() {
        let mut config = vec![0; 4096];
        assert!(!has_acs(&config));
        config[0x100..0x104].copy_from_slice(&0x1481_0001_u32.to_le_bytes());
        config[0x148..0x14c].copy_from_slice(&0x0001_000d_u32.to_le_bytes());
        assert!(has_acs(&config));
        config[0x148..0x14c].copy_from_slice(&0x1001_0003_u32.to_le_bytes());
        assert!(!has_acs(&config), "a list that runs in a circle ends");
        assert!(
            !has_acs(&config[..64]),
            "without privilege only the first 64 bytes can be read"
        );
    }

    #[test]
    fn the_memory_limit_matters_only_to_the_unprivileged() {
        assert_eq!(memory_limit(true, Some(65536)).level, Level::Ok);
        assert_eq!(memory_limit(false, None).level, Level::Ok);
        let finding = memory_limit(false, Some(8 << 20));
        assert_eq!(finding.level, Level::Warning);
        assert!(finding.text.contains("8 MiB"));
    }
}
