//! The host as a whole: IOMMU, interrupt remapping, driver, memory limit.

use rustix::process::{Resource, getrlimit};

use super::{Finding, Level};
use crate::sysfs::Sysfs;

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
    let off = cmdline
        .split_whitespace()
        .find(|word| matches!(*word, "iommu=off" | "intel_iommu=off" | "amd_iommu=off"));
    let cure = if let Some(off) = off {
        format!("remove {off} from the kernel command line and turn on {firmware} in the firmware")
    } else if intel && !cmdline.split_whitespace().any(|word| word == option) {
        format!("add {option} to the kernel command line and turn on {firmware} in the firmware")
    } else {
        format!("turn on {firmware} in the firmware")
    };
    Finding::failure("the IOMMU is off: the kernel has no IOMMU group", cure)
}

fn interrupt_remapping(sysfs: &Sysfs) -> Finding {
    // Chips of remapped interrupts carry this prefix (`arch/x86/kernel/apic`, `drivers/iommu/*/irq_remapping.c`).
    let remapped = sysfs.names("sys/kernel/irq").iter().any(|irq| {
        let chip = sysfs.text(format!("sys/kernel/irq/{irq}/chip_name"));
        chip.is_some_and(|chip| chip.starts_with("IR-"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_limit_matters_only_to_the_unprivileged() {
        assert_eq!(memory_limit(true, Some(65536)).level, Level::Ok);
        assert_eq!(memory_limit(false, None).level, Level::Ok);
        let finding = memory_limit(false, Some(8 << 20));
        assert_eq!(finding.level, Level::Warning);
        assert!(finding.text.contains("8 MiB"));
    }
}
