//! Giving a function to vfio-pci and giving it back.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::address::Bdf;
use crate::inventory::{self, Function};
use crate::record::{Before, RecordError, Records};
use crate::sysfs::{Sysfs, SysfsError};
use crate::users::{self, User};

/// The driver that hands functions to user space.
pub const VFIO_PCI: &str = "vfio-pci";
/// How long a driver gets to take or leave a function.
const CHANGE: Duration = Duration::from_secs(10);

/// Why a function could not be bound or released.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// No such function.
    #[error("there is no PCI function {0}; `sriov list --all` shows what there is")]
    Unknown(Bdf),
    /// No IOMMU group.
    #[error(
        "{0} is in no IOMMU group, so VFIO cannot hold it: turn on the IOMMU in the firmware and on the kernel command line (`sriov check` says how)"
    )]
    NoGroup(Bdf),
    /// A bridge.
    #[error("{0} is a PCI bridge, which cannot be given away")]
    Bridge(Bdf),
    /// Other members of the group are bound elsewhere.
    #[error("IOMMU group {group} of {bdf} is not viable: {} {} in it too; `sriov bind {bdf} --group` takes them all, and `sriov release` gives them back", list(others), if others.len() == 1 { "is" } else { "are" })]
    NotViable {
        /// The function asked for.
        bdf: Bdf,
        /// Its group.
        group: u32,
        /// The others, with their drivers.
        others: Vec<(Bdf, String)>,
    },
    /// In use by a process.
    #[error("{bdf} is in use by {command} (pid {pid}); end it first")]
    InUse {
        /// The function.
        bdf: Bdf,
        /// The process's name.
        command: String,
        /// The process.
        pid: u32,
    },
    /// The driver is not there.
    #[error(
        "the kernel has no vfio-pci driver: `modprobe vfio-pci` failed; install the kernel's full module package"
    )]
    NoDriver,
    /// The driver did not take the function.
    #[error("{bdf} is bound to {} and not to {wanted} after {} s; see the kernel log", found.as_deref().unwrap_or("no driver"), CHANGE.as_secs())]
    NotBound {
        /// The function.
        bdf: Bdf,
        /// What it should be bound to.
        wanted: String,
        /// What it is bound to.
        found: Option<String>,
    },
    /// A file could not be written.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// The former state could not be kept.
    #[error(transparent)]
    Record(#[from] RecordError),
}

fn list(others: &[(Bdf, String)]) -> String {
    let each = others.iter().map(|(bdf, driver)| format!("{bdf} ({driver})"));
    each.collect::<Vec<_>>().join(", ")
}

/// Members of `function`'s group that keep it from being used, with their drivers.
///
/// Bridges and functions without a driver do no harm (`vfio_group_viable`).
pub fn obstacles(sysfs: &Sysfs, function: &Function) -> Vec<(Bdf, String)> {
    let Some(group) = function.iommu_group else {
        return Vec::new();
    };
    let members = inventory::group_members(sysfs, group).into_iter();
    members
        .filter(|bdf| *bdf != function.bdf)
        .filter_map(|bdf| Function::read(sysfs, bdf))
        .filter(|other| !other.is_bridge())
        .filter_map(|other| {
            let driver = other
                .driver
                .filter(|driver| driver != VFIO_PCI && driver != "pci-stub")?;
            Some((other.bdf, driver))
        })
        .collect()
}

/// Binds `bdf` to vfio-pci, with `group` all the other functions of its IOMMU group too. What was bound before is kept in `records`
/// first. On failure everything is bound as it was.
pub fn bind(sysfs: &Sysfs, records: &Records, bdf: Bdf, group: bool) -> Result<Vec<Bdf>, BindError> {
    let function = Function::read(sysfs, bdf).ok_or(BindError::Unknown(bdf))?;
    if function.is_bridge() {
        return Err(BindError::Bridge(bdf));
    }
    let number = function.iommu_group.ok_or(BindError::NoGroup(bdf))?;
    let others = obstacles(sysfs, &function);
    if !others.is_empty() && !group {
        return Err(BindError::NotViable {
            bdf,
            group: number,
            others,
        });
    }
    load_driver(sysfs)?;
    let mut taken = Vec::new();
    for target in std::iter::once(bdf).chain(others.into_iter().map(|(bdf, _)| bdf)) {
        taken.push(target);
        if let Err(error) = take(sysfs, records, target) {
            for undone in taken {
                // The first failure is the one to tell; what cannot be undone now stays in the records for `release`.
                let _ = release(sysfs, records, undone);
            }
            return Err(error);
        }
    }
    Ok(taken)
}

fn load_driver(sysfs: &Sysfs) -> Result<(), BindError> {
    let present = || sysfs.exists(format!("sys/bus/pci/drivers/{VFIO_PCI}"));
    if present() {
        return Ok(());
    }
    if sysfs.is_dry_run() {
        println!("modprobe {VFIO_PCI}");
        return Ok(());
    }
    let loaded = Command::new("modprobe").arg(VFIO_PCI).status();
    if loaded.is_ok_and(|status| status.success()) && present() {
        Ok(())
    } else {
        Err(BindError::NoDriver)
    }
}

fn take(sysfs: &Sysfs, records: &Records, bdf: Bdf) -> Result<(), BindError> {
    let function = Function::read(sysfs, bdf).ok_or(BindError::Unknown(bdf))?;
    if function.driver.as_deref() == Some(VFIO_PCI) {
        return Ok(());
    }
    if !sysfs.is_dry_run() {
        records.keep(&Before {
            bdf,
            driver: function.driver.clone(),
            driver_override: function.driver_override.clone(),
        })?;
    }
    rebind(sysfs, &function, VFIO_PCI, Some(VFIO_PCI))
}

/// Binds `bdf` to what it was bound to before `bind`; without a record, to whatever driver wants it.
pub fn release(sysfs: &Sysfs, records: &Records, bdf: Bdf) -> Result<(), BindError> {
    let Some(function) = Function::read(sysfs, bdf) else {
        // Gone, as a destroyed VF is; nothing is left to give back.
        records.forget(bdf)?;
        return Ok(());
    };
    if function.driver.as_deref() == Some(VFIO_PCI)
        && let Some(User { pid, command }) = users::of(sysfs, &function).into_iter().next()
    {
        return Err(BindError::InUse { bdf, command, pid });
    }
    let before = records.of(bdf)?;
    let driver_override = before.as_ref().and_then(|before| before.driver_override.clone());
    // An empty line clears the override.
    let value = driver_override.as_deref().unwrap_or("\n");
    match before.and_then(|before| before.driver) {
        Some(driver) if function.driver.as_ref() != Some(&driver) => {
            rebind(sysfs, &function, value, Some(&driver))?;
        }
        Some(_) => sysfs.write(override_path(bdf), value)?,
        None => rebind(sysfs, &function, value, None)?,
    }
    if !sysfs.is_dry_run() {
        records.forget(bdf)?;
    }
    Ok(())
}

fn override_path(bdf: Bdf) -> String {
    format!("sys/bus/pci/devices/{bdf}/driver_override")
}

fn rebind(
    sysfs: &Sysfs,
    function: &Function,
    driver_override: &str,
    wanted: Option<&str>,
) -> Result<(), BindError> {
    let bdf = function.bdf;
    sysfs.write(override_path(bdf), driver_override)?;
    if let Some(driver) = &function.driver {
        sysfs.write(format!("sys/bus/pci/drivers/{driver}/unbind"), &bdf.to_string())?;
    }
    sysfs.write("sys/bus/pci/drivers_probe", &bdf.to_string())?;
    let Some(wanted) = wanted else { return Ok(()) };
    if sysfs.is_dry_run() {
        return Ok(());
    }
    // drivers_probe has probed when the write returns, except for drivers that probe on a thread of their own.
    let end = Instant::now() + CHANGE;
    loop {
        let found = sysfs.link_name(format!("sys/bus/pci/devices/{bdf}/driver"));
        if found.as_deref() == Some(wanted) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(BindError::NotBound {
                bdf,
                wanted: wanted.to_owned(),
                found,
            });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
