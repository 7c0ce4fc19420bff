use std::iter;
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

/// The inode of a region's memory file.
fn inode(region: &RamRegion) -> u64 {
    rustix::fs::fstat(region.fd()).unwrap().st_ino
}

#[test]
fn every_node_is_a_sealed_file_of_its_own() {
    let node = |size| RamNode {
        size,
        host_node: None,
    };
    // The second node has the PCI hole in it.
    let sizes = [1 << 30, 3 << 30, 64 << 20];
    let ram = GuestRam::with_nodes(&sizes.map(node), false).unwrap();
    let (hole, above) = (layout::RAM_BELOW_4G_END, layout::RAM_ABOVE_4G_START);
    let moved = above - hole;
    assert_eq!(
        ram.nodes(),
        [
            iter::once(0..1 << 30).collect(),
            vec![1 << 30..hole, above..(4 << 30) + moved],
            iter::once((4 << 30) + moved..(4 << 30) + moved + (64 << 20)).collect(),
        ]
    );
    let inodes: Vec<_> = ram.regions.iter().map(inode).collect();
    assert_eq!(inodes[1], inodes[2]);
    assert!(inodes[0] != inodes[1] && inodes[3] != inodes[1] && inodes[0] != inodes[3]);
    for (region, size) in ram.regions.iter().zip([sizes[0], sizes[1], sizes[1], sizes[2]]) {
        assert_eq!(
            rustix::fs::fstat(region.fd()).unwrap().st_size.unsigned_abs(),
            size
        );
        assert!(rustix::fs::ftruncate(region.fd(), 4096).is_err());
        ram.mem
            .write_obj(region.offset, GuestAddress(region.guest_addr))
            .unwrap();
        let mut bytes = [0; 8];
        rustix::io::pread(region.fd(), &mut bytes, region.offset).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), region.offset);
    }
    assert!(matches!(
        GuestRam::with_nodes(&[node(64 << 20), node(4096)], false),
        Err(MemoryError::Size(4096, ..))
    ));
}

/// The host's own list of mappings says where pages are to come from. Runs where the host has it.
#[test]
fn a_node_is_bound_to_the_hosts_node() {
    let bound = |host_node| {
        let node = RamNode {
            size: 4 << 20,
            host_node: Some(host_node),
        };
        GuestRam::with_nodes(&[node], false)
    };
    assert!(matches!(bound(4000), Err(MemoryError::HostNode(4000, _))));
    let Ok(ram) = bound(0) else { return };
    let Ok(maps) = std::fs::read_to_string("/proc/self/numa_maps") else {
        return;
    };
    let start = format!("{:x} ", ram.regions[0].host_addr);
    let line = maps.lines().find(|line| line.starts_with(&start)).unwrap();
    assert!(line.contains("bind"), "{line}");
}

#[test]
fn devices_that_serve_rings_share_one_view_of_the_memory() {
    let ram = plain(4 << 20);
    let view = ram.for_rings().unwrap();
    assert!(Arc::ptr_eq(&view, &ram.clone().for_rings().unwrap()));
    ram.mem.write_obj(7u32, GuestAddress(0x1000)).unwrap();
    let mut bytes = [0; 4];
    view.slice(0x1000, 4).unwrap().read_to(0, &mut bytes);
    assert_eq!(u32::from_le_bytes(bytes), 7);
}
