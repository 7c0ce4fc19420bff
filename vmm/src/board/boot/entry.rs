//! The registers that a kernel starts with.

use kvm_bindings::{kvm_regs, kvm_segment};
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::hv::HvError;
use crate::hv::vcpu::{Vcpu, msr};
use crate::memory::GuestRam;

const GDT: u64 = 0x500;
/// Selectors are offsets into the table; these are the ones that Linux asks for.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;
const TABLE: [u64; 5] = [
    0,
    0,
    // Code, 64-bit, flat.
    0x00af_9b00_0000_ffff,
    // Data, flat.
    0x00cf_9300_0000_ffff,
    // A busy task of the smallest size: the processor wants one.
    0x0000_8b00_0000_0067,
];

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const FLAGS_RESERVED: u64 = 2;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

/// How to start a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// In 64-bit mode with paging on (Linux boot protocol).
    Long {
        /// First instruction.
        rip: u64,
        /// The top page table.
        page_table: u64,
        /// The zero page.
        boot_params: u64,
    },
    /// In 32-bit protected mode with paging off (PVH).
    Protected {
        /// First instruction.
        eip: u32,
        /// The start info.
        start_info: u32,
    },
}

/// Writes the segment descriptors that both ways of starting use.
pub(super) fn write_descriptor_table(ram: &GuestRam) -> Result<(), BootError> {
    for (at, entry) in (GDT..).step_by(8).zip(TABLE) {
        ram.mem.write_obj(entry, GuestAddress(at))?;
    }
    Ok(())
}

fn segment(selector: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        l: u8::from(long),
        db: u8::from(!long),
        g: 1,
        ..Default::default()
    }
}

impl Entry {
    /// Sets up `vcpu`, in its state after power-on, to start here.
    pub fn apply(&self, vcpu: &Vcpu) -> Result<(), HvError> {
        const READ_EXECUTE: u8 = 0xb;
        const READ_WRITE: u8 = 0x3;
        let long = matches!(self, Self::Long { .. });
        let mut sregs = vcpu.sregs()?;
        sregs.gdt.base = GDT;
        sregs.gdt.limit = u16::try_from(TABLE.len() * 8 - 1).expect("five entries");
        sregs.cs = segment(CODE, READ_EXECUTE, long);
        let data = segment(DATA, READ_WRITE, false);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = kvm_segment {
            selector: TASK,
            type_: 0xb,
            limit: 0x67,
            present: 1,
            ..Default::default()
        };
        let mut regs = kvm_regs {
            rflags: FLAGS_RESERVED,
            ..Default::default()
        };
        match *self {
            Self::Long {
                rip,
                page_table,
                boot_params,
            } => {
                sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
                sregs.cr3 = page_table;
                sregs.cr4 = CR4_PAE;
                sregs.efer = EFER_LME | EFER_LMA;
                regs.rip = rip;
                regs.rsi = boot_params;
            }
            Self::Protected { eip, start_info } => {
                sregs.cr0 = CR0_PE | CR0_ET;
                sregs.cr4 = 0;
                sregs.efer = 0;
                regs.rip = u64::from(eip);
                regs.rbx = u64::from(start_info);
            }
        }
        vcpu.set_registers(&regs, &sregs)?;
        vcpu.set_msrs(&[
            msr(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
            msr(MSR_MTRR_DEFAULT_TYPE, MTRR_ENABLE_WRITE_BACK),
        ])
    }
}
