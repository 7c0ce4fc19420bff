//! Starting a bzImage by the 64-bit boot protocol of Linux.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress};

use super::{ACPI, BootError, CMDLINE, Entry, Placed, e820};
use crate::loader::Linux64Kernel;
use crate::memory::GuestRam;

const ZERO_PAGE: u64 = 0x7000;
const PAGE_TABLES: u64 = 0x9000;
/// The protocol's number for a loader without one.
const LOADER_UNDEFINED: u8 = 0xff;

pub(super) fn prepare(
    ram: &GuestRam,
    kernel: &Linux64Kernel,
    cmdline_len: usize,
    initrd: Option<Placed>,
) -> Result<Entry, BootError> {
    let mut params = boot_params {
        hdr: kernel.header,
        acpi_rsdp_addr: ACPI,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = below_4g(CMDLINE);
    params.hdr.cmdline_size = u32::try_from(cmdline_len).unwrap_or(u32::MAX);
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = below_4g(initrd.addr);
        params.hdr.ramdisk_size = below_4g(initrd.len);
    }
    let ranges = e820::ranges(ram);
    for (slot, range) in params.e820_table.iter_mut().zip(&ranges) {
        *slot = boot_e820_entry {
            addr: range.addr,
            size: range.len,
            r#type: range.kind,
        };
    }
    params.e820_entries = u8::try_from(ranges.len()).expect("a handful of ranges");
    ram.mem.write_obj(params, GuestAddress(ZERO_PAGE))?;
    write_page_tables(ram)?;
    Ok(Entry::Long {
        rip: kernel.entry,
        page_table: PAGE_TABLES,
        boot_params: ZERO_PAGE,
    })
}

/// Everything that is handed over by a 32-bit field lies in the RAM below the PCI window.
fn below_4g(value: u64) -> u32 {
    u32::try_from(value).expect("below 4 GiB")
}

/// Maps the first 4 GiB to themselves, in pages of 2 MiB.
fn write_page_tables(ram: &GuestRam) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const DIRECTORIES: u64 = 4;
    let pointers = PAGE_TABLES + 0x1000;
    let directories = pointers + 0x1000;
    ram.mem
        .write_obj(pointers | PRESENT_WRITABLE, GuestAddress(PAGE_TABLES))?;
    let mut table = Vec::with_capacity(0x1000 * 4);
    for directory in 0..DIRECTORIES {
        let entry = (directories + directory * 0x1000) | PRESENT_WRITABLE;
        ram.mem.write_obj(entry, GuestAddress(pointers + directory * 8))?;
        for page in 0..512 {
            let addr = (directory * 512 + page) << 21;
            table.extend_from_slice(&(addr | LARGE | PRESENT_WRITABLE).to_le_bytes());
        }
    }
    Ok(ram.mem.write_slice(&table, GuestAddress(directories))?)
}
