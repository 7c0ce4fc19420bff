//! The file behind a disk.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::PathBuf;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::{DiskError, SECTOR, SERIAL_LEN};

/// An open disk, locked: shared by its readers, or held by one writer.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) file: File,
    path: PathBuf,
    sectors: u64,
    block_size: u32,
    readonly: bool,
    serial: [u8; SERIAL_LEN],
}

/// Written where a file system cannot make zeros by itself.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl Disk {
    pub(super) fn open(path: PathBuf, readonly: bool, serial: &str) -> Result<Self, DiskError> {
        let fail = |source| DiskError::Open {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(!readonly)
            .open(&path)
            .map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(DiskError::NotADisk(path));
        }
        let lock = if readonly {
            file.try_lock_shared()
        } else {
            file.try_lock()
        };
        match lock {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DiskError::InUse(path)),
            Err(TryLockError::Error(e)) => return Err(fail(e)),
        }
        // Block devices have no length of their own: the end is where a seek to it leads.
        let sectors = file.seek(SeekFrom::End(0)).map_err(fail)? / SECTOR;
        if sectors == 0 {
            return Err(DiskError::Empty(path));
        }
        let block = u32::try_from(metadata.blksize()).unwrap_or(4096);
        let block_size = if block.is_power_of_two() {
            block.clamp(512, 65536)
        } else {
            4096
        };
        let mut id = [0; SERIAL_LEN];
        id[..serial.len()].copy_from_slice(serial.as_bytes());
        Ok(Self {
            file,
            path,
            sectors,
            block_size,
            readonly,
            serial: id,
        })
    }

    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    pub(super) fn block_size(&self) -> u32 {
        self.block_size
    }

    pub(super) fn readonly(&self) -> bool {
        self.readonly
    }

    pub(super) fn serial(&self) -> &[u8; SERIAL_LEN] {
        &self.serial
    }

    pub(super) fn path(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// The offset of `count` sectors from `sector`, if the disk has them all.
    pub(super) fn range(&self, sector: u64, count: u64) -> Option<u64> {
        let end = sector.checked_add(count)?;
        // The capacity in bytes is a file's length, so no product below it overflows.
        (end <= self.sectors).then(|| sector * SECTOR)
    }

    /// The guest does not need these bytes any more. A file system that cannot use that loses nothing.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, punch, offset, len) {
            Err(Errno::OPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Makes these bytes zero, `unmap` with their space given back.
    pub(super) fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let how = if unmap {
            FallocateFlags::PUNCH_HOLE
        } else {
            FallocateFlags::ZERO_RANGE
        };
        match rustix::fs::fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, offset, len) {
            Err(Errno::OPNOTSUPP) => {}
            other => return Ok(other?),
        }
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let part = usize::try_from(end - at).unwrap_or(usize::MAX).min(ZEROS.len());
            self.file.write_all_at(&ZEROS[..part], at)?;
            at += part as u64;
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
