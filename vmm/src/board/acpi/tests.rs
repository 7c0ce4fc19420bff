use super::*;

fn board() -> Board {
    Board {
        cpus: 3,
        mmio64: layout::pci_mmio64(1 << 30),
        serial: true,
    }
}

const BASE: u64 = 0xe0000;

fn u32_at(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())).unwrap()
}

fn pointer_at(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) - BASE).unwrap()
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Follows the pointers from the root as an operating system does.
#[test]
fn every_table_is_found_from_the_root_with_a_right_checksum() {
    let image = tables(BASE, &board());
    assert_eq!(&image[..8], b"RSD PTR ");
    assert_eq!(sum(&image[..20]), 0);
    assert_eq!(sum(&image[..36]), 0);
    let xsdt = &image[pointer_at(&image, 24)..];
    let len = u32_at(xsdt, 4);
    assert_eq!(&xsdt[..4], b"XSDT");
    assert_eq!(sum(&xsdt[..len]), 0);
    let mut found = Vec::new();
    for entry in (36..len).step_by(8) {
        let table = &image[pointer_at(xsdt, entry)..];
        let table = &table[..u32_at(table, 4)];
        assert_eq!(sum(table), 0);
        found.push(String::from_utf8_lossy(&table[..4]).into_owned());
        if found.last().is_some_and(|name| name == "FACP") {
            let dsdt = &image[pointer_at(table, 140)..];
            assert_eq!(&dsdt[..4], b"DSDT");
            assert_eq!(sum(&dsdt[..u32_at(dsdt, 4)]), 0);
        }
    }
    assert_eq!(found, ["FACP", "APIC", "MCFG"]);
}

#[test]
fn the_largest_board_fits_below_the_reset_vector() {
    let image = tables(BASE, &Board { cpus: 255, ..board() });
    assert!(BASE + image.len() as u64 <= 0xf_fff0, "{} bytes", image.len());
}
