//! Which virtual functions a lab file needs.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::declared::{Declared, DeclaredError, DeclaredPf, DeclaredVf};
use crate::inventory::{self, InventoryError};
use crate::mac::Mac;
use crate::sysfs::Sysfs;
use crate::vf::Settings;

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
    #[error("node {node}: {text:?} names no virtual function; write PF or PF:INDEX, such as eth0 or eth0:1")]
    Name {
        /// The node.
        node: String,
        /// What it says.
        text: String,
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

/// Allocates virtual functions to the NICs of the lab file at `path`: named indexes first, then the lowest free ones in the file's
/// order of nodes.
pub fn plan(sysfs: &Sysfs, path: &Path) -> Result<Plan, PlanError> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| DeclaredError::Read {
        path: shown.clone(),
        source,
    })?;
    let lab: Lab = serde_saphyr::from_str(&text).map_err(|error| DeclaredError::Parse {
        path: shown,
        text: error.to_string().lines().next().unwrap_or_default().to_owned(),
    })?;
    let allocations = allocate(&lab)?;
    let mut plan = Plan::default();
    for allocation in &allocations {
        let (_, sriov) = inventory::find_pf(sysfs, &allocation.pf)?;
        if allocation.index >= sriov.total_vfs {
            return Err(PlanError::TooMany {
                pf: allocation.pf.clone(),
                index: allocation.index,
                total: sriov.total_vfs,
            });
        }
        let pf: &mut DeclaredPf = plan.declared.pfs.entry(allocation.pf.clone()).or_default();
        // VFs that others made stay.
        pf.vfs = pf.vfs.max(allocation.index + 1).max(sriov.num_vfs);
        let nic = &lab.nodes[&allocation.node].nics[allocation.nic];
        pf.vf.insert(
            allocation.index,
            DeclaredVf {
                set: Settings {
                    mac: nic.mac,
                    vlan: nic.vlan,
                    ..Settings::default()
                },
                vfio: true,
            },
        );
    }
    plan.allocations = allocations;
    Ok(plan)
}

fn allocate(lab: &Lab) -> Result<Vec<Allocation>, PlanError> {
    let mut taken: BTreeMap<(String, u32), String> = BTreeMap::new();
    let mut wanted = Vec::new();
    for (node, entry) in &lab.nodes {
        for (nic, text) in entry
            .nics
            .iter()
            .enumerate()
            .filter_map(|(nic, entry)| Some((nic, entry.vf.as_ref()?)))
        {
            let (pf, index) = split(text).ok_or_else(|| PlanError::Name {
                node: node.clone(),
                text: text.clone(),
            })?;
            if let Some(index) = index
                && let Some(first) = taken.insert((pf.clone(), index), node.clone())
            {
                let second = node.clone();
                return Err(PlanError::Twice {
                    first,
                    second,
                    pf,
                    index,
                });
            }
            wanted.push((node.clone(), nic, pf, index));
        }
    }
    let mut all = Vec::new();
    for (node, nic, pf, index) in wanted {
        let index = index.unwrap_or_else(|| {
            let free = (0..u32::MAX)
                .find(|index| !taken.contains_key(&(pf.clone(), *index)))
                .unwrap_or(u32::MAX);
            taken.insert((pf.clone(), free), node.clone());
            free
        });
        all.push(Allocation { node, nic, pf, index });
    }
    Ok(all)
}

/// `eth0:1`, `eth0`, `0000:01:00.0` or `0000:01:00.0:1`.
fn split(text: &str) -> Option<(String, Option<u32>)> {
    if text.is_empty() || text.parse::<crate::address::Bdf>().is_ok() {
        return (!text.is_empty()).then(|| (text.to_owned(), None));
    }
    match text.rsplit_once(':') {
        None => Some((text.to_owned(), None)),
        Some((pf, index)) if !pf.is_empty() => Some((pf.to_owned(), Some(index.parse().ok()?))),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocated(text: &str) -> Result<Vec<(String, u32)>, String> {
        let lab: Lab = serde_saphyr::from_str(text).expect("valid YAML");
        let all = allocate(&lab).map_err(|error| error.to_string())?;
        Ok(all
            .into_iter()
            .map(|allocation| (allocation.node, allocation.index))
            .collect())
    }

    #[test]
    fn named_indexes_come_first() {
        let text = "nodes: {a: {nics: [{vf: eth0}]}, b: {nics: [{vf: 'eth0:0'}, {switch: lan}]}, c: {nics: [{vf: eth0}]}}";
        let expected = [("a", 1), ("b", 0), ("c", 2)].map(|(node, index)| (node.to_owned(), index));
        assert_eq!(allocated(text), Ok(expected.to_vec()));
    }

    #[test]
    fn one_function_goes_to_one_node() {
        let error = allocated("nodes: {a: {nics: [{vf: 'eth0:3'}]}, b: {nics: [{vf: 'eth0:3'}]}}")
            .expect_err("twice");
        assert!(error.contains("a and b both want VF 3"), "{error}");
    }

    #[test]
    fn addresses_are_names_too() {
        assert_eq!(split("0000:01:00.0"), Some(("0000:01:00.0".to_owned(), None)));
        assert_eq!(
            split("0000:01:00.0:2"),
            Some(("0000:01:00.0".to_owned(), Some(2)))
        );
        assert_eq!(split(":2"), None);
        assert_eq!(split("eth0:x"), None);
    }
}
