//! What a driver asks of a disk, read once from its buffers and checked.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::disk::Disk;
use super::{DISCARD, MAX_RANGE_SECTORS, MAX_RANGES, SECTOR, WRITE_ZEROES};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

const HEADER_LEN: usize = 16;
const RANGE_LEN: usize = 16;
/// The flag of a `WRITE_ZEROES` range.
const UNMAP: u32 = 1;

/// A request's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoErr = 1,
    Unsupported = 2,
}

/// A piece of guest memory.
pub(super) type Segment = (GuestAddress, u32);

/// Sectors to discard or to make zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) unmap: bool,
}

/// A request that can be carried out as it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    Read { offset: u64, to: Vec<Segment> },
    Write { offset: u64, from: Vec<Segment> },
    Flush,
    GetId { to: Vec<Segment> },
    Discard(Vec<Range>),
    WriteZeroes(Vec<Range>),
}

/// A chain with its place for an answer.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) status: GuestAddress,
    pub(super) request: Result<Request, Status>,
}

/// Reads a chain. `None` if it has no place for an answer, or does not end: it can only be given back.
pub(super) fn parse(
    chain: DescriptorChain<&GuestMemoryMmap>,
    mem: &GuestMemoryMmap,
    disk: &Disk,
    features: u64,
) -> Option<Parsed> {
    let mut readable = Vec::new();
    let mut writable = Vec::new();
    // The iterator stops at a descriptor that it cannot follow; the one before it then still asks for a next.
    let mut open = true;
    let mut ordered = true;
    for descriptor in chain {
        open = descriptor.has_next();
        let segment = (descriptor.addr(), descriptor.len());
        match (descriptor.is_write_only(), descriptor.len()) {
            (_, 0) => {}
            (true, _) => writable.push(segment),
            (false, _) => {
                ordered &= writable.is_empty();
                readable.push(segment);
            }
        }
    }
    if open {
        return None;
    }
    let last = writable.last_mut()?;
    last.1 -= 1;
    let status = GuestAddress(last.0.0.checked_add(u64::from(last.1))?);
    if last.1 == 0 {
        writable.pop();
    }
    let request = if ordered {
        decide(readable, writable, mem, disk, features)
    } else {
        Err(Status::IoErr)
    };
    Some(Parsed { status, request })
}

fn decide(
    mut readable: Vec<Segment>,
    writable: Vec<Segment>,
    mem: &GuestMemoryMmap,
    disk: &Disk,
    features: u64,
) -> Result<Request, Status> {
    let mut header = [0; HEADER_LEN];
    take(&mut readable, mem, &mut header)?;
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let on_writable_disk = if disk.readonly() {
        Err(Status::IoErr)
    } else {
        Ok(())
    };
    match u32::from_le_bytes([t0, t1, t2, t3]) {
        IN => Ok(Request::Read {
            offset: transfer(disk, sector, &writable)?,
            to: writable,
        }),
        OUT => {
            on_writable_disk?;
            Ok(Request::Write {
                offset: transfer(disk, sector, &readable)?,
                from: readable,
            })
        }
        FLUSH => Ok(Request::Flush),
        GET_ID => Ok(Request::GetId { to: writable }),
        TYPE_DISCARD if features & DISCARD != 0 => {
            on_writable_disk?;
            Ok(Request::Discard(ranges(readable, mem, disk, 0)?))
        }
        TYPE_WRITE_ZEROES if features & WRITE_ZEROES != 0 => {
            on_writable_disk?;
            Ok(Request::WriteZeroes(ranges(readable, mem, disk, UNMAP)?))
        }
        _ => Err(Status::Unsupported),
    }
}

/// The file offset of a transfer of whole sectors that the disk has.
fn transfer(disk: &Disk, sector: u64, segments: &[Segment]) -> Result<u64, Status> {
    let len: u64 = segments.iter().map(|(_, len)| u64::from(*len)).sum();
    if !len.is_multiple_of(SECTOR) {
        return Err(Status::IoErr);
    }
    disk.range(sector, len / SECTOR).ok_or(Status::IoErr)
}

fn ranges(
    mut segments: Vec<Segment>,
    mem: &GuestMemoryMmap,
    disk: &Disk,
    known_flags: u32,
) -> Result<Vec<Range>, Status> {
    let len: u64 = segments.iter().map(|(_, len)| u64::from(*len)).sum();
    let count = len / RANGE_LEN as u64;
    if count == 0 || count > u64::from(MAX_RANGES) || !len.is_multiple_of(RANGE_LEN as u64) {
        return Err(Status::IoErr);
    }
    let mut ranges = Vec::new();
    for _ in 0..count {
        let mut bytes = [0; RANGE_LEN];
        take(&mut segments, mem, &mut bytes)?;
        let [s @ .., n0, n1, n2, n3, f0, f1, f2, f3] = bytes;
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        if flags & !known_flags != 0 {
            return Err(Status::Unsupported);
        }
        if sectors > MAX_RANGE_SECTORS {
            return Err(Status::IoErr);
        }
        let offset = disk
            .range(u64::from_le_bytes(s), u64::from(sectors))
            .ok_or(Status::IoErr)?;
        if sectors > 0 {
            ranges.push(Range {
                offset,
                len: u64::from(sectors) * SECTOR,
                unmap: flags & UNMAP != 0,
            });
        }
    }
    Ok(ranges)
}

/// Takes bytes off the front of the segments, however they are cut.
fn take(segments: &mut Vec<Segment>, mem: &GuestMemoryMmap, bytes: &mut [u8]) -> Result<(), Status> {
    let mut filled = 0;
    let mut used_up = 0;
    for (addr, len) in segments.iter_mut() {
        let part = (bytes.len() - filled).min(*len as usize);
        mem.read_slice(&mut bytes[filled..filled + part], *addr)
            .map_err(|_| Status::IoErr)?;
        filled += part;
        // `part` is at most the segment's length, which is a u32.
        *len -= u32::try_from(part).unwrap_or(*len);
        *addr = GuestAddress(addr.0.wrapping_add(part as u64));
        if *len > 0 {
            break;
        }
        used_up += 1;
    }
    segments.drain(..used_up);
    if filled == bytes.len() {
        Ok(())
    } else {
        Err(Status::IoErr)
    }
}
