//! Devices of the host that a lab's machines are given: prepared through the `sriov` library, and given back as they were.
//!
//! What is about to be changed is written to the lab's state first, so that any later `lab` gives it back.

mod error;

use serde::{Deserialize, Serialize};
use sriov::address::Bdf;
use sriov::apply::ApplyError;
use sriov::bind::{self, BindError};
use sriov::check::{self, Level};
use sriov::create::{self, Permit};
use sriov::inventory::{self, Function};
use sriov::mac::Mac;
use sriov::plan::{self, VfName, Want};
use sriov::record::Records;
use sriov::settings::Settings;
use sriov::sysfs::Sysfs;
use sriov::users::{self, User};
use sriov::vf::Netlink;
use vswitch::mac::MacAddr;

use crate::lab::{Lab, NicKind, VfNic, port_name};
use crate::paths::LabDir;
use crate::progress::Progress;
use crate::state::State;

pub use error::PrepareError;

/// A device that a machine has, and how it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The machine.
    pub node: String,
    /// Which of its NICs it is.
    pub nic: usize,
    /// Its address.
    pub bdf: Bdf,
    /// The Ethernet address that the guest sees, where it is known.
    pub mac: Option<MacAddr>,
    /// Which virtual function it is, if it is one.
    pub vf: Option<TakenVf>,
}

/// A virtual function and what its physical function held for it before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenVf {
    /// The physical function as the lab file calls it.
    pub name: String,
    /// The physical function.
    pub pf: Bdf,
    /// The index among its virtual functions.
    pub index: u32,
    /// What is to be set again, if the function was there before the lab.
    pub before: Option<Settings>,
}

/// A physical function that was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Physical {
    /// Its address.
    pub bdf: Bdf,
    /// Whether it had no virtual functions before.
    pub created: bool,
    /// Whether its interface was down before.
    pub was_down: bool,
}

impl Device {
    /// Whether it is NIC `nic` of `node`.
    pub fn is_nic(&self, node: &str, nic: usize) -> bool {
        self.node == node && self.nic == nic
    }

    /// What it is, for people.
    pub fn place(&self) -> String {
        match &self.vf {
            Some(vf) => format!("vf {}:{}", vf.name, vf.index),
            None => format!("pci {}", self.bdf),
        }
    }

    /// Whether process `pid` holds it, and, of a virtual function, whether its physical function has a link.
    pub fn is_up(&self, pid: u32) -> bool {
        let sysfs = Sysfs::default();
        let link = self.vf.as_ref().is_none_or(|vf| {
            let pf = Function::read(&sysfs, vf.pf);
            pf.is_some_and(|pf| pf.first_net().is_some_and(|net| net.operstate == "up"))
        });
        let held = Function::read(&sysfs, self.bdf)
            .is_some_and(|function| users::of(&sysfs, &function).iter().any(|user| user.pid == pid));
        link && held
    }
}

/// The virtual functions that a lab wants.
fn wants(lab: &Lab) -> Vec<Want> {
    let mut all = Vec::new();
    for node in &lab.nodes {
        for (index, nic) in node.nics.iter().enumerate() {
            let NicKind::Vf(vf) = &nic.kind else { continue };
            all.push(Want {
                node: node.name.clone(),
                nic: index,
                vf: VfName {
                    pf: vf.pf.clone(),
                    index: vf.index,
                },
                set: settings(vf, nic.mac),
            });
        }
    }
    all
}

fn settings(vf: &VfNic, mac: Option<MacAddr>) -> Settings {
    Settings {
        mac: mac.map(|mac| Mac(mac.octets())),
        ..plan::lab_settings(vf.vlan, vf.promisc, vf.spoof)
    }
}

/// The PCI devices that a lab names.
fn named(lab: &Lab) -> Vec<(String, usize, Bdf)> {
    let mut all = Vec::new();
    for node in &lab.nodes {
        for (index, nic) in node.nics.iter().enumerate() {
            if let NicKind::Pci { pci } = nic.kind {
                all.push((node.name.clone(), index, pci));
            }
        }
    }
    all
}

/// The name under which a lab's devices are recorded.
fn owner(lab: &Lab) -> String {
    format!("lab {}", lab.name)
}

fn records() -> Records {
    let dir = std::env::var_os("NETYARD_SRIOV_DIR");
    dir.map_or_else(|| Records::at(Records::default_dir()), Records::at)
}

/// Makes every device ready that the lab of `state` needs.
pub(crate) async fn prepare(
    state: &mut State,
    dir: &LabDir,
    progress: &Progress,
) -> Result<(), PrepareError> {
    let (wants, named) = (wants(&state.lab), named(&state.lab));
    if wants.is_empty() && named.is_empty() {
        return Ok(());
    }
    let sysfs = Sysfs::default();
    refuse_host(&sysfs)?;
    let records = records();
    let _turn = records.turn()?;
    let step = progress.step("devices", "preparing");
    let mut work = Work {
        sysfs: &sysfs,
        records: &records,
        netlink: Netlink::open()?,
        owner: owner(&state.lab),
        state,
        dir,
    };
    work.physical(&wants).await?;
    work.pci(named)?;
    for name in work.unaddressed() {
        progress.line(&format!(
            "NIC {name} has no driver on this host, so its MAC is not known, and its guest has to set its IP address itself"
        ));
    }
    let count = work.state.devices.len();
    step.done(&format!("{count} bound to {}", bind::VFIO_PCI));
    Ok(())
}

/// Refuses a host that cannot give devices to guests, with everything that it lacks.
fn refuse_host(sysfs: &Sysfs) -> Result<(), PrepareError> {
    let lacks: Vec<String> = check::host(sysfs)
        .into_iter()
        .filter(|finding| finding.level == Level::Failure)
        .map(|finding| match finding.cure {
            Some(cure) => format!("{} ({cure})", finding.text),
            None => finding.text,
        })
        .collect();
    if lacks.is_empty() {
        Ok(())
    } else {
        Err(PrepareError::Host(lacks.join("; ")))
    }
}

/// Prepares the devices of one lab.
struct Work<'a> {
    sysfs: &'a Sysfs,
    records: &'a Records,
    netlink: Netlink,
    owner: String,
    state: &'a mut State,
    dir: &'a LabDir,
}

impl Work<'_> {
    async fn physical(&mut self, wants: &[Want]) -> Result<(), PrepareError> {
        let plan = plan::allocate(self.sysfs, self.records, wants)?;
        // What can be refused is refused before anything is changed.
        for (pf, declared) in &plan.declared.pfs {
            let (_, sriov) = inventory::find_pf(self.sysfs, pf)?;
            if sriov.num_vfs != 0 && declared.vfs > sriov.num_vfs {
                return Err(PrepareError::TooFew {
                    pf: pf.clone(),
                    has: sriov.num_vfs,
                    needs: declared.vfs,
                });
            }
            create::refuse(self.sysfs, pf, declared.vfs, Permit::default())?;
        }
        for (pf, declared) in &plan.declared.pfs {
            let (function, sriov) = inventory::find_pf(self.sysfs, pf)?;
            let net = function
                .first_net()
                .ok_or_else(|| ApplyError::NoInterface(pf.clone()))?;
            self.state.physical.push(Physical {
                bdf: function.bdf,
                created: sriov.num_vfs == 0,
                was_down: !net.up,
            });
            self.state.save(self.dir)?;
            if !net.up {
                self.netlink.set_link(&net.name, net.index, true).await?;
            }
            let (sysfs, netlink) = (self.sysfs, Some(&self.netlink));
            let made =
                create::create(sysfs, netlink, self.records, pf, declared.vfs, Permit::default()).await?;
            let present = self.netlink.attributes(&net.name, net.index).await?;
            for one in plan.allocations.iter().filter(|one| one.pf == *pf) {
                let bdf = made.iter().find(|(index, _)| *index == one.index);
                let bdf = bdf.ok_or_else(|| ApplyError::NoInterface(pf.clone()))?.1;
                let now = present.iter().find(|vf| vf.index == one.index);
                let set = &declared.vf[&one.index].set;
                self.state.devices.push(Device {
                    node: one.node.clone(),
                    nic: one.nic,
                    bdf,
                    mac: set.mac.map(|mac| MacAddr::new(mac.0)),
                    vf: Some(TakenVf {
                        name: pf.clone(),
                        pf: function.bdf,
                        index: one.index,
                        before: now.filter(|_| sriov.num_vfs != 0).map(Settings::all_of),
                    }),
                });
                self.state.save(self.dir)?;
                let missing = now.map_or_else(|| set.clone(), |now| set.missing_in(now));
                self.netlink
                    .set(&net.name, net.index, one.index, &missing)
                    .await?;
                self.bind(bdf, false)?;
            }
        }
        Ok(())
    }

    /// Takes the devices that the lab names.
    fn pci(&mut self, named: Vec<(String, usize, Bdf)>) -> Result<(), PrepareError> {
        let all: Vec<Bdf> = named.iter().map(|(_, _, bdf)| *bdf).collect();
        // Taking one may take another of its group along, whose address is told by its driver alone.
        for (node, nic, bdf) in named {
            let function = Function::read(self.sysfs, bdf).ok_or(PrepareError::NoDevice(bdf))?;
            if let Some(User { pid, command }) = users::of(self.sysfs, &function).into_iter().next() {
                return Err(BindError::InUse { bdf, command, pid }.into());
            }
            self.state.devices.push(Device {
                node,
                nic,
                bdf,
                mac: function.first_net().map(|net| MacAddr::new(net.mac.0)),
                vf: None,
            });
        }
        self.state.save(self.dir)?;
        for bdf in &all {
            let function = Function::read(self.sysfs, *bdf).ok_or(PrepareError::NoDevice(*bdf))?;
            let mut others = bind::obstacles(self.sysfs, &function).into_iter();
            // A group that is the lab's as a whole is taken as a whole.
            let group = others.all(|(other, _)| all.contains(&other));
            self.bind(*bdf, group)?;
        }
        Ok(())
    }

    fn bind(&self, bdf: Bdf, group: bool) -> Result<(), PrepareError> {
        let options = bind::Options {
            group,
            owner: Some(&self.owner),
            ..bind::Options::default()
        };
        bind::bind(self.sysfs, self.records, bdf, options)?;
        Ok(())
    }

    /// NICs whose guests are to have an address and cannot be told which interface it is for.
    fn unaddressed(&self) -> Vec<String> {
        let devices = self.state.devices.iter().filter(|device| device.mac.is_none());
        let wanting = devices.filter(|device| {
            let node = self.state.lab.node(&device.node);
            node.is_some_and(|node| node.nics[device.nic].ip.is_some())
        });
        wanting
            .map(|device| port_name(&device.node, device.nic))
            .collect()
    }
}

/// Gives everything back as it was; what has been given back already stays as it is.
pub(crate) async fn give_back(state: &State, progress: &Progress) -> Result<(), PrepareError> {
    if state.devices.is_empty() && state.physical.is_empty() {
        return Ok(());
    }
    let sysfs = Sysfs::default();
    let records = records();
    let _turn = records.turn()?;
    let step = progress.step("devices", "giving back");
    let netlink = Netlink::open()?;
    let created = |pf: Bdf| {
        let mut changed = state.physical.iter();
        changed.any(|physical| physical.bdf == pf && physical.created)
    };
    let owner = owner(&state.lab);
    // The rest was left where it was: refused, or bound to vfio-pci by somebody else before.
    let release = |bdf: Bdf| match records.of(bdf)? {
        Some(before) if before.owner.as_ref() == Some(&owner) => bind::release(&sysfs, &records, bdf),
        _ => Ok(()),
    };
    for device in state.devices.iter().rev() {
        let Some(vf) = &device.vf else {
            release(device.bdf)?;
            continue;
        };
        // With their physical function's other virtual functions they go altogether.
        if created(vf.pf) {
            continue;
        }
        release(device.bdf)?;
        let pf = Function::read(&sysfs, vf.pf);
        if let (Some(before), Some(net)) = (&vf.before, pf.as_ref().and_then(Function::first_net)) {
            let present = netlink.attributes(&net.name, net.index).await?;
            if let Some(now) = present.iter().find(|now| now.index == vf.index) {
                let missing = before.missing_in(now);
                netlink.set(&net.name, net.index, vf.index, &missing).await?;
            }
        }
    }
    for physical in &state.physical {
        let Some(function) = Function::read(&sysfs, physical.bdf) else {
            continue;
        };
        if physical.created {
            let permit = Permit {
                default_route: true,
                ..Permit::default()
            };
            create::destroy(&sysfs, &records, &physical.bdf.to_string(), permit).await?;
        }
        if let Some(net) = function.first_net()
            && physical.was_down
            && net.up
        {
            netlink.set_link(&net.name, net.index, false).await?;
        }
    }
    step.done("given back");
    Ok(())
}
