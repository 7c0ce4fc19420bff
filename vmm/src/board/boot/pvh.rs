//! Starting an ELF kernel at its PVH entry.

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress};

use super::{ACPI, BootError, CMDLINE, Entry, Placed, e820};
use crate::loader::PvhKernel;
use crate::memory::GuestRam;

const START_INFO: u32 = 0x6000;
const MODULES: u64 = 0x6100;
const MEMORY_MAP: u64 = 0x6200;
const MAGIC: u32 = 0x336e_c578;
/// The version with a memory map.
const VERSION: u32 = 1;

pub(super) fn prepare(
    ram: &GuestRam,
    kernel: &PvhKernel,
    initrd: Option<Placed>,
) -> Result<Entry, BootError> {
    let mut info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        cmdline_paddr: CMDLINE,
        rsdp_paddr: ACPI,
        memmap_paddr: MEMORY_MAP,
        ..Default::default()
    };
    for (at, range) in (MEMORY_MAP..)
        .step_by(size_of::<hvm_memmap_table_entry>())
        .zip(e820::ranges(ram))
    {
        let entry = hvm_memmap_table_entry {
            addr: range.addr,
            size: range.len,
            type_: range.kind,
            reserved: 0,
        };
        ram.mem.write_obj(entry, GuestAddress(at))?;
        info.memmap_entries += 1;
    }
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.addr,
            size: initrd.len,
            ..Default::default()
        };
        ram.mem.write_obj(module, GuestAddress(MODULES))?;
        (info.nr_modules, info.modlist_paddr) = (1, MODULES);
    }
    ram.mem.write_obj(info, GuestAddress(u64::from(START_INFO)))?;
    Ok(Entry::Protected {
        eip: kernel.entry,
        start_info: START_INFO,
    })
}
