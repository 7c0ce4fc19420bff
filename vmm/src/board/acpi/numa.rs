//! Which processors and which memory belong together (ACPI 6.5, sections 5.2.16 and 5.2.17).

use acpi_tables::sdt::Sdt;
use acpi_tables::slit::SLIT;
use acpi_tables::srat::MemoryAffinity;

use super::{Node, OEM, OEM_REVISION, OEM_TABLE};

/// Distance of a node from another; from itself it is 10.
const REMOTE: u8 = 20;

/// The system resource affinity table.
pub(super) fn srat(nodes: &[Node]) -> Sdt {
    // Reserved: one, for compatibility, and zeros.
    let mut body = [&1_u32.to_le_bytes()[..], &[0; 8]].concat();
    for (domain, node) in (0_u32..).zip(nodes) {
        for cpu in node.cpus.clone() {
            body.extend(processor(domain, cpu));
        }
        for range in &node.memory {
            let affinity = MemoryAffinity::new(domain, range.start, range.end - range.start).enabled();
            body.extend(super::bytes(&affinity));
        }
    }
    super::table(*b"SRAT", 3, &body)
}

/// Processor local APIC affinity: the APIC ids are the processors' numbers.
fn processor(domain: u32, apic: u8) -> [u8; 16] {
    const TYPE: u8 = 0;
    const LEN: u8 = 16;
    const ENABLED: u8 = 1;
    let [low, rest @ ..] = domain.to_le_bytes();
    let mut bytes = [0; 16];
    bytes[..5].copy_from_slice(&[TYPE, LEN, low, apic, ENABLED]);
    bytes[9..12].copy_from_slice(&rest);
    bytes
}

/// The system locality distance table: every node is as far from every other.
pub(super) fn slit(nodes: &[Node]) -> SLIT {
    let count = u32::try_from(nodes.len()).unwrap_or_default();
    let mut slit = SLIT::new(OEM, OEM_TABLE, OEM_REVISION, count);
    for one in 0..nodes.len() {
        for other in 0..one {
            slit.set_distance(one, other, REMOTE);
        }
    }
    slit
}
