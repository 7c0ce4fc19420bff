//! One function: its group, its resets, and for a physical function what keeps it from having virtual functions.

use super::Finding;
use crate::address::Bdf;
use crate::bind;
use crate::capability;
use crate::inventory::Function;
use crate::route;
use crate::sysfs::Sysfs;
use crate::vf::Attributes;

/// The lines of a function's `resource` file that hold the memory of its virtual functions (`PCI_IOV_RESOURCES`, `linux/pci.h`).
const VF_MEMORY: std::ops::Range<usize> = 7..13;
/// `IORESOURCE_UNSET` (`linux/ioport.h`).
const UNSET: u64 = 0x2000_0000;

/// One function: its group, and for a physical function what it can have.
pub fn function(sysfs: &Sysfs, function: &Function) -> Vec<Finding> {
    let name = function.name();
    let mut all = Vec::new();
    if let Some(sriov) = function.sriov {
        all.extend(physical(sysfs, function));
        all.push(if sriov.total_vfs == 0 {
            Finding::failure(
                format!("{name} can have no virtual functions"),
                "turn on SR-IOV in the card's or the machine's firmware",
            )
        } else {
            Finding::ok(format!(
                "{name} has {} of {} virtual functions",
                sriov.num_vfs, sriov.total_vfs
            ))
        });
    }
    all.push(group(sysfs, function));
    if function.reset_methods.is_empty() {
        all.push(Finding::warning(
            format!("{} cannot be reset on its own", function.bdf),
            "a guest may find it as the last one left it; power the host off and on where that matters",
        ));
    }
    all
}

/// What keeps a physical function from having virtual functions, or these from working.
fn physical(sysfs: &Sysfs, function: &Function) -> Vec<Finding> {
    let name = function.name();
    let mut all = Vec::new();
    if function.driver.is_none() {
        all.push(Finding::failure(
            format!("{name} has no driver, and virtual functions are made by the physical function's"),
            format!(
                "load its driver: modprobe $(cat /sys/bus/pci/devices/{0}/modalias); echo {0} > /sys/bus/pci/drivers_probe",
                function.bdf
            ),
        ));
    }
    if let Some(interface) = route::default_route(sysfs, function) {
        all.push(Finding::warning(
            format!("{interface} carries this host's default route, so it is left alone"),
            "use another NIC, or add --allow-default-route if the host may be cut off",
        ));
    }
    if !has_vf_memory(sysfs, function) {
        all.push(Finding::failure(
            format!("{name} has no MMIO space for virtual functions, so `create` ends in ENOMEM"),
            "turn on SR-IOV and above-4G decoding in the firmware, or boot with pci=realloc",
        ));
    }
    if let Some(finding) = bus_numbers(sysfs, function) {
        all.push(finding);
    }
    let count = function.sriov.map_or(0, |sriov| sriov.num_vfs);
    if let Some(net) = function.first_net()
        && !net.up
        && count > 0
    {
        all.push(Finding::warning(
            format!(
                "{} is down, so its virtual functions have no link, and their drivers do not learn their addresses",
                net.name
            ),
            format!("ip link set {} up", net.name),
        ));
    }
    all
}

/// Whether every memory range that virtual functions need has a place.
fn has_vf_memory(sysfs: &Sysfs, function: &Function) -> bool {
    let text = sysfs.text(format!("sys/bus/pci/devices/{}/resource", function.bdf));
    let text = text.unwrap_or_default();
    let number = |word: Option<&str>| {
        word.and_then(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok())
            .unwrap_or(0)
    };
    text.lines()
        .take(VF_MEMORY.end)
        .skip(VF_MEMORY.start)
        .all(|line| {
            let mut fields = line.split_whitespace();
            let (start, _, flags) = (number(fields.next()), fields.next(), number(fields.next()));
            flags == 0 || start != 0 && flags & UNSET == 0
        })
}

/// Whether the last virtual function would have a bus number that is routed to its physical function.
fn bus_numbers(sysfs: &Sysfs, function: &Function) -> Option<Finding> {
    let total = function.sriov?.total_vfs;
    let routed = capability::last_bus(sysfs, function.bdf)?;
    let reachable = (0..total)
        .take_while(|index| {
            capability::virtual_function(sysfs, function.bdf, *index).is_some_and(|vf| vf.bus <= routed)
        })
        .count();
    let known = capability::virtual_function(sysfs, function.bdf, 0).is_some();
    (known && reachable < total as usize).then(|| {
        Finding::warning(
            format!(
                "{} has bus numbers for {reachable} of its {total} virtual functions; more end in ENOMEM",
                function.name()
            ),
            "boot with pci=assign-busses",
        )
    })
}

/// The virtual functions of `pf`, as the PF's driver tells them.
pub fn addresses(pf: &str, attributes: &[Attributes]) -> Vec<Finding> {
    let each = attributes.iter().map(|vf| {
        if vf.mac.is_zero() {
            Finding::warning(
                format!(
                    "VF {} of {pf} has no MAC address, so its guest gets another one at every boot",
                    vf.index
                ),
                format!("sriov set {pf} {} --mac auto", vf.index),
            )
        } else {
            Finding::ok(format!("VF {} of {pf} has MAC address {}", vf.index, vf.mac))
        }
    });
    each.collect()
}

fn group(sysfs: &Sysfs, function: &Function) -> Finding {
    let bdf = function.bdf;
    let Some(group) = function.iommu_group else {
        return Finding::failure(format!("{bdf} is in no IOMMU group"), "turn on the IOMMU first");
    };
    let others = bind::obstacles(sysfs, function);
    if others.is_empty() {
        return Finding::ok(format!("IOMMU group {group} of {bdf} is viable"));
    }
    let names: Vec<String> = others
        .iter()
        .map(|(bdf, driver)| format!("{bdf} ({driver})"))
        .collect();
    let why = reason(sysfs, bdf, &others);
    Finding::failure(
        format!(
            "IOMMU group {group} of {bdf} is not viable: {} in it too{why}",
            names.join(", ")
        ),
        format!(
            "sriov bind {bdf} --group (takes them from the host as well; `sriov release {bdf} --group` gives them back), or move the card to another slot"
        ),
    )
}

/// Why functions share a group, where that can be seen.
fn reason(sysfs: &Sysfs, bdf: Bdf, others: &[(Bdf, String)]) -> String {
    let place = |bdf: Bdf| (bdf.domain, bdf.bus, bdf.device);
    if others.iter().all(|(other, _)| place(*other) == place(bdf)) && !capability::has_acs(sysfs, bdf) {
        return "; they are functions of one device, with no ACS between them".to_owned();
    }
    let above = capability::bridges_above(sysfs, bdf);
    let conventional = others
        .iter()
        .any(|(other, _)| capability::is_conventional(sysfs, *other))
        || capability::is_conventional(sysfs, bdf);
    if let Some(bridge) = above.first()
        && conventional
    {
        return format!(
            "; they are on the conventional PCI bus below {bridge}, which forwards their DMA under one address, and ACS is for PCI \
             Express alone"
        );
    }
    let without = above.iter().find(|bridge| !capability::has_acs(sysfs, **bridge));
    without.map_or_else(String::new, |bridge| format!("; no ACS on {bridge} above them"))
}
