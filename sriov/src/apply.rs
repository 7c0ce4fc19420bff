//! Making a declared state true; doing it twice changes nothing the second time.

use crate::bind::{self, BindError, VFIO_PCI};
use crate::create::{self, CreateError, Permit};
use crate::declared::{Declared, DeclaredPf};
use crate::inventory::{self, Function};
use crate::record::Records;
use crate::sysfs::Sysfs;
use crate::vf::{Attributes, Netlink, Settings, VfError};

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
    let made = create::create(sysfs, Some(netlink), pf, wanted.vfs, permit).await?;
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
                .is_none_or(|present| !holds(present, &vf.set));
            if missing && sysfs.is_dry_run() {
                println!("{}", as_ip_command(&net.name, *index, &vf.set));
            } else if missing {
                netlink.set(&net.name, net.index, *index, &vf.set).await?;
            }
            if missing {
                changed.push(format!("{pf}: attributes of VF {index}"));
            }
        }
        let Some((_, bdf)) = made.iter().find(|(made, _)| made == index) else {
            continue;
        };
        let driver = Function::read(sysfs, *bdf).and_then(|function| function.driver);
        let is_vfio = driver.as_deref() == Some(VFIO_PCI);
        if vf.vfio && !is_vfio {
            bind::bind(sysfs, records, *bdf, false)?;
            changed.push(format!("{pf}: VF {index} ({bdf}) given to {VFIO_PCI}"));
        } else if !vf.vfio && is_vfio {
            bind::release(sysfs, records, *bdf)?;
            changed.push(format!("{pf}: VF {index} ({bdf}) given back"));
        }
    }
    Ok(())
}

/// Whether `present` is already what `settings` wants.
fn holds(present: &Attributes, settings: &Settings) -> bool {
    fn same<T: PartialEq>(wanted: Option<T>, present: &T) -> bool {
        wanted.is_none_or(|wanted| wanted == *present)
    }
    same(settings.mac, &present.mac)
        && same(settings.vlan, &present.vlan)
        && same(settings.qos, &present.qos)
        && same(settings.min_rate, &present.min_rate)
        && same(settings.max_rate, &present.max_rate)
        && same(settings.spoofchk.map(Some), &present.spoofchk)
        && same(settings.trust.map(Some), &present.trust)
        && same(settings.state.map(Some), &present.state)
}

/// The `ip link` command that does the same, for a dry run.
pub fn as_ip_command(pf: &str, index: u32, settings: &Settings) -> String {
    let on = |on: bool| if on { "on" } else { "off" }.to_owned();
    let words = [
        ("mac", settings.mac.map(|mac| mac.to_string())),
        ("vlan", settings.vlan.map(|vlan| vlan.to_string())),
        ("qos", settings.qos.map(|qos| qos.to_string())),
        ("spoofchk", settings.spoofchk.map(on)),
        ("trust", settings.trust.map(on)),
        (
            "state",
            settings.state.map(|state| format!("{state:?}").to_lowercase()),
        ),
        ("min_tx_rate", settings.min_rate.map(|rate| rate.to_string())),
        ("max_tx_rate", settings.max_rate.map(|rate| rate.to_string())),
    ];
    let words = words
        .into_iter()
        .filter_map(|(word, value)| Some(format!(" {word} {}", value?)));
    format!("ip link set {pf} vf {index}{}", words.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_holds_needs_no_change() {
        let present = Attributes {
            vlan: 5,
            trust: Some(true),
            ..Attributes::default()
        };
        let settings = |vlan| Settings {
            vlan: Some(vlan),
            trust: Some(true),
            ..Settings::default()
        };
        assert!(holds(&present, &Settings::default()));
        assert!(holds(&present, &settings(5)));
        assert!(!holds(&present, &settings(6)));
        assert_eq!(
            as_ip_command("eth0", 1, &settings(6)),
            "ip link set eth0 vf 1 vlan 6 trust on"
        );
    }
}
