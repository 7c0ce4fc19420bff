use std::sync::Mutex;

use vm_memory::{Bytes, GuestAddress};

use super::*;

fn plain(size: u64) -> GuestRam {
    GuestRam::new(RamConfig {
        size,
        hugepages: false,
    })
    .unwrap()
}

#[test]
fn small_ram_is_one_region_and_its_file_is_sealed() {
    let ram = plain(64 << 20);
    assert_eq!(ram.regions.len(), 1);
    assert_eq!(ram.size(), 64 << 20);
    let seals = rustix::fs::fcntl_get_seals(ram.regions[0].fd()).unwrap();
    assert!(seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL));
    assert!(rustix::fs::ftruncate(ram.regions[0].fd(), 4096).is_err());
}

#[test]
fn ram_beyond_the_pci_hole_continues_at_4_gib_in_the_same_file() {
    let size = layout::RAM_BELOW_4G_END + (1 << 30);
    let ram = plain(size);
    assert_eq!(ram.regions.len(), 2);
    assert_eq!(ram.regions[1].guest_addr, 4 << 30);
    assert_eq!(ram.regions[1].offset, layout::RAM_BELOW_4G_END);
    assert_eq!(ram.size(), size);
    ram.mem.write_obj(7u32, GuestAddress(4 << 30)).unwrap();
    let mut bytes = [0; 4];
    rustix::io::pread(ram.regions[0].fd(), &mut bytes, layout::RAM_BELOW_4G_END).unwrap();
    assert_eq!(u32::from_le_bytes(bytes), 7);
    assert!(
        ram.mem
            .read_obj::<u8>(GuestAddress(layout::RAM_BELOW_4G_END))
            .is_err()
    );
}

#[test]
fn cleared_ram_reads_as_zeros() {
    let ram = plain(2 << 20);
    ram.mem.write_obj(0x1234_u64, GuestAddress(0x8000)).unwrap();
    ram.clear(false).unwrap();
    assert_eq!(ram.mem.read_obj::<u64>(GuestAddress(0x8000)).unwrap(), 0);
}

/// Runs where the host has huge pages to spare.
#[test]
fn cleared_huge_pages_read_as_zeros_and_stay_ours() {
    let config = RamConfig {
        size: 2 << 20,
        hugepages: true,
    };
    let Ok(ram) = GuestRam::new(config) else { return };
    ram.mem.write_obj(0x1234_u64, GuestAddress(0x8000)).unwrap();
    let blocks = |ram: &GuestRam| rustix::fs::fstat(ram.regions[0].fd()).unwrap().st_blocks;
    let before = blocks(&ram);
    ram.clear(false).unwrap();
    assert_eq!(ram.mem.read_obj::<u64>(GuestAddress(0x8000)).unwrap(), 0);
    assert_eq!(blocks(&ram), before);
}

#[test]
fn odd_sizes_are_refused() {
    for (size, hugepages) in [
        (0, false),
        (4096, false),
        ((2 << 20) + 1, false),
        ((4 << 20) + 4096, true),
    ] {
        assert!(matches!(
            GuestRam::new(RamConfig { size, hugepages }),
            Err(MemoryError::Size(..))
        ));
    }
}

#[test]
fn too_few_huge_pages_are_refused_when_the_ram_is_made() {
    // More than any machine has reserved.
    let error = GuestRam::new(RamConfig {
        size: 1 << 45,
        hugepages: true,
    })
    .unwrap_err();
    assert!(matches!(error, MemoryError::HugePages(..)), "{error}");
    assert!(error.to_string().contains("nr_hugepages"));
}

#[derive(Default)]
struct Follower {
    refuse_at: Option<u64>,
    seen: Mutex<Vec<(bool, u64)>>,
}

impl MemoryObserver for Follower {
    fn name(&self) -> &'static str {
        "follower"
    }

    fn ram_added(&self, region: &RamRegion) -> Result<(), String> {
        if self.refuse_at == Some(region.guest_addr) {
            return Err("no".to_owned());
        }
        self.seen.lock().unwrap().push((true, region.guest_addr));
        Ok(())
    }

    fn ram_removed(&self, region: &RamRegion) {
        self.seen.lock().unwrap().push((false, region.guest_addr));
    }
}

#[test]
fn an_observer_that_refuses_keeps_nothing() {
    let ram = plain(layout::RAM_BELOW_4G_END + (2 << 20));
    let follower = Follower::default();
    ram.announce(&follower).unwrap();
    assert_eq!(*follower.seen.lock().unwrap(), [(true, 0), (true, 4 << 30)]);

    let refusing = Follower {
        refuse_at: Some(4 << 30),
        ..Follower::default()
    };
    let error = ram.announce(&refusing).unwrap_err();
    assert!(error.to_string().contains("follower"));
    assert_eq!(*refusing.seen.lock().unwrap(), [(true, 0), (false, 0)]);
}
