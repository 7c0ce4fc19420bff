//! Giving a function to vfio-pci and giving it back.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::address::Bdf;
use crate::inventory::{self, Function};
use crate::record::{Before, RecordError, Records};
use crate::route;
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
    #[error("IOMMU group {group} of {bdf} is not viable: {} {} in it too; `sriov bind {bdf} --group` takes them all, and `sriov release {bdf} --group` gives them back", list(others), if others.len() == 1 { "is" } else { "are" })]
    NotViable {
        /// The function asked for.
        bdf: Bdf,
        /// Its group.
        group: u32,
        /// The others, with their drivers.
        others: Vec<(Bdf, String)>,
    },
    /// It carries the host's default route.
    #[error(
        "{interface} ({bdf}) carries this host's default route, and giving it away cuts the host off; add --allow-default-route if that is meant"
    )]
    DefaultRoute {
        /// The function.
        bdf: Bdf,
        /// Its interface.
        interface: String,
    },
    /// A disk of it is mounted.
    #[error("{bdf} holds {disk}, which is mounted on {place}; unmount it first")]
    Mounted {
        /// The function.
        bdf: Bdf,
        /// The disk or partition.
        disk: String,
        /// Where it is mounted.
        place: String,
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

/// What is asked of `bind` besides the function.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// Take all other functions of its IOMMU group too.
    pub group: bool,
    /// Also a function that carries the default route.
    pub default_route: bool,
    /// Who takes it, kept in the record.
    pub owner: Option<&'a str>,
}

/// Whether a driver leaves the DMA of its function to VFIO (`driver_managed_dma` in the kernel's drivers): functions with such a
/// driver and those with none do a group no harm.
fn is_harmless(driver: &str) -> bool {
    matches!(driver, "pci-stub" | "pcieport") || driver == VFIO_PCI || driver.ends_with("_vfio_pci")
}

/// Members of `function`'s group that keep it from being used, with their drivers.
pub fn obstacles(sysfs: &Sysfs, function: &Function) -> Vec<(Bdf, String)> {
    let Some(group) = function.iommu_group else {
        return Vec::new();
    };
    let members = inventory::group_members(sysfs, group).into_iter();
    members
        .filter(|bdf| *bdf != function.bdf)
        .filter_map(|bdf| Function::read(sysfs, bdf))
        .filter_map(|other| {
            let driver = other.driver.filter(|driver| !is_harmless(driver))?;
            Some((other.bdf, driver))
        })
        .collect()
}

/// Binds `bdf` to vfio-pci, and if asked all the other functions of its IOMMU group too. What was bound before is kept in `records`
/// first. On failure everything is bound as it was.
pub fn bind(sysfs: &Sysfs, records: &Records, bdf: Bdf, options: Options<'_>) -> Result<Vec<Bdf>, BindError> {
    let function = Function::read(sysfs, bdf).ok_or(BindError::Unknown(bdf))?;
    if function.is_bridge() {
        return Err(BindError::Bridge(bdf));
    }
    let number = function.iommu_group.ok_or(BindError::NoGroup(bdf))?;
    let others = obstacles(sysfs, &function);
    if !others.is_empty() && !options.group {
        return Err(BindError::NotViable {
            bdf,
            group: number,
            others,
        });
    }
    let others = others
        .into_iter()
        .filter_map(|(bdf, _)| Function::read(sysfs, bdf));
    let targets: Vec<Function> = std::iter::once(function).chain(others).collect();
    for target in &targets {
        refuse_needed(sysfs, target, options)?;
    }
    load_driver(sysfs)?;
    let mut taken = Vec::new();
    for target in targets {
        taken.push(target.bdf);
        if let Err(error) = take(sysfs, records, &target, options.owner) {
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

/// Refuses what the host needs itself.
fn refuse_needed(sysfs: &Sysfs, function: &Function, options: Options<'_>) -> Result<(), BindError> {
    let bdf = function.bdf;
    if let Some(interface) = route::default_route(sysfs, function)
        && !options.default_route
    {
        return Err(BindError::DefaultRoute { bdf, interface });
    }
    match route::mounted_disk(sysfs, function) {
        Some((disk, place)) => Err(BindError::Mounted { bdf, disk, place }),
        None => Ok(()),
    }
}

fn take(sysfs: &Sysfs, records: &Records, function: &Function, owner: Option<&str>) -> Result<(), BindError> {
    let bdf = function.bdf;
    if function.driver.as_deref() == Some(VFIO_PCI) {
        return Ok(());
    }
    // After a crash half-way the record knows what was before. With another driver and no override it is a remnant of a function
    // that has been given back by hand.
    let halfway = function.driver.is_none() || function.driver_override.as_deref() == Some(VFIO_PCI);
    let known = halfway && records.of(bdf)?.is_some();
    if !known && !sysfs.is_dry_run() {
        records.keep(&Before {
            bdf,
            driver: function.driver.clone(),
            driver_override: function.driver_override.clone(),
            owner: owner.map(str::to_owned),
        })?;
    }
    rebind(sysfs, function, VFIO_PCI, Some(VFIO_PCI))
}

/// Writes what `bind` writes for a function that is not there yet; of use in a dry run only.
pub(crate) fn announce(sysfs: &Sysfs, bdf: Bdf) -> Result<(), BindError> {
    load_driver(sysfs)?;
    sysfs.write(override_path(bdf), VFIO_PCI)?;
    Ok(sysfs.write("sys/bus/pci/drivers_probe", &bdf.to_string())?)
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
    match before.map(|before| before.driver) {
        Some(driver) if function.driver == driver => sysfs.write(override_path(bdf), value)?,
        Some(Some(driver)) => rebind(sysfs, &function, value, Some(&driver))?,
        Some(None) => {
            sysfs.write(override_path(bdf), value)?;
            unbind(sysfs, &function)?;
        }
        // Nobody knows what was before: whatever driver wants it takes it.
        None => rebind(sysfs, &function, value, None)?,
    }
    if !sysfs.is_dry_run() {
        records.forget(bdf)?;
    }
    Ok(())
}

/// Gives back every function of `bdf`'s IOMMU group that `bind` took, and `bdf` itself; tells which.
pub fn release_group(sysfs: &Sysfs, records: &Records, bdf: Bdf) -> Result<Vec<Bdf>, BindError> {
    let group = Function::read(sysfs, bdf).and_then(|function| function.iommu_group);
    let members = group.map_or_else(Vec::new, |group| inventory::group_members(sysfs, group));
    let known = records.all();
    let others = members
        .into_iter()
        .filter(|member| *member != bdf && known.contains(member));
    let all: Vec<Bdf> = std::iter::once(bdf).chain(others).collect();
    for member in &all {
        release(sysfs, records, *member)?;
    }
    Ok(all)
}

fn unbind(sysfs: &Sysfs, function: &Function) -> Result<(), SysfsError> {
    match &function.driver {
        Some(driver) => sysfs.write(
            format!("sys/bus/pci/drivers/{driver}/unbind"),
            &function.bdf.to_string(),
        ),
        None => Ok(()),
    }
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
    unbind(sysfs, function)?;
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
