//! The ACPI tables: what an operating system learns of the board that it cannot find out by looking.
//!
//! The board is "hardware-reduced": no fixed power registers, but sleep and reset registers of its own and a generic
//! event device for the power button. All PCI interrupts are message-signalled.

use std::ops::{Range, RangeInclusive};

use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, sdt::Sdt};

use super::{layout, power};

mod dsdt;
mod numa;
#[cfg(test)]
mod tests;

const OEM: [u8; 6] = *b"NETYRD";
const OEM_TABLE: [u8; 8] = *b"NETYARD ";
const OEM_REVISION: u32 = 1;

/// What the tables depend on.
#[derive(Debug, Clone)]
pub struct Board {
    /// Processors.
    pub cpus: u8,
    /// Window of 64-bit PCI memory.
    pub mmio64: Range<u64>,
    /// True if there is a serial port.
    pub serial: bool,
    /// NUMA nodes; none if the guest need not know of any.
    pub nodes: Vec<Node>,
}

/// A NUMA node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its processors.
    pub cpus: RangeInclusive<u8>,
    /// Its memory.
    pub memory: Vec<Range<u64>>,
}

/// Makes all tables, to be placed at `base`. The first one is the root pointer.
pub fn tables(base: u64, board: &Board) -> Vec<u8> {
    let mut image = Image {
        base,
        bytes: vec![0; Rsdp::len()],
    };

    let dsdt = image.push(&dsdt::build(board));
    let mut entries = vec![
        image.push(&fadt(dsdt)),
        image.push(&madt(board.cpus)),
        image.push(&mcfg()),
    ];
    if !board.nodes.is_empty() {
        entries.push(image.push(&numa::srat(&board.nodes)));
        entries.push(image.push(&numa::slit(&board.nodes)));
    }
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for entry in entries {
        xsdt.add_entry(entry);
    }
    let xsdt = image.push(&xsdt);

    let rsdp = bytes(&Rsdp::new(OEM, xsdt));
    image.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    image.bytes
}

struct Image {
    base: u64,
    bytes: Vec<u8>,
}

impl Image {
    /// Appends a table and tells where it will be.
    fn push(&mut self, table: &dyn Aml) -> u64 {
        let at = self.bytes.len().next_multiple_of(16);
        self.bytes.resize(at, 0);
        table.to_aml_bytes(&mut self.bytes);
        self.base + at as u64
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(port: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        u64::from(port),
    )
}

fn fadt(dsdt: u64) -> impl Aml {
    /// Boot architecture: no VGA, no real-time clock in CMOS; link power management is left alone.
    const NO_VGA: u16 = 1 << 2;
    const NO_ASPM: u16 = 1 << 4;
    const NO_CMOS_RTC: u16 = 1 << 5;
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = (NO_VGA | NO_ASPM | NO_CMOS_RTC).into();
    fadt.reset_reg = port(power::RESET_PORT);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS_PORT);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE).into();
    fadt.finalize()
}

fn madt(cpus: u8) -> MADT {
    let mut madt = MADT::new(
        OEM,
        OEM_TABLE,
        OEM_REVISION,
        LocalInterruptController::Address(layout::LAPIC_BASE),
    );
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    // The id is above all processors' ids, as no processor's may be used.
    madt.add_structure(IoApic::new(u8::MAX, layout::IOAPIC_BASE, 0));
    madt
}

fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM_BASE, 0, 0, layout::ECAM_BUSES - 1);
    mcfg
}

/// A table whose `body` is bytes already.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(signature, 36, revision, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(body);
    table.update_checksum();
    table
}
