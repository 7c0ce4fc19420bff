//! A disk through its rings, compared with the file behind it.

mod commands;
mod hostile;

use std::io::Write;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress};

use super::{Blk, DiskOptions, EngineKind};
use crate::virtio::device::VirtioDevice;
use crate::virtio::test_driver::Guest;

const SECTORS: u64 = 2048;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const UNTOUCHED: u8 = 0xee;

/// Where a request's parts lie, from the start of its queue's buffers.
const STATUS: u64 = 0x800;
const DATA: u64 = 0x1000;

/// A disk, its file and its driver.
struct Rig {
    blk: Blk,
    guest: Guest,
    file: tempfile::NamedTempFile,
    done: Vec<u16>,
}

/// Both engines, for tests that are run with each.
const ENGINES: [EngineKind; 2] = [EngineKind::Auto, EngineKind::Sync];

/// What the file holds at first: every sector differs.
fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from((i / 512 * 7 + i % 251) % 256).unwrap())
        .collect()
}

impl Rig {
    fn new(engine: EngineKind) -> Self {
        Self::with(engine, |_| ())
    }

    fn with(engine: EngineKind, change: impl FnOnce(&mut DiskOptions)) -> Self {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&pattern(usize::try_from(SECTORS * 512).unwrap()))
            .unwrap();
        let mut options = DiskOptions {
            engine,
            serial: "disk-0".to_owned(),
            ..DiskOptions::new(file.path())
        };
        change(&mut options);
        let mut blk = Blk::new(options).unwrap();
        let queues = u16::try_from(blk.queue_max_sizes().len()).unwrap();
        let mut guest = Guest::new(queues);
        let features = blk.features();
        blk.activate(guest.activation(features)).unwrap();
        Self {
            blk,
            guest,
            file,
            done: vec![0; usize::from(queues)],
        }
    }

    fn buffer(&self, queue: usize) -> u64 {
        self.guest.queues[queue].buffer()
    }

    fn write_guest(&self, at: u64, bytes: &[u8]) {
        self.guest.ram.mem.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn read_guest(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.guest
            .ram
            .mem
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    fn header(&self, queue: usize, kind: u32, sector: u64) -> (u64, u32, bool) {
        let at = self.buffer(queue);
        self.write_guest(
            at,
            &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat(),
        );
        (at, 16, false)
    }

    /// Posts a chain and waits for it; returns the length used and the status.
    fn post(&mut self, queue: usize, chain: &[(u64, u32, bool)]) -> (u32, u8) {
        let status = self.buffer(queue) + STATUS;
        self.write_guest(status, &[UNTOUCHED]);
        self.guest.queues[queue].post(chain);
        self.done[queue] += 1;
        let (_, len) = self.guest.queues[queue].wait_used(self.done[queue]);
        (len, self.read_guest(status, 1)[0])
    }

    /// A request as drivers make it: header, data, status.
    fn request(&mut self, kind: u32, sector: u64, data: Option<(u32, bool)>) -> (u32, u8) {
        let at = self.buffer(0);
        let mut chain = vec![self.header(0, kind, sector)];
        chain.extend(data.map(|(len, writable)| (at + DATA, len, writable)));
        chain.push((at + STATUS, 1, true));
        self.post(0, &chain)
    }

    fn read(&mut self, sector: u64, len: u32) -> Vec<u8> {
        assert_eq!(self.request(IN, sector, Some((len, true))), (len + 1, OK));
        self.read_guest(self.buffer(0) + DATA, len as usize)
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) {
        self.write_guest(self.buffer(0) + DATA, bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        assert_eq!(self.request(OUT, sector, Some((len, false))), (1, OK));
    }

    /// `DISCARD` or `WRITE_ZEROES` of `(sector, count, flags)`.
    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let bytes: Vec<u8> = ranges
            .iter()
            .flat_map(|(sector, count, flags)| {
                [
                    &sector.to_le_bytes()[..],
                    &count.to_le_bytes(),
                    &flags.to_le_bytes(),
                ]
                .concat()
            })
            .collect();
        self.write_guest(self.buffer(0) + DATA, &bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        self.request(kind, 0, Some((len, false))).1
    }

    fn on_disk(&self, sector: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file
            .as_file()
            .read_exact_at(&mut bytes, sector * 512)
            .unwrap();
        bytes
    }
}
