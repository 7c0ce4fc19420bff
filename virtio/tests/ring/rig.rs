//! Memory with a queue in it, whose parts a test writes by hand.

use std::sync::Arc;

use virtio::memory::{MemoryMap, Region, SharedMemory};
use virtio::split::device::DeviceQueue;
use virtio::split::driver::DriverQueue;
use virtio::split::{QueueConfig, RingLayout};

/// The rings' region starts here.
pub(crate) const BASE: u64 = 0x10_0000;
/// Every region has this many bytes.
pub(crate) const REGION: u64 = 0x10_0000;
/// The second region follows the first without a hole.
pub(crate) const NEXT: u64 = BASE + REGION;
/// After the third region, which follows the second, there is a hole.
pub(crate) const HOLE: u64 = BASE + 3 * REGION;
/// The last region, after the hole.
pub(crate) const FAR: u64 = BASE + 4 * REGION;
/// Buffers start here in the first region.
pub(crate) const BUFFERS: u64 = BASE + 0x8_0000;
/// Where indirect tables may go.
pub(crate) const TABLES: u64 = BASE + 0x4_0000;

pub(crate) const NEXT_FLAG: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Four regions of one front-end and a queue in the first.
pub(crate) struct Rig {
    pub(crate) shared: Vec<SharedMemory>,
    pub(crate) mem: Arc<MemoryMap>,
    pub(crate) config: QueueConfig,
}

impl Rig {
    pub(crate) fn new(size: u16) -> Self {
        let shared: Vec<_> = [BASE, NEXT, NEXT + REGION, FAR]
            .iter()
            .map(|at| SharedMemory::new("virtio-rig", *at, REGION).expect("shared memory"))
            .collect();
        let regions: Vec<Arc<Region>> = shared.iter().map(|s| Arc::clone(s.region())).collect();
        let mem = Arc::new(MemoryMap::new(regions).expect("a map"));
        let layout = RingLayout::new(size);
        let config = QueueConfig {
            size,
            desc: BASE + layout.desc,
            avail: BASE + layout.avail,
            used: BASE + layout.used,
            indirect: true,
            ..QueueConfig::default()
        };
        Self { shared, mem, config }
    }

    pub(crate) fn device(&self) -> DeviceQueue {
        DeviceQueue::new(Arc::clone(&self.mem), &self.config).expect("a device end")
    }

    pub(crate) fn driver(&self) -> DriverQueue {
        DriverQueue::new(Arc::clone(&self.mem), &self.config, None).expect("a driver end")
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            let view = self.mem.slice(at + i as u64, 1).expect("mapped");
            view.write_from(0, std::slice::from_ref(byte));
        }
    }

    pub(crate) fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        assert!(self.mem.read(at, &mut bytes));
        bytes
    }

    pub(crate) fn read_u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at))
    }

    /// Writes a descriptor to entry `i` of the table at `table`.
    pub(crate) fn table_desc(&self, table: u64, i: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.write(table + 16 * u64::from(i), &bytes);
    }

    pub(crate) fn desc(&self, i: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.table_desc(self.config.desc, i, addr, len, flags, next);
    }

    /// Makes heads available from ring index `from` on.
    pub(crate) fn make_available(&self, from: u16, heads: &[u16]) {
        let mut idx = from;
        for head in heads {
            let slot = u64::from(idx % self.config.size);
            self.write(self.config.avail + 4 + 2 * slot, &head.to_le_bytes());
            idx = idx.wrapping_add(1);
        }
        self.set_avail_idx(idx);
    }

    pub(crate) fn set_avail_flags(&self, flags: u16) {
        self.write(self.config.avail, &flags.to_le_bytes());
    }

    pub(crate) fn set_avail_idx(&self, idx: u16) {
        self.write(self.config.avail + 2, &idx.to_le_bytes());
    }

    pub(crate) fn set_used_event(&self, idx: u16) {
        self.write(
            self.config.avail + 4 + 2 * u64::from(self.config.size),
            &idx.to_le_bytes(),
        );
    }

    pub(crate) fn used_flags(&self) -> u16 {
        self.read_u16(self.config.used)
    }

    pub(crate) fn used_idx(&self) -> u16 {
        self.read_u16(self.config.used + 2)
    }

    pub(crate) fn avail_event(&self) -> u16 {
        self.read_u16(self.config.used + 4 + 8 * u64::from(self.config.size))
    }

    /// The guest address that a pointer into a region stands for.
    pub(crate) fn guest_addr(&self, ptr: *const u8) -> u64 {
        self.mem
            .regions()
            .iter()
            .find_map(|r| {
                let off = (ptr.addr() as u64).checked_sub(r.slice().as_ptr().addr() as u64)?;
                (off < r.len()).then(|| r.guest_addr() + off)
            })
            .expect("a segment lies in a region")
    }
}
