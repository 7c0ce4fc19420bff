//! Everything that firmware would have put into memory before the kernel starts, and the registers to start it with.
//!
//! ```text
//! 0x0_0500  descriptor table        0x0_6000  PVH start info     0x0_9000  page tables (6 pages)
//! 0x0_7000  zero page (bzImage)     0x2_0000  command line       0xE_0000  ACPI tables
//! 0xF_FFF0  reset vector
//! 0x10_0000 kernel                  … initrd at the top of the RAM that the kernel reaches
//! ```

use std::fs::File;
use std::io::{self, Seek};

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{acpi, layout, power};
use crate::loader::{Kernel, LoadError, LoadedKernel};
use crate::memory::GuestRam;

mod e820;
mod entry;
mod linux64;
mod pvh;

pub use entry::Entry;

/// Where the kernel's command line is.
const CMDLINE: u64 = 0x2_0000;
/// The room there.
const CMDLINE_MAX: usize = 0x1_0000;
/// Where the ACPI tables are.
const ACPI: u64 = 0xe_0000;
const ACPI_END: u64 = 0x10_0000;
/// Where a processor starts after a reset. There is no firmware here, but Linux on a hardware-reduced board resets by
/// jumping to it.
const RESET_VECTOR: u64 = 0xf_fff0;
const PAGE: u64 = 4096;

/// `mov dx, RESET_PORT; mov al, RESET_VALUE; out dx, al; hlt; jmp -3`, in real mode.
const fn reset_stub() -> [u8; 9] {
    let [low, high] = power::RESET_PORT.to_le_bytes();
    [0xba, low, high, 0xb0, power::RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
}

/// Why a guest could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel was refused.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The command line is longer than the kernel takes.
    #[error("command line of {0} bytes refused: this kernel takes {1}; shorten --cmdline")]
    CmdlineTooLong(usize, usize),
    /// The initrd could not be read.
    #[error("initrd refused: {0}; check --initrd")]
    InitrdRead(#[source] io::Error),
    /// The initrd does not fit.
    #[error("initrd of {0} bytes refused: it does not fit between kernel and end of memory; raise --memory")]
    InitrdTooLarge(u64),
    /// A write to guest memory failed.
    #[error("start-up data could not be written to guest memory: {0}; raise --memory")]
    Memory(#[from] GuestMemoryError),
}

/// What to boot. The files stay open, so that a reset finds what the start found.
#[derive(Debug)]
pub struct BootSource {
    /// The kernel.
    pub kernel: Kernel,
    /// The initial RAM disk.
    pub initrd: Option<File>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// Where something was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placed {
    addr: u64,
    len: u64,
}

impl BootSource {
    /// Fills `ram` and says how to enter.
    pub fn prepare(&self, ram: &GuestRam, board: &acpi::Board) -> Result<Entry, BootError> {
        ram.mem
            .write_slice(&acpi::tables(ACPI, board), GuestAddress(ACPI))?;
        ram.mem.write_slice(&reset_stub(), GuestAddress(RESET_VECTOR))?;
        let loaded = self.kernel.load(&ram.mem)?;
        self.write_cmdline(ram, &loaded)?;
        let initrd = self
            .initrd
            .as_ref()
            .map(|file| place_initrd(ram, file, &loaded))
            .transpose()?;
        entry::write_descriptor_table(ram)?;
        match loaded {
            LoadedKernel::Linux64(kernel) => linux64::prepare(ram, &kernel, self.cmdline.len(), initrd),
            LoadedKernel::Pvh(kernel) => pvh::prepare(ram, &kernel, initrd),
        }
    }

    fn write_cmdline(&self, ram: &GuestRam, kernel: &LoadedKernel) -> Result<(), BootError> {
        let max = kernel.cmdline_max().min(CMDLINE_MAX - 1);
        if self.cmdline.len() > max {
            return Err(BootError::CmdlineTooLong(self.cmdline.len(), max));
        }
        ram.mem
            .write_slice(self.cmdline.as_bytes(), GuestAddress(CMDLINE))?;
        Ok(ram
            .mem
            .write_obj(0u8, GuestAddress(CMDLINE + self.cmdline.len() as u64))?)
    }
}

/// As high as the kernel reaches it and memory goes, so that the kernel has room to unpack itself below.
fn place_initrd(ram: &GuestRam, file: &File, kernel: &LoadedKernel) -> Result<Placed, BootError> {
    let len = file.metadata().map_err(BootError::InitrdRead)?.len();
    let low = ram
        .regions
        .iter()
        .filter(|r| r.guest_addr < layout::RAM_BELOW_4G_END);
    let low_end = low.map(|r| r.guest_addr + r.len).max().unwrap_or(0);
    let addr = low_end
        .min(kernel.initrd_end())
        .checked_sub(len)
        .map(|addr| addr / PAGE * PAGE)
        .filter(|addr| *addr >= kernel.end())
        .ok_or(BootError::InitrdTooLarge(len))?;
    let mut file = file.try_clone().map_err(BootError::InitrdRead)?;
    // A reset reads the same file again.
    file.rewind().map_err(BootError::InitrdRead)?;
    let count = usize::try_from(len).map_err(|_| BootError::InitrdTooLarge(len))?;
    ram.mem
        .read_exact_volatile_from(GuestAddress(addr), &mut file, count)?;
    Ok(Placed { addr, len })
}
