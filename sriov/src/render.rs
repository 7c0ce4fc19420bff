//! Lists for people and for programs.

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::address::Bdf;
use crate::inventory::{self, Function};
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
                group_members: function
                    .iommu_group
                    .map(|group| inventory::group_members(sysfs, group))
                    .unwrap_or_default(),
                users: users::of(sysfs, &function),
                function,
            })
        });
        all.push(PfView {
            vfs: vfs.collect(),
            eswitch_mode: eswitch_mode(function.bdf),
            function,
        });
    }
    all
}

/// The eswitch mode as devlink tells it; none where there is no devlink or no eswitch.
fn eswitch_mode(bdf: Bdf) -> Option<String> {
    let output = std::process::Command::new("devlink")
        .args(["-j", "dev", "eswitch", "show", &format!("pci/{bdf}")])
        .stderr(std::process::Stdio::null())
        .output()
        .ok()?;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let device = json.get("dev")?.as_object()?.values().next()?;
    device.get("mode")?.as_str().map(str::to_owned)
}

/// Two tables: physical functions, then virtual functions.
pub fn tables(pfs: &[PfView]) -> String {
    if pfs.is_empty() {
        return "No PCI function here has the SR-IOV capability.".to_owned();
    }
    let mut physical = table(&["PF", "PCI", "DRIVER", "LINK", "VFS", "GROUP", "ESWITCH", "NUMA"]);
    let mut virtuals = table(&[
        "VF", "PCI", "DRIVER", "GROUP", "MAC", "VLAN", "SPOOF", "TRUST", "RATE", "USED BY",
    ]);
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
            dash_number(function.iommu_group),
            dash(pf.eswitch_mode.as_deref()),
            dash_number(function.numa_node),
        ]);
        for vf in &pf.vfs {
            virtuals.add_row(vf_row(&function.name(), vf));
        }
    }
    if pfs.iter().all(|pf| pf.vfs.is_empty()) {
        physical.to_string()
    } else {
        format!("{physical}\n\n{virtuals}")
    }
}

fn vf_row(pf: &str, vf: &VfView) -> [String; 10] {
    let function = &vf.function;
    let index = function.virtual_function.map_or(0, |vf| vf.index);
    let attributes = vf.attributes.as_ref();
    let switch = |on: Option<bool>| dash(on.map(|on| if on { "on" } else { "off" }));
    let shared = vf.group_members.len().saturating_sub(1);
    let group = function.iommu_group.map(|group| match shared {
        0 => group.to_string(),
        others => format!("{group} (+{others})"),
    });
    [
        format!("{pf}:{index}"),
        function.bdf.to_string(),
        dash(function.driver.as_deref()),
        dash(group.as_deref()),
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
        dash(
            vf.users
                .first()
                .map(|user| format!("{} ({})", user.command, user.pid))
                .as_deref(),
        ),
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
            dash(Some(function.reset_methods.join(" ").as_str()).filter(|text| !text.is_empty())),
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
