//! Making a declared state true; doing it twice changes nothing the second time.

use crate::bind::{self, BindError, VFIO_PCI};
use crate::create::{self, CreateError, Permit};
use crate::declared::{Declared, DeclaredPf};
use crate::inventory::{self, Function};
use crate::record::Records;
use crate::settings::Settings;
use crate::sysfs::Sysfs;
use crate::vf::{Netlink, VfError};

/// Why a declared state could not be made true.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Virtual functions could not be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// An attribute was refused.
    #[error(transparent)]
    Vf(#[from] VfError),
    /// A function could not be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A PF without an interface has no attributes to set.
    #[error(
        "{0} has no network interface, so its virtual functions' attributes cannot be set: bind it to its own driver first"
    )]
    NoInterface(String),
}

/// Makes `declared` true and tells what was changed, a line each.
pub async fn apply(
    sysfs: &Sysfs,
    netlink: &Netlink,
    records: &Records,
    declared: &Declared,
    permit: Permit,
) -> Result<Vec<String>, ApplyError> {
    let mut changed = Vec::new();
    // What can be refused is refused before anything is written.
    for (pf, wanted) in &declared.pfs {
        create::refuse(sysfs, pf, wanted.vfs, permit)?;
    }
    for (pf, wanted) in &declared.pfs {
        apply_pf(sysfs, netlink, records, pf, wanted, permit, &mut changed).await?;
    }
    Ok(changed)
}

async fn apply_pf(
    sysfs: &Sysfs,
    netlink: &Netlink,
    records: &Records,
    pf: &str,
    wanted: &DeclaredPf,
    permit: Permit,
    changed: &mut Vec<String>,
) -> Result<(), ApplyError> {
    let (before, sriov) = inventory::find_pf(sysfs, pf).map_err(CreateError::from)?;
    let made = create::create(sysfs, Some(netlink), records, pf, wanted.vfs, permit).await?;
    if sriov.num_vfs != wanted.vfs {
        changed.push(format!(
            "{pf}: {} virtual functions instead of {}",
            wanted.vfs, sriov.num_vfs
        ));
    }
    for (index, vf) in &wanted.vf {
        if vf.set != Settings::default() {
            let net = before
                .first_net()
                .ok_or_else(|| ApplyError::NoInterface(pf.to_owned()))?;
            let present = netlink.attributes(&net.name, net.index).await?;
            let missing = present
                .iter()
                .find(|attributes| attributes.index == *index)
                .map_or_else(|| vf.set.clone(), |present| vf.set.missing_in(present));
            if missing != Settings::default() {
                if sysfs.is_dry_run() {
                    println!("{}", missing.as_ip_command(&net.name, *index));
                } else {
                    netlink.set(&net.name, net.index, *index, &missing).await?;
                }
                changed.push(format!("{pf}: attributes of VF {index}"));
            }
        }
        let Some((_, bdf)) = made.iter().find(|(made, _)| made == index) else {
            continue;
        };
        let function = Function::read(sysfs, *bdf);
        let driver = function.as_ref().and_then(|function| function.driver.as_deref());
        let is_vfio = driver == Some(VFIO_PCI);
        if vf.vfio && !is_vfio {
            if function.is_some() {
                let options = bind::Options {
                    default_route: permit.default_route,
                    ..bind::Options::default()
                };
                bind::bind(sysfs, records, *bdf, options)?;
            } else {
                // A dry run, in which it was not made.
                bind::announce(sysfs, *bdf)?;
            }
            changed.push(format!("{pf}: VF {index} ({bdf}) given to {VFIO_PCI}"));
        } else if !vf.vfio && is_vfio {
            bind::release(sysfs, records, *bdf)?;
            changed.push(format!("{pf}: VF {index} ({bdf}) given back"));
        }
    }
    Ok(())
}
