//! A disk: virtio-blk on a raw file or block device.
//!
//! Each virtqueue has a thread of its own. It checks requests, hands transfers to an engine, and completes them in
//! whatever order they end:
//!
//! ```text
//!   ring ─► parse, check ─► engine (io_uring, or preadv/pwritev) ─► status byte ─► used ring ─► interrupt
//!                └── GET_ID, DISCARD, WRITE_ZEROES and refusals are answered on the spot ──┘
//! ```

mod disk;
mod engine;
mod request;
mod transfer;
mod uring;
mod worker;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::{VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use disk::Disk;
use worker::Terms;

use super::device::{ActivateError, Activation, ActiveQueue, VirtioDevice};
use super::worker::Worker;

/// The device type number of a block device.
const DEVICE_TYPE: u32 = 2;
/// Virtqueues that a disk may have.
pub const MAX_QUEUES: u16 = 32;
const RING_SIZE: u16 = 256;
/// Bytes of a sector in the protocol, whatever the disk's blocks.
const SECTOR: u64 = 512;
/// Buffers that a request may have besides its header and status.
const SEG_MAX: u32 = RING_SIZE as u32 - 2;
/// Sectors that one `DISCARD` or `WRITE_ZEROES` may name: bounds the time that it keeps its queue.
const MAX_RANGE_SECTORS: u32 = (64 << 20) / 512;
/// Ranges in one `DISCARD` or `WRITE_ZEROES`.
const MAX_RANGES: u32 = 8;
const CONFIG_LEN: usize = 60;
/// Bytes of a serial id.
pub const SERIAL_LEN: usize = 20;

const RO: u64 = 1 << VIRTIO_BLK_F_RO;
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
const MQ: u64 = 1 << VIRTIO_BLK_F_MQ;
const DISCARD: u64 = 1 << VIRTIO_BLK_F_DISCARD;
const WRITE_ZEROES: u64 = 1 << VIRTIO_BLK_F_WRITE_ZEROES;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const COMMON: u64 = 1 << VIRTIO_BLK_F_SEG_MAX
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | 1 << VIRTIO_BLK_F_TOPOLOGY
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_F_RING_RESET
    | FLUSH
    | EVENT_IDX;

/// How transfers are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// `io_uring` where the host allows it, else one by one.
    #[default]
    Auto,
    /// One by one, in the queue's thread.
    Sync,
}

/// How to make a disk.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// The raw file or block device.
    pub path: PathBuf,
    /// The guest may not write to it.
    pub readonly: bool,
    /// Virtqueues; as many as the VM has CPUs serve it best.
    pub queues: u16,
    /// What `GET_ID` answers; 20 bytes at most.
    pub serial: String,
    /// How transfers are made.
    pub engine: EngineKind,
}

impl DiskOptions {
    /// A writable disk with one queue.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            readonly: false,
            queues: 1,
            serial: String::new(),
            engine: EngineKind::Auto,
        }
    }
}

/// Why a disk cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file cannot be opened.
    #[error("disk {}: {source}; check the path and its permissions", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is neither a file nor a block device.
    #[error("disk {} is neither a regular file nor a block device; give a raw image", .0.display())]
    NotADisk(PathBuf),
    /// Somebody else has it.
    #[error(
        "disk {} is in use by another VM; stop that, or give both readonly=on",
        .0.display()
    )]
    InUse(PathBuf),
    /// Less than a sector.
    #[error("disk {} is smaller than a sector; make it larger with `truncate -s SIZE`", .0.display())]
    Empty(PathBuf),
    /// Too many queues, or none.
    #[error("disk {}: {queues} queues are refused; give 1 to {MAX_QUEUES}", path.display())]
    Queues {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        queues: u16,
    },
    /// The serial id is longer than the protocol allows.
    #[error("disk {}: serial id {serial:?} is longer than {SERIAL_LEN} bytes; shorten it", path.display())]
    Serial {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        serial: String,
    },
}

/// A virtio-blk device.
#[derive(Debug)]
pub struct Blk {
    disk: Arc<Disk>,
    engine: EngineKind,
    queue_sizes: Vec<u16>,
    config: [u8; CONFIG_LEN],
    /// Each with the index of its queue.
    workers: Vec<(u16, Worker)>,
    terms: Option<Terms>,
}

impl Blk {
    /// Opens the disk and locks it against other VMs.
    pub fn new(options: DiskOptions) -> Result<Self, DiskError> {
        let DiskOptions {
            path,
            readonly,
            queues,
            serial,
            engine,
        } = options;
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(DiskError::Queues { path, queues });
        }
        if serial.len() > SERIAL_LEN {
            return Err(DiskError::Serial { path, serial });
        }
        let disk = Arc::new(Disk::open(path, readonly, &serial)?);
        let config = config_space(&disk, queues);
        let queue_sizes = vec![RING_SIZE; usize::from(queues)];
        Ok(Self {
            disk,
            engine,
            queue_sizes,
            config,
            workers: Vec::new(),
            terms: None,
        })
    }
}

/// `struct virtio_blk_config`.
fn config_space(disk: &Disk, queues: u16) -> [u8; CONFIG_LEN] {
    let mut config = [0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    let block = disk.block_size();
    let sectors = block / 512;
    put(0, &disk.sectors().to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &512_u32.to_le_bytes());
    // Topology: blocks of the file system below, and that as the best size of a transfer.
    put(24, &[u8::try_from(sectors.ilog2()).unwrap_or(0)]);
    put(26, &u16::try_from(sectors).unwrap_or(1).to_le_bytes());
    put(34, &queues.to_le_bytes());
    put(36, &MAX_RANGE_SECTORS.to_le_bytes());
    put(40, &MAX_RANGES.to_le_bytes());
    put(44, &sectors.to_le_bytes());
    put(48, &MAX_RANGE_SECTORS.to_le_bytes());
    put(52, &MAX_RANGES.to_le_bytes());
    put(56, &[1]);
    config
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let writes = if self.disk.readonly() {
            RO
        } else {
            DISCARD | WRITE_ZEROES
        };
        let queues = if self.queue_sizes.len() > 1 { MQ } else { 0 };
        COMMON | writes | queues
    }

    fn ack_features(&mut self, _features: u64) -> bool {
        true
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let config = self.config.get(offset..).unwrap_or_default();
        let len = data.len().min(config.len());
        data[..len].copy_from_slice(&config[..len]);
    }

    /// The one field that a driver may write is the cache mode, and that is not offered.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            mem,
            queues,
            features,
            config_irq,
        } = activation;
        self.terms = Some(Terms {
            features,
            engine: self.engine,
            disk: Arc::clone(&self.disk),
            mem: Arc::clone(&mem.mem),
            config_irq,
        });
        queues.into_iter().try_for_each(|queue| self.start_queue(queue))
    }

    fn pause(&mut self) {
        self.workers.iter().for_each(|(_, worker)| worker.hold());
    }

    fn resume(&mut self) {
        self.workers.iter().for_each(|(_, worker)| worker.release());
    }

    fn reset(&mut self) {
        // Each worker ends when its last transfer has.
        self.workers.clear();
        self.terms = None;
    }

    fn reset_queue(&mut self, index: u16) {
        // Its last transfer has ended when this returns.
        self.workers.retain(|(of, _)| *of != index);
    }

    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        let Some(terms) = &self.terms else {
            return Err(ActivateError::MissingQueue(queue.index));
        };
        let index = queue.index;
        self.workers.push((index, worker::start(queue, terms.clone())?));
        Ok(())
    }
}
