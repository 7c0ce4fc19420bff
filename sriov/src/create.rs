//! Making and destroying virtual functions.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::address::Bdf;
use crate::capability;
use crate::inventory::{self, Function, InventoryError};
use crate::mac::Mac;
use crate::record::{RecordError, Records};
use crate::route;
use crate::settings::Settings;
use crate::sysfs::{Sysfs, SysfsError};
use crate::users::{self, User};
use crate::vf::{Netlink, VfError};

/// How long the kernel and udev get to show the functions that were made.
const APPEARANCE: Duration = Duration::from_secs(20);

/// Why virtual functions could not be made or destroyed.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// No such physical function.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// More than the hardware has.
    #[error("{pf} cannot have {wanted} virtual functions: its limit is {total}")]
    TooMany {
        /// The PF.
        pf: String,
        /// How many were asked for.
        wanted: u32,
        /// `TotalVFs`.
        total: u32,
    },
    /// The PF carries the host's default route.
    #[error(
        "{0} carries this host's default route, and changing its virtual functions may cut the host off; add --allow-default-route if that is meant"
    )]
    DefaultRoute(String),
    /// A virtual function is in use.
    #[error("VF {index} of {pf} ({bdf}) is in use by {command} (pid {pid}); end it first, or add --force")]
    InUse {
        /// The PF.
        pf: String,
        /// The VF.
        index: u32,
        /// Its address.
        bdf: Bdf,
        /// The user's name.
        command: String,
        /// The user's process.
        pid: u32,
    },
    /// The kernel refused the count.
    #[error("{pf}: {wanted} virtual functions were refused: {source}; {cure}")]
    Refused {
        /// The PF.
        pf: String,
        /// How many were asked for.
        wanted: u32,
        /// What the kernel said.
        source: SysfsError,
        /// What to do.
        cure: &'static str,
    },
    /// Another file could not be read or written.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// The functions did not show up.
    #[error("{pf}: only {seen} of {wanted} virtual functions appeared within {} s; see the kernel log", APPEARANCE.as_secs())]
    Missing {
        /// The PF.
        pf: String,
        /// How many were asked for.
        wanted: u32,
        /// How many came.
        seen: usize,
    },
    /// An address could not be set.
    #[error(transparent)]
    Vf(#[from] VfError),
    /// What was before could not be kept.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// What the caller allows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Permit {
    /// Also a PF that carries the default route.
    pub default_route: bool,
    /// Also where a virtual function is in use.
    pub force: bool,
}

/// Refuses what `create` would refuse before it writes anything.
pub fn refuse(sysfs: &Sysfs, pf: &str, count: u32, permit: Permit) -> Result<(), CreateError> {
    let (function, sriov) = inventory::find_pf(sysfs, pf)?;
    if count > sriov.total_vfs {
        return Err(CreateError::TooMany {
            pf: pf.to_owned(),
            wanted: count,
            total: sriov.total_vfs,
        });
    }
    if sriov.num_vfs == count {
        return Ok(());
    }
    refuse_default_route(sysfs, &function, permit)?;
    refuse_users(sysfs, pf, function.bdf, permit)
}

/// Gives `pf` exactly `count` virtual functions, each with an address before a driver sees it, and lists them; in a dry run those
/// that there would be.
pub async fn create(
    sysfs: &Sysfs,
    netlink: Option<&Netlink>,
    records: &Records,
    pf: &str,
    count: u32,
    permit: Permit,
) -> Result<Vec<(u32, Bdf)>, CreateError> {
    refuse(sysfs, pf, count, permit)?;
    let (function, sriov) = inventory::find_pf(sysfs, pf)?;
    let present = inventory::virtual_functions(sysfs, function.bdf);
    // One that was killed may have left them without addresses, and with drivers kept away from them.
    let halfway = records.autoprobe_was_on(function.bdf);
    if sriov.num_vfs == count && !halfway {
        return Ok(present);
    }
    refuse_users(sysfs, pf, function.bdf, permit)?;
    let dir = format!("sys/bus/pci/devices/{}", function.bdf);
    // The kernel changes a count only through 0.
    if sriov.num_vfs != 0 {
        sysfs.write(format!("{dir}/sriov_numvfs"), "0")?;
    }
    if !sysfs.is_dry_run() {
        // What they were bound to goes with them.
        for (_, vf) in present {
            records.forget(vf)?;
        }
    }
    let work = Work {
        sysfs,
        netlink,
        records,
        pf,
        function: &function,
    };
    let made = work.make(count).await;
    if made.is_err() {
        // Nothing half-made stays, and as many as there were come back; the first error is the one to tell.
        let _ = sysfs.write(format!("{dir}/sriov_numvfs"), "0");
        let _ = work.make(sriov.num_vfs).await;
    }
    made
}

/// Takes all virtual functions from `pf`.
pub async fn destroy(sysfs: &Sysfs, records: &Records, pf: &str, permit: Permit) -> Result<(), CreateError> {
    create(sysfs, None, records, pf, 0, permit).await.map(drop)
}

/// Makes the virtual functions of one physical function.
struct Work<'a> {
    sysfs: &'a Sysfs,
    netlink: Option<&'a Netlink>,
    records: &'a Records,
    pf: &'a str,
    function: &'a Function,
}

impl Work<'_> {
    async fn make(&self, count: u32) -> Result<Vec<(u32, Bdf)>, CreateError> {
        let (sysfs, bdf) = (self.sysfs, self.function.bdf);
        let dir = format!("sys/bus/pci/devices/{bdf}");
        let autoprobe = format!("{dir}/sriov_drivers_autoprobe");
        // No driver may see a function before it has its address.
        let was_on = self.records.autoprobe_was_on(bdf);
        let probed = was_on || sysfs.text(&autoprobe).is_none_or(|text| text == "1");
        let paused = sysfs.exists(&autoprobe) && (was_on || probed && count > 0);
        if paused && count > 0 {
            if !sysfs.is_dry_run() {
                self.records.keep_autoprobe(bdf)?;
            }
            sysfs.write(&autoprobe, "0")?;
        }
        let made = self.make_unprobed(&dir, count).await;
        if paused {
            sysfs.write(&autoprobe, "1")?;
            if !sysfs.is_dry_run() {
                self.records.forget_autoprobe(bdf)?;
            }
        }
        let made = made?;
        if probed {
            for (_, bdf) in &made {
                // A function without a driver for it stays unbound, which is no failure: it may be meant for a guest.
                let _ = sysfs.write("sys/bus/pci/drivers_probe", &bdf.to_string());
            }
        }
        Ok(made)
    }

    async fn make_unprobed(&self, dir: &str, count: u32) -> Result<Vec<(u32, Bdf)>, CreateError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        self.set_up().await?;
        write_count(self.sysfs, self.pf, dir, count)?;
        if self.sysfs.is_dry_run() {
            return Ok(self.announced(count));
        }
        let made = self.appeared(count).await?;
        self.address_all().await?;
        Ok(made)
    }

    /// Sets the physical function up: while it is down nobody answers its virtual functions' drivers, which then make up addresses.
    async fn set_up(&self) -> Result<(), CreateError> {
        match self.function.first_net() {
            Some(net) if !net.up && self.sysfs.is_dry_run() => println!("ip link set {} up", net.name),
            Some(net) if !net.up => {
                if let Some(netlink) = self.netlink {
                    netlink.set_link(&net.name, net.index, true).await?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// What a dry run tells of the addresses: the functions are not there, so they have none yet.
    fn announced(&self, count: u32) -> Vec<(u32, Bdf)> {
        for index in 0..count {
            if let Some(net) = self.function.first_net() {
                println!(
                    "{}",
                    stable_address(net.mac, index).as_ip_command(&net.name, index)
                );
            }
        }
        (0..count)
            .filter_map(|index| {
                let vf = capability::virtual_function(self.sysfs, self.function.bdf, index)?;
                Some((index, vf))
            })
            .collect()
    }

    /// The functions, once sysfs has them all.
    async fn appeared(&self, count: u32) -> Result<Vec<(u32, Bdf)>, CreateError> {
        let end = Instant::now() + APPEARANCE;
        loop {
            let made = inventory::virtual_functions(self.sysfs, self.function.bdf);
            if made.len() >= count as usize {
                return Ok(made);
            }
            if Instant::now() > end {
                return Err(CreateError::Missing {
                    pf: self.pf.to_owned(),
                    wanted: count,
                    seen: made.len(),
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn address_all(&self) -> Result<(), CreateError> {
        let (Some(netlink), Some(net)) = (self.netlink, self.function.first_net()) else {
            return Ok(());
        };
        // By the interface's index: udev may be renaming it at this moment.
        let present = netlink.attributes(&net.name, net.index).await?;
        for attributes in present.iter().filter(|attributes| attributes.mac.is_zero()) {
            let settings = stable_address(net.mac, attributes.index);
            netlink
                .set(&net.name, net.index, attributes.index, &settings)
                .await?;
        }
        Ok(())
    }
}

fn stable_address(pf: Mac, index: u32) -> Settings {
    Settings {
        mac: Some(Mac::stable(pf, index)),
        ..Settings::default()
    }
}

fn write_count(sysfs: &Sysfs, pf: &str, dir: &str, count: u32) -> Result<(), CreateError> {
    let written = sysfs.write(format!("{dir}/sriov_numvfs"), &count.to_string());
    written.map_err(|source| CreateError::Refused {
        pf: pf.to_owned(),
        wanted: count,
        cure: cure(source.errno()),
        source,
    })
}

/// What to do when the kernel refuses a count (`sriov_enable` in `drivers/pci/iov.c`, and the drivers' own limits).
fn cure(errno: Option<Errno>) -> &'static str {
    match errno {
        Some(Errno::NOMEM) => {
            "the firmware gave the device too little MMIO space or too few bus numbers: turn on SR-IOV and above-4G decoding there, or boot with pci=realloc or pci=assign-busses"
        }
        Some(Errno::NOSPC) => "the device has run out of MSI-X vectors or queues: ask for fewer",
        Some(Errno::BUSY) => "another process is changing it: try again",
        Some(Errno::NOENT | Errno::OPNOTSUPP) => "its driver has no SR-IOV: load the vendor's PF driver",
        Some(Errno::PERM | Errno::ACCESS) => "run as root",
        _ => "see the kernel log",
    }
}

fn refuse_users(sysfs: &Sysfs, pf: &str, bdf: Bdf, permit: Permit) -> Result<(), CreateError> {
    if permit.force {
        return Ok(());
    }
    for (index, vf) in inventory::virtual_functions(sysfs, bdf) {
        let users = Function::read(sysfs, vf).map(|function| users::of(sysfs, &function));
        if let Some(User { pid, command }) = users.unwrap_or_default().into_iter().next() {
            return Err(CreateError::InUse {
                pf: pf.to_owned(),
                index,
                bdf: vf,
                command,
                pid,
            });
        }
    }
    Ok(())
}

fn refuse_default_route(sysfs: &Sysfs, function: &Function, permit: Permit) -> Result<(), CreateError> {
    if permit.default_route {
        return Ok(());
    }
    // A virtual function of it may carry the route as well.
    let vfs = inventory::virtual_functions(sysfs, function.bdf).into_iter();
    let vfs = vfs.filter_map(|(_, vf)| Function::read(sysfs, vf));
    let carries = std::iter::once(function.clone())
        .chain(vfs)
        .find_map(|function| route::default_route(sysfs, &function));
    carries.map_or(Ok(()), |interface| Err(CreateError::DefaultRoute(interface)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_of_the_kernel_has_its_cure() {
        for (errno, part) in [
            (Errno::NOMEM, "MMIO space"),
            (Errno::NOSPC, "MSI-X vectors"),
            (Errno::BUSY, "try again"),
            (Errno::OPNOTSUPP, "PF driver"),
            (Errno::PERM, "run as root"),
        ] {
            let text = cure(Some(errno));
            assert!(text.contains(part), "{errno}: {text}");
        }
        assert_eq!(cure(None), "see the kernel log");
    }
}
