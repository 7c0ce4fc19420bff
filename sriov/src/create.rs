//! Making and destroying virtual functions.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::address::Bdf;
use crate::inventory::{self, Function, InventoryError};
use crate::mac::Mac;
use crate::sysfs::{Sysfs, SysfsError};
use crate::users::{self, User};
use crate::vf::{Netlink, Settings, VfError};

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
}

/// What the caller allows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Permit {
    /// Also a PF that carries the default route.
    pub default_route: bool,
    /// Also where a virtual function is in use.
    pub force: bool,
}

/// Gives `pf` exactly `count` virtual functions, each with an address before a driver sees it, and lists them.
pub async fn create(
    sysfs: &Sysfs,
    netlink: Option<&Netlink>,
    pf: &str,
    count: u32,
    permit: Permit,
) -> Result<Vec<(u32, Bdf)>, CreateError> {
    let (function, sriov) = inventory::find_pf(sysfs, pf)?;
    if count > sriov.total_vfs {
        return Err(CreateError::TooMany {
            pf: pf.to_owned(),
            wanted: count,
            total: sriov.total_vfs,
        });
    }
    if sriov.num_vfs == count {
        return Ok(inventory::virtual_functions(sysfs, function.bdf));
    }
    refuse_default_route(sysfs, &function, permit)?;
    refuse_users(sysfs, pf, function.bdf, permit)?;
    let dir = format!("sys/bus/pci/devices/{}", function.bdf);
    // The kernel changes a count only through 0.
    if sriov.num_vfs != 0 {
        sysfs.write(format!("{dir}/sriov_numvfs"), "0")?;
    }
    if count == 0 {
        return Ok(Vec::new());
    }
    match make(sysfs, netlink, pf, &function, count).await {
        Ok(made) => Ok(made),
        Err(error) => {
            // Nothing half-made stays; the first error is the one to tell.
            let _ = sysfs.write(format!("{dir}/sriov_numvfs"), "0");
            Err(error)
        }
    }
}

/// Takes all virtual functions from `pf`.
pub async fn destroy(sysfs: &Sysfs, pf: &str, permit: Permit) -> Result<(), CreateError> {
    create(sysfs, None, pf, 0, permit).await.map(drop)
}

async fn make(
    sysfs: &Sysfs,
    netlink: Option<&Netlink>,
    pf: &str,
    function: &Function,
    count: u32,
) -> Result<Vec<(u32, Bdf)>, CreateError> {
    let dir = format!("sys/bus/pci/devices/{}", function.bdf);
    let autoprobe = format!("{dir}/sriov_drivers_autoprobe");
    let probed = sysfs.text(&autoprobe).is_none_or(|text| text == "1");
    if probed && sysfs.exists(&autoprobe) {
        sysfs.write(&autoprobe, "0")?;
    }
    let made = write_count(sysfs, pf, &dir, count);
    let addressed = match made {
        Ok(()) if sysfs.is_dry_run() => Ok(Vec::new()),
        Ok(()) => address_all(sysfs, netlink, pf, function, count).await,
        Err(error) => Err(error),
    };
    if probed && sysfs.exists(&autoprobe) {
        sysfs.write(&autoprobe, "1")?;
    }
    let made = addressed?;
    if probed {
        for (_, bdf) in &made {
            // A function without a driver for it stays unbound, which is no failure: it may be meant for a guest.
            let _ = sysfs.write("sys/bus/pci/drivers_probe", &bdf.to_string());
        }
    }
    Ok(made)
}

fn write_count(sysfs: &Sysfs, pf: &str, dir: &str, count: u32) -> Result<(), CreateError> {
    sysfs.write(format!("{dir}/sriov_numvfs"), &count.to_string()).map_err(|source| {
        let cure = match source.errno() {
            Some(Errno::NOMEM) => {
                "the firmware gave the device too little MMIO space: turn on SR-IOV and above-4G decoding there, or boot with pci=realloc"
            }
            Some(Errno::NOSPC) => "the device has run out of MSI-X vectors or bus numbers: ask for fewer, or boot with pci=assign-busses",
            Some(Errno::BUSY) => "another process is changing it: try again",
            Some(Errno::NOENT | Errno::OPNOTSUPP) => "its driver has no SR-IOV: load the vendor's PF driver",
            Some(Errno::PERM | Errno::ACCESS) => "run as root",
            _ => "see the kernel log",
        };
        CreateError::Refused {
            pf: pf.to_owned(),
            wanted: count,
            source,
            cure,
        }
    })
}

async fn address_all(
    sysfs: &Sysfs,
    netlink: Option<&Netlink>,
    pf: &str,
    function: &Function,
    count: u32,
) -> Result<Vec<(u32, Bdf)>, CreateError> {
    let end = Instant::now() + APPEARANCE;
    let made = loop {
        let made = inventory::virtual_functions(sysfs, function.bdf);
        if made.len() >= count as usize {
            break made;
        }
        if Instant::now() > end {
            return Err(CreateError::Missing {
                pf: pf.to_owned(),
                wanted: count,
                seen: made.len(),
            });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    // By index: udev may be renaming the interface at this moment.
    if let (Some(netlink), Some(net)) = (netlink, function.first_net()) {
        let present = netlink.attributes(&net.name, net.index).await?;
        for attributes in present.iter().filter(|attributes| attributes.mac.is_zero()) {
            let settings = Settings {
                mac: Some(Mac::stable(net.mac, attributes.index)),
                ..Settings::default()
            };
            netlink
                .set(&net.name, net.index, attributes.index, &settings)
                .await?;
        }
    }
    Ok(made)
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
    let carries = function
        .net
        .iter()
        .find(|net| carries_default_route(sysfs, &net.name));
    match carries {
        Some(net) if !permit.default_route => Err(CreateError::DefaultRoute(net.name.clone())),
        _ => Ok(()),
    }
}

/// Whether an IPv4 or IPv6 default route of the main table leaves through `interface`.
fn carries_default_route(sysfs: &Sysfs, interface: &str) -> bool {
    let v4 = sysfs.text("proc/net/route").unwrap_or_default();
    let v4 = v4.lines().any(|line| {
        let mut fields = line.split_whitespace();
        fields.next() == Some(interface) && fields.next() == Some("00000000")
    });
    let v6 = sysfs.text("proc/net/ipv6_route").unwrap_or_default();
    v4 || v6.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let default =
            fields.first().is_some_and(|net| net.bytes().all(|b| b == b'0')) && fields.get(1) == Some(&"00");
        let gateway = fields.get(4).is_some_and(|via| via.bytes().any(|b| b != b'0'));
        default && gateway && fields.last() == Some(&interface)
    })
}
