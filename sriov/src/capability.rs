//! Extended capabilities in a function's configuration space (PCI Express Base Specification 6.0, 7.7 and 9.3.3).

use crate::address::Bdf;
use crate::sysfs::Sysfs;

/// Access Control Services (7.7.11).
const ACS: u16 = 0x000d;
/// Single Root I/O Virtualization (9.3.3).
const SRIOV: u16 = 0x0010;
/// First VF Offset and VF Stride within the SR-IOV capability (9.3.3.9, 9.3.3.10).
const FIRST_VF_OFFSET: usize = 0x14;
const VF_STRIDE: usize = 0x16;
/// The list of the first 256 bytes: where it begins, whether there is one, and PCI Express' entry in it (7.5.1, 7.5.3).
const LIST: usize = 0x34;
const STATUS: usize = 0x06;
const HAS_LIST: u16 = 1 << 4;
const EXPRESS: u16 = 0x10;
/// Where extended capabilities begin and configuration space ends.
const EXTENDED: usize = 0x100;
const END: usize = 0x1000;
/// What a reader without privilege gets.
const HEADER: usize = 64;
/// Subordinate bus number of a bridge (PCI-to-PCI Bridge Architecture 1.2, 3.2.5.4).
const SUBORDINATE: usize = 0x1a;

/// Where the capability `id` stands in `config`.
fn find(config: &[u8], id: u16) -> Option<usize> {
    let mut offset = EXTENDED;
    // The list holds each capability once, and there is room for no more than this.
    for _ in 0..(END - EXTENDED) / 4 {
        let found = word(config, offset)?;
        if found == id {
            return Some(offset);
        }
        offset = usize::from(word(config, offset + 2)? >> 4) & !3;
        if offset < EXTENDED {
            return None;
        }
    }
    None
}

fn word(config: &[u8], offset: usize) -> Option<u16> {
    let bytes = config.get(offset..offset + 2)?;
    Some(u16::from_le_bytes([bytes[0], bytes[1]]))
}

fn config(sysfs: &Sysfs, bdf: Bdf) -> Option<Vec<u8>> {
    sysfs.bytes(format!("sys/bus/pci/devices/{bdf}/config"))
}

/// The bridges above a function, the nearest first.
pub fn bridges_above(sysfs: &Sysfs, bdf: Bdf) -> Vec<Bdf> {
    let device = std::fs::canonicalize(sysfs.path(format!("sys/bus/pci/devices/{bdf}")));
    let device = device.unwrap_or_default();
    let names = device.ancestors().skip(1);
    names
        .map_while(|dir| dir.file_name()?.to_str()?.parse().ok())
        .collect()
}

/// Whether a bridge can keep the devices below it apart. Only privileged readers see the capability.
pub fn has_acs(sysfs: &Sysfs, bridge: Bdf) -> bool {
    config(sysfs, bridge).is_some_and(|config| find(&config, ACS).is_some())
}

/// Whether a function is conventional PCI: it has no PCI Express capability. Only privileged readers see the list.
pub fn is_conventional(sysfs: &Sysfs, bdf: Bdf) -> bool {
    config(sysfs, bdf).is_some_and(|config| config.len() > HEADER && !is_express(&config))
}

fn is_express(config: &[u8]) -> bool {
    let listed = word(config, STATUS).is_some_and(|status| status & HAS_LIST != 0);
    let mut offset = config.get(LIST).copied().unwrap_or(0);
    // The list holds each capability once, and there is room for no more than this.
    for _ in 0..(EXTENDED - 64) / 4 {
        let Some(entry) = word(config, usize::from(offset & !3)).filter(|_| listed && offset >= 64) else {
            return false;
        };
        if entry & 0xff == EXPRESS {
            return true;
        }
        offset = (entry >> 8) as u8;
    }
    false
}

/// The address that virtual function `index` of `pf` has, or will have once it is made.
pub fn virtual_function(sysfs: &Sysfs, pf: Bdf, index: u32) -> Option<Bdf> {
    vf_address(&config(sysfs, pf)?, pf, index)
}

fn vf_address(config: &[u8], pf: Bdf, index: u32) -> Option<Bdf> {
    let capability = find(config, SRIOV)?;
    let offset = u32::from(word(config, capability + FIRST_VF_OFFSET)?);
    let stride = u32::from(word(config, capability + VF_STRIDE)?);
    let routing = u32::from(pf.bus) << 8 | u32::from(pf.device) << 3 | u32::from(pf.function);
    let routing = stride
        .checked_mul(index)?
        .checked_add(offset)?
        .checked_add(routing)?;
    Some(Bdf {
        domain: pf.domain,
        bus: u8::try_from(routing >> 8).ok()?,
        device: (routing >> 3 & 0x1f) as u8,
        function: (routing & 7) as u8,
    })
}

/// The last bus number that is routed to where `pf` is; none for a function on a root bus.
pub fn last_bus(sysfs: &Sysfs, pf: Bdf) -> Option<u8> {
    let bridge = *bridges_above(sysfs, pf).first()?;
    config(sysfs, bridge)?.get(SUBORDINATE).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(config: &mut [u8], offset: usize, value: u32) {
        config[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    #[test]
    fn finds_a_capability_wherever_it_stands_in_the_list() {
        let mut config = vec![0; END];
        assert_eq!(find(&config, ACS), None);
        put(&mut config, 0x100, 0x1481_0001);
        put(&mut config, 0x148, 0x0001_000d);
        assert_eq!(find(&config, ACS), Some(0x148));
        put(&mut config, 0x148, 0x1001_0003);
        assert_eq!(find(&config, ACS), None, "a list that runs in a circle ends");
        assert_eq!(
            find(&config[..64], ACS),
            None,
            "without privilege only the first 64 bytes can be read"
        );
    }

    #[test]
    fn a_function_without_the_express_capability_is_conventional() {
        let mut config = vec![0; 256];
        put(&mut config, 0x04, 0x0010_0000);
        put(&mut config, LIST, 0x50);
        put(&mut config, 0x50, 0x0000_6001);
        put(&mut config, 0x60, 0x0002_0010);
        assert!(is_express(&config));
        put(&mut config, 0x60, 0x0000_0005);
        assert!(!is_express(&config));
        put(&mut config, 0x60, 0x0000_5005);
        assert!(!is_express(&config), "a list that runs in a circle ends");
        put(&mut config, 0x60, 0x0002_0010);
        put(&mut config, 0x04, 0);
        assert!(!is_express(&config), "without a list there is nothing in it");
    }

    #[test]
    fn virtual_functions_follow_offset_and_stride() {
        let mut config = vec![0; END];
        put(&mut config, 0x100, 0x0001_0010);
        put(&mut config, 0x100 + FIRST_VF_OFFSET, 0x0002_0080);
        let pf = "0000:01:00.0".parse().expect("an address");
        let address = |index| vf_address(&config, pf, index).map(|bdf| bdf.to_string());
        assert_eq!(address(0).as_deref(), Some("0000:01:10.0"));
        assert_eq!(address(1).as_deref(), Some("0000:01:10.2"));
        assert_eq!(address(64).as_deref(), Some("0000:02:00.0"));
        assert_eq!(address(u32::MAX), None);
    }
}
