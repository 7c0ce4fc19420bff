use std::iter;

use super::*;

fn board() -> Board {
    Board {
        cpus: 3,
        mmio64: layout::pci_mmio64(1 << 30),
        serial: true,
        nodes: Vec::new(),
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

/// Follows the pointers from the root as an operating system does, and gives the tables that it finds.
fn found(board: &Board) -> Vec<(String, Vec<u8>)> {
    let image = tables(BASE, board);
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
        let name = String::from_utf8_lossy(&table[..4]).into_owned();
        found.push((name, table.to_vec()));
        if table.starts_with(b"FACP") {
            let dsdt = &image[pointer_at(table, 140)..];
            assert_eq!(&dsdt[..4], b"DSDT");
            assert_eq!(sum(&dsdt[..u32_at(dsdt, 4)]), 0);
        }
    }
    found
}

#[test]
fn every_table_is_found_from_the_root_with_a_right_checksum() {
    let names: Vec<_> = found(&board()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["FACP", "APIC", "MCFG"]);
}

#[test]
fn nodes_are_told_with_their_processors_memory_and_distances() {
    let board = Board {
        nodes: vec![
            Node {
                cpus: 0..=1,
                memory: vec![0..0xc000_0000, 1 << 32..(1 << 32) + 0x1000_0000],
            },
            Node {
                cpus: 2..=2,
                memory: iter::once((1 << 32) + 0x1000_0000..(1 << 32) + 0x5000_0000).collect(),
            },
        ],
        ..board()
    };
    let tables = found(&board);
    let table = |wanted: &str| tables.iter().find(|(name, _)| name == wanted).unwrap().1.clone();
    let srat = table("SRAT");
    let word = |at: usize| u64::from(u32::from_le_bytes(srat[at..at + 4].try_into().unwrap()));
    let (mut at, mut cpus, mut memory) = (48, Vec::new(), Vec::new());
    while at < srat.len() {
        match srat[at..at + 2] {
            [0, 16] => cpus.push((srat[at + 2], srat[at + 3], srat[at + 4])),
            [1, 40] => {
                let base = word(at + 8) | word(at + 12) << 32;
                let len = word(at + 16) | word(at + 20) << 32;
                memory.push((word(at + 2), base, len, word(at + 28)));
            }
            _ => panic!("{:?}", &srat[at..]),
        }
        at += usize::from(srat[at + 1]);
    }
    assert_eq!(cpus, [(0, 0, 1), (0, 1, 1), (1, 2, 1)]);
    assert_eq!(
        memory,
        [
            (0, 0, 0xc000_0000, 1),
            (0, 1 << 32, 0x1000_0000, 1),
            (1, (1 << 32) + 0x1000_0000, 0x4000_0000, 1)
        ]
    );
    assert_eq!(table("SLIT")[36..], [2, 0, 0, 0, 0, 0, 0, 0, 10, 20, 20, 10]);
}

#[test]
fn the_largest_board_fits_below_the_reset_vector() {
    let image = tables(BASE, &Board { cpus: 255, ..board() });
    assert!(BASE + image.len() as u64 <= 0xf_fff0, "{} bytes", image.len());
}
