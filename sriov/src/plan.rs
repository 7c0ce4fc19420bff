//! Which virtual functions a lab file needs, and which node gets which.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::address::Bdf;
use crate::declared::{Declared, DeclaredError, DeclaredPf, DeclaredVf, from_yaml};
use crate::inventory::{self, Function, InventoryError};
use crate::mac::Mac;
use crate::record::Records;
use crate::settings::Settings;
use crate::sysfs::Sysfs;
use crate::users;

/// The part of a lab file that is of interest here; `lab validate` checks the rest.
#[derive(Debug, Deserialize)]
struct Lab {
    #[serde(default)]
    nodes: BTreeMap<String, Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    #[serde(default)]
    nics: Vec<Nic>,
}

#[derive(Debug, Deserialize)]
struct Nic {
    vf: Option<String>,
    mac: Option<Mac>,
    vlan: Option<u16>,
    #[serde(default)]
    promisc: bool,
    #[serde(default)]
    spoof: bool,
}

/// A NIC that is to be a virtual function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// The node.
    pub node: String,
    /// The NIC's position in the node's list, from 0.
    pub nic: usize,
    /// The virtual function.
    pub vf: VfName,
    /// What it is to be.
    pub set: Settings,
}

/// A virtual function as a lab file names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfName {
    /// The physical function, by interface or address.
    pub pf: String,
    /// The index among its virtual functions; any free one if there is none.
    pub index: Option<u32>,
}

/// One NIC of a node and the virtual function that it gets.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Allocation {
    /// The node.
    pub node: String,
    /// The NIC's position in the node's list, from 0.
    pub nic: usize,
    /// The physical function.
    pub pf: String,
    /// The virtual function.
    pub index: u32,
}

/// A plan: the state to apply, and who gets what.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// What `sriov apply` makes true.
    pub declared: Declared,
    /// Who gets what.
    pub allocations: Vec<Allocation>,
}

/// A text that names no virtual function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no virtual function; write PF or PF:INDEX, such as eth0 or eth0:1")]
pub struct InvalidName(pub String);

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] DeclaredError),
    /// No such physical function.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// Not PF or PF:INDEX.
    #[error("node {node}: {source}")]
    Name {
        /// The node.
        node: String,
        /// What it says.
        source: InvalidName,
    },
    /// Two NICs want the same function.
    #[error("nodes {first} and {second} both want VF {index} of {pf}; leave one's index out")]
    Twice {
        /// The node that has it.
        first: String,
        /// The node that wants it too.
        second: String,
        /// The PF.
        pf: String,
        /// The VF.
        index: u32,
    },
    /// Somebody else has it.
    #[error("node {node} wants VF {index} of {pf}, which {by} uses; name another, or leave the index out")]
    Taken {
        /// The node.
        node: String,
        /// The PF.
        pf: String,
        /// The VF.
        index: u32,
        /// Who has it.
        by: String,
    },
    /// More than the PF can have.
    #[error("the lab needs VF {index} of {pf}, which can have {total}")]
    TooMany {
        /// The PF.
        pf: String,
        /// The VF.
        index: u32,
        /// `TotalVFs`.
        total: u32,
    },
}

impl std::str::FromStr for VfName {
    type Err = InvalidName;

    /// `eth0:1`, `eth0`, `0000:01:00.0` or `0000:01:00.0:1`.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let refused = || InvalidName(text.to_owned());
        let whole = text.parse::<Bdf>().is_ok();
        let (pf, index) = match text.rsplit_once(':') {
            Some((pf, index)) if !whole => (pf, Some(index.parse().map_err(|_| refused())?)),
            _ => (text, None),
        };
        // An interface's name holds no colon, so what is left of one is an address.
        if pf.is_empty() || pf.contains(['/', ' ']) || pf.contains(':') && pf.parse::<Bdf>().is_err() {
            return Err(refused());
        }
        Ok(Self {
            pf: pf.to_owned(),
            index,
        })
    }
}

/// Allocates virtual functions to the NICs of the lab file at `path`.
pub fn plan(sysfs: &Sysfs, records: &Records, path: &Path) -> Result<Plan, PlanError> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| DeclaredError::Read {
        path: shown.clone(),
        source,
    })?;
    allocate(sysfs, records, &wants(&shown, &text)?)
}

fn wants(path: &str, text: &str) -> Result<Vec<Want>, PlanError> {
    let lab: Lab = from_yaml(path, text)?;
    let mut all = Vec::new();
    for (node, entry) in lab.nodes {
        for (nic, entry) in entry.nics.into_iter().enumerate() {
            let Some(vf) = entry.vf else { continue };
            all.push(Want {
                node: node.clone(),
                nic,
                vf: vf.parse().map_err(|source| PlanError::Name {
                    node: node.clone(),
                    source,
                })?,
                set: Settings {
                    mac: entry.mac,
                    ..lab_settings(entry.vlan, entry.promisc, entry.spoof)
                },
            });
        }
    }
    Ok(all)
}

/// What a lab's VF is to be: in no VLAN, checked and not trusted, unless the lab says otherwise.
pub fn lab_settings(vlan: Option<u16>, promisc: bool, spoof: bool) -> Settings {
    Settings {
        vlan: Some(vlan.unwrap_or(0)),
        qos: Some(0),
        spoofchk: Some(!spoof),
        trust: Some(promisc),
        ..Settings::default()
    }
}

/// Allocates virtual functions: named indexes first, then the lowest that are free, by the nodes' names.
pub fn allocate(sysfs: &Sysfs, records: &Records, wants: &[Want]) -> Result<Plan, PlanError> {
    let mut wants: Vec<&Want> = wants.iter().collect();
    wants.sort_by_key(|want| (want.vf.index.is_none(), &want.node, want.nic));
    let mut plan = Plan::default();
    // One physical function may go by two names.
    let mut names: BTreeMap<Bdf, &str> = BTreeMap::new();
    for want in wants {
        let (function, sriov) = inventory::find_pf(sysfs, &want.vf.pf)?;
        let pf = (*names.entry(function.bdf).or_insert(&want.vf.pf)).to_owned();
        let present = inventory::virtual_functions(sysfs, function.bdf);
        let user = |index: u32| {
            let vf = present.iter().find(|(number, _)| *number == index)?.1;
            user_of(sysfs, records, vf)
        };
        let allocated = |index: u32| {
            let mut all = plan.allocations.iter();
            all.find(|other| other.pf == pf && other.index == index)
        };
        let index = want.vf.index.unwrap_or_else(|| {
            let free = |index: &u32| allocated(*index).is_none() && user(*index).is_none();
            (0..sriov.total_vfs).find(free).unwrap_or(sriov.total_vfs)
        });
        if let Some(first) = allocated(index) {
            return Err(PlanError::Twice {
                first: first.node.clone(),
                second: want.node.clone(),
                pf,
                index,
            });
        }
        if index >= sriov.total_vfs {
            let total = sriov.total_vfs;
            return Err(PlanError::TooMany { pf, index, total });
        }
        if let Some(by) = user(index) {
            let node = want.node.clone();
            return Err(PlanError::Taken { node, pf, index, by });
        }
        let declared: &mut DeclaredPf = plan.declared.pfs.entry(pf.clone()).or_default();
        // VFs that others made stay.
        declared.vfs = declared.vfs.max(index + 1).max(sriov.num_vfs);
        let vf = DeclaredVf {
            set: want.set.clone(),
            vfio: true,
        };
        declared.vf.insert(index, vf);
        plan.allocations.push(Allocation {
            node: want.node.clone(),
            nic: want.nic,
            pf,
            index,
        });
    }
    plan.allocations
        .sort_by(|a, b| (&a.node, a.nic).cmp(&(&b.node, b.nic)));
    Ok(plan)
}

/// Who has a virtual function: a process, a lab, or the host itself.
fn user_of(sysfs: &Sysfs, records: &Records, vf: Bdf) -> Option<String> {
    let function = Function::read(sysfs, vf)?;
    if let Some(user) = users::of(sysfs, &function).into_iter().next() {
        return Some(format!("{} (pid {})", user.command, user.pid));
    }
    if let Some(owner) = records.of(vf).ok().flatten().and_then(|before| before.owner) {
        return Some(owner);
    }
    let net = function.net.iter().find(|net| net.operstate == "up")?;
    Some(format!("the host, as {},", net.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_function_is_named_by_interface_or_address() {
        let name = |text: &str| text.parse::<VfName>().ok().map(|name| (name.pf, name.index));
        assert_eq!(name("eth0"), Some(("eth0".to_owned(), None)));
        assert_eq!(name("eth0:1"), Some(("eth0".to_owned(), Some(1))));
        assert_eq!(name("0000:01:00.0"), Some(("0000:01:00.0".to_owned(), None)));
        assert_eq!(name("0000:01:00.0:2"), Some(("0000:01:00.0".to_owned(), Some(2))));
        for text in ["", ":2", "eth0:x", "eth0:1:2", "eth0:", "../x", "a b"] {
            assert_eq!(name(text), None, "{text}");
        }
    }
}
