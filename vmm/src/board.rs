//! The x86-64 board: where things are, what a guest is told about them, and how it is started.

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod hot_plug;
pub mod layout;
pub mod power;
