//! The guest's physical address map and its ports.
//!
//! ```text
//! 0x0000_0000  start-up data, ACPI tables below 1 MiB, then RAM
//! 0xC000_0000  PCI memory window (512 MiB)
//! 0xE000_0000  PCIe ECAM, bus 0
//! 0xFEC0_0000  I/O APIC          0xFEE0_0000  local APICs
//! 0xFFFB_C000  KVM's own pages
//! 0x1_0000_0000  RAM continues
//! 0x40_0000_0000  64-bit PCI memory window (after the RAM where that is larger)
//! ```

use std::ops::Range;

/// RAM below 4 GiB ends here.
pub const RAM_BELOW_4G_END: u64 = 0xC000_0000;
/// RAM that does not fit below continues here.
pub const RAM_ABOVE_4G_START: u64 = 1 << 32;

/// 32-bit PCI memory window for BARs.
pub const PCI_MMIO32: Range<u64> = 0xC000_0000..0xE000_0000;
/// Where the 64-bit PCI memory window starts unless RAM reaches further.
pub const PCI_MMIO64_START: u64 = 0x40_0000_0000;
/// Length of the 64-bit PCI memory window.
pub const PCI_MMIO64_LEN: u64 = 0x10_0000_0000;

/// `PCIe` enhanced configuration space: 1 MiB for each bus.
pub const ECAM_BASE: u64 = 0xE000_0000;
/// Buses behind the ECAM.
pub const ECAM_BUSES: u8 = 1;
/// Length of the ECAM window.
pub const ECAM_LEN: u64 = (ECAM_BUSES as u64) << 20;

/// The I/O APIC's registers.
pub const IOAPIC_BASE: u32 = 0xFEC0_0000;
/// The local APIC's registers.
pub const LAPIC_BASE: u32 = 0xFEE0_0000;
/// Pages that KVM needs for itself on some processors: identity map, then three pages of task state.
pub const KVM_IDENTITY_MAP: u64 = 0xFFFB_C000;
/// See [`KVM_IDENTITY_MAP`].
pub const KVM_TSS: u64 = KVM_IDENTITY_MAP + 0x1000;

/// First port and interrupt line of the serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// The serial port's interrupt line.
pub const SERIAL_GSI: u32 = 4;

/// I/O ports for BARs, above all that have fixed numbers on a PC.
pub const PCI_PORTS: Range<u64> = 0x1000..0x1_0000;

/// Where the four interrupt pins of PCI functions arrive: lines 16 to 19 of the I/O APIC.
pub const PCI_PIN_GSI: u32 = 16;

/// The window of bus addresses that belongs to 64-bit BARs of a guest with `ram_end` as the end of its RAM.
pub fn pci_mmio64(ram_end: u64) -> Range<u64> {
    let start = ram_end.next_multiple_of(PCI_MMIO64_LEN).max(PCI_MMIO64_START);
    start..start + PCI_MMIO64_LEN
}
