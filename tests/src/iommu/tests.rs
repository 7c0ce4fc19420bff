use std::collections::BTreeMap;

use super::{ENTRIES, Mapping, Memory, REGISTERS, Reach, reach};

/// Words that are not zero.
#[derive(Default)]
struct Words(BTreeMap<u64, u64>);

impl Memory for Words {
    fn words(&mut self, addr: u64, count: usize) -> Vec<u64> {
        let word = |at: u64| self.0.get(&at).copied().unwrap_or_default();
        (0..count as u64).map(|index| word(addr + 8 * index)).collect()
    }
}

const ROOT: u64 = 0x10_0000;
const CONTEXT: u64 = 0x20_0000;
const TOP: u64 = 0x30_0000;

/// Three levels for the device 01:10.2.
fn machine() -> Words {
    let mut words = Words::default();
    words.0.insert(REGISTERS + 0x18, 1 << 63);
    words.0.insert(REGISTERS + 0x20, ROOT);
    words.0.insert(ROOT + 16, CONTEXT | 1);
    let entry = CONTEXT + 16 * 0x82;
    words.0.insert(entry, TOP | 1);
    words.0.insert(entry + 8, 3 << 8 | 1);
    words
}

fn look(words: &mut Words) -> Reach {
    reach(words, 1, 0x82)
}

#[test]
fn pages_of_all_sizes_are_found_and_neighbours_joined() {
    let mut words = machine();
    // 1 GiB at 1 GiB, read only; below it a table.
    words.0.insert(TOP, 0x31_0003);
    words.0.insert(TOP + 8, 0x1_4000_0000 | 0x81);
    // 2 MiB at 0, and a table of pages behind it.
    words.0.insert(0x31_0000, 0x8000_0083);
    words.0.insert(0x31_0008, 0x32_0003);
    words.0.insert(0x32_0000, 0x8020_0003);
    words.0.insert(0x32_0008, 0x9000_0003);
    words.0.insert(0x32_0000 + 8 * (ENTRIES as u64 - 1), 0x9000_1002);
    let mapping = |device, physical, len, write| Mapping {
        device,
        physical,
        len,
        write,
    };
    let found = look(&mut words);
    assert_eq!(
        found,
        Reach::Pages(vec![
            mapping(0, 0x8000_0000, 0x20_1000, true),
            mapping(0x20_1000, 0x9000_0000, 0x1000, true),
            mapping(0x3f_f000, 0x9000_1000, 0x1000, true),
            mapping(0x4000_0000, 0x1_4000_0000, 0x4000_0000, false),
        ])
    );
    assert_eq!(
        found.ranges().unwrap(),
        [0..0x20_2000, 0x3f_f000..0x40_0000, 0x4000_0000..0x8000_0000]
    );
    // A level that may not be written forbids it to all below.
    words.0.insert(TOP, 0x31_0001);
    let Reach::Pages(pages) = look(&mut words) else {
        panic!("not everything")
    };
    assert!(pages.iter().all(|page| !page.write), "{pages:x?}");
}

#[test]
fn a_device_without_an_entry_reaches_nothing() {
    let mut words = machine();
    assert_eq!(look(&mut words), Reach::Pages(Vec::new()));
    words.0.remove(&(CONTEXT + 16 * 0x82));
    assert_eq!(look(&mut words), Reach::Pages(Vec::new()));
    words.0.remove(&(ROOT + 16));
    assert_eq!(look(&mut words), Reach::Pages(Vec::new()));
}

#[test]
fn a_device_that_passes_reaches_everything() {
    let mut words = machine();
    words.0.insert(CONTEXT + 16 * 0x82, TOP | 0b1001);
    assert_eq!(look(&mut words), Reach::Everything);
    assert_eq!(look(&mut words).ranges(), None);
    let mut words = machine();
    words.0.insert(REGISTERS + 0x18, 1 << 62);
    assert_eq!(look(&mut words), Reach::Everything);
}

#[test]
#[should_panic(expected = "scalable mode")]
fn another_mode_is_refused() {
    let mut words = machine();
    words.0.insert(REGISTERS + 0x20, ROOT | 1 << 10);
    look(&mut words);
}
