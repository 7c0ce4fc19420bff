//! Lists for people and for programs.

use std::collections::BTreeMap;

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::address::Bdf;
use crate::inventory::{self, Function};
use crate::route;
use crate::sysfs::Sysfs;
use crate::users::{self, User};
use crate::vf::{Attributes, Netlink};

/// A physical function with all that belongs to it.
#[derive(Debug, Clone, Serialize)]
pub struct PfView {
    /// The function itself.
    #[serde(flatten)]
    pub function: Function,
    /// `legacy` or `switchdev`, where devlink tells.
    pub eswitch_mode: Option<String>,
    /// All functions of its IOMMU group.
    pub group_members: Vec<Bdf>,
    /// Processes that use it through VFIO.
    pub users: Vec<User>,
    /// Its interface that carries the host's default route.
    pub default_route: Option<String>,
    /// Its virtual functions.
    pub vfs: Vec<VfView>,
}

/// A virtual function with all that belongs to it.
#[derive(Debug, Clone, Serialize)]
pub struct VfView {
    /// The function itself.
    #[serde(flatten)]
    pub function: Function,
    /// What the PF holds for it.
    pub attributes: Option<Attributes>,
    /// All functions of its IOMMU group.
    pub group_members: Vec<Bdf>,
    /// Processes that use it through VFIO.
    pub users: Vec<User>,
}

/// Every physical function with its virtual functions.
pub async fn physical_functions(sysfs: &Sysfs, netlink: Option<&Netlink>) -> Vec<PfView> {
    let mut all = Vec::new();
    for function in inventory::functions(sysfs) {
        if function.sriov.is_none() {
            continue;
        }
        let attributes = match (netlink, function.first_net()) {
            (Some(netlink), Some(net)) => netlink.attributes(&net.name, net.index).await.unwrap_or_default(),
            _ => Vec::new(),
        };
        let vfs = inventory::virtual_functions(sysfs, function.bdf).into_iter();
        let vfs = vfs.filter_map(|(index, bdf)| {
            let function = Function::read(sysfs, bdf)?;
            Some(VfView {
                attributes: attributes
                    .iter()
                    .find(|attributes| attributes.index == index)
                    .cloned(),
                group_members: members(sysfs, &function),
                users: users::of(sysfs, &function),
                function,
            })
        });
        all.push(PfView {
            vfs: vfs.collect(),
            eswitch_mode: eswitch_mode(sysfs, function.bdf),
            group_members: members(sysfs, &function),
            users: users::of(sysfs, &function),
            default_route: route::default_route(sysfs, &function),
            function,
        });
    }
    all
}

fn members(sysfs: &Sysfs, function: &Function) -> Vec<Bdf> {
    let group = function.iommu_group;
    group.map_or_else(Vec::new, |group| inventory::group_members(sysfs, group))
}

/// The eswitch mode as devlink tells it; none where there is no devlink or no eswitch, or the tree is not this machine's.
fn eswitch_mode(sysfs: &Sysfs, bdf: Bdf) -> Option<String> {
    if !sysfs.is_this_machine() {
        return None;
    }
    let output = std::process::Command::new("devlink")
        .args(["-j", "dev", "eswitch", "show", &format!("pci/{bdf}")])
        .stderr(std::process::Stdio::null())
        .output()
        .ok()?;
    mode_of(&output.stdout)
}

/// The mode in what `devlink -j dev eswitch show` prints.
fn mode_of(output: &[u8]) -> Option<String> {
    let json: serde_json::Value = serde_json::from_slice(output).ok()?;
    let device = json.get("dev")?.as_object()?.values().next()?;
    device.get("mode")?.as_str().map(str::to_owned)
}

/// Tables: physical functions, virtual functions, and the IOMMU groups that hold more than one function.
pub fn tables(pfs: &[PfView]) -> String {
    if pfs.is_empty() {
        return "No PCI function here has the SR-IOV capability.".to_owned();
    }
    let mut physical = table(&[
        "PF", "PCI", "DRIVER", "LINK", "VFS", "GROUP", "NUMA", "RESET", "ESWITCH", "USED BY",
    ]);
    let mut virtuals = table(&[
        "VF", "PCI", "DRIVER", "GROUP", "MAC", "VLAN", "SPOOF", "TRUST", "RATE", "RESET", "USED BY",
    ]);
    let mut shared = BTreeMap::new();
    for pf in pfs {
        let function = &pf.function;
        let (total, count) = function
            .sriov
            .map_or((0, 0), |sriov| (sriov.total_vfs, sriov.num_vfs));
        let link = function.first_net().map(|net| match net.speed {
            Some(speed) => format!("{} {speed}M", net.operstate),
            None => net.operstate.clone(),
        });
        physical.add_row([
            function.name(),
            function.bdf.to_string(),
            dash(function.driver.as_deref()),
            dash(link.as_deref()),
            format!("{count}/{total}"),
            group(function.iommu_group, &pf.group_members),
            dash_number(function.numa_node),
            resets(function),
            dash(pf.eswitch_mode.as_deref()),
            dash(pf_user(pf).as_deref()),
        ]);
        let vfs = pf.vfs.iter().map(|vf| (&vf.function, &vf.group_members));
        for (function, members) in std::iter::once((function, &pf.group_members)).chain(vfs) {
            if let Some(group) = function.iommu_group.filter(|_| members.len() > 1) {
                shared.insert(group, members);
            }
        }
        for vf in &pf.vfs {
            virtuals.add_row(vf_row(&function.name(), vf));
        }
    }
    let mut groups = table(&["GROUP", "ALL MEMBERS"]);
    for (group, members) in &shared {
        let members: Vec<String> = members.iter().map(Bdf::to_string).collect();
        groups.add_row([group.to_string(), members.join(" ")]);
    }
    let mut tables = vec![physical.to_string()];
    if pfs.iter().any(|pf| !pf.vfs.is_empty()) {
        tables.push(virtuals.to_string());
    }
    if !shared.is_empty() {
        tables.push(groups.to_string());
    }
    tables.join("\n\n")
}

/// `7`, or `7 (+2)` where two others are in it.
fn group(number: Option<u32>, members: &[Bdf]) -> String {
    let shared = members.len().saturating_sub(1);
    dash(
        number
            .map(|group| match shared {
                0 => group.to_string(),
                others => format!("{group} (+{others})"),
            })
            .as_deref(),
    )
}

fn resets(function: &Function) -> String {
    dash(Some(function.reset_methods.join(" ").as_str()).filter(|text| !text.is_empty()))
}

fn process(users: &[User]) -> Option<String> {
    let user = users.first()?;
    Some(format!("{} ({})", user.command, user.pid))
}

fn pf_user(pf: &PfView) -> Option<String> {
    let route = pf.default_route.as_ref().map(|_| "default route".to_owned());
    process(&pf.users).or(route)
}

/// A process that has it through VFIO, else the host's own interface.
fn vf_user(vf: &VfView) -> Option<String> {
    let interface = || vf.function.first_net().map(|net| format!("host as {}", net.name));
    process(&vf.users).or_else(interface)
}

fn vf_row(pf: &str, vf: &VfView) -> [String; 11] {
    let function = &vf.function;
    let index = function.virtual_function.map_or(0, |vf| vf.index);
    let attributes = vf.attributes.as_ref();
    let switch = |on: Option<bool>| dash(on.map(|on| if on { "on" } else { "off" }));
    [
        format!("{pf}:{index}"),
        function.bdf.to_string(),
        dash(function.driver.as_deref()),
        group(function.iommu_group, &vf.group_members),
        dash(attributes.map(|all| all.mac.to_string()).as_deref()),
        dash_number(attributes.map(|all| all.vlan).filter(|vlan| *vlan != 0)),
        switch(attributes.and_then(|all| all.spoofchk)),
        switch(attributes.and_then(|all| all.trust)),
        dash(
            attributes
                .filter(|all| all.max_rate != 0)
                .map(|all| format!("{}M", all.max_rate))
                .as_deref(),
        ),
        resets(function),
        dash(vf_user(vf).as_deref()),
    ]
}

/// Every network function, and with it whatever else shares a group, for `sriov list --all`.
pub fn all_functions(functions: &[Function]) -> String {
    let mut rows = table(&["PCI", "ID", "CLASS", "DRIVER", "GROUP", "INTERFACE", "RESET"]);
    for function in functions {
        rows.add_row([
            function.bdf.to_string(),
            format!("{:04x}:{:04x}", function.vendor, function.device),
            format!("{:06x}", function.class),
            dash(function.driver.as_deref()),
            dash_number(function.iommu_group),
            dash(function.first_net().map(|net| net.name.as_str())),
            resets(function),
        ]);
    }
    rows.to_string()
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

fn dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

fn dash_number(number: Option<impl ToString>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eswitch_mode_is_read_from_what_devlink_prints() {
        let printed =
            br#"{"dev":{"pci/0000:03:00.0":{"mode":"switchdev","inline-mode":"none","encap-mode":"basic"}}}"#;
        assert_eq!(mode_of(printed).as_deref(), Some("switchdev"));
        assert_eq!(mode_of(b"{\"dev\":{}}"), None);
        assert_eq!(mode_of(b""), None);
    }
}
