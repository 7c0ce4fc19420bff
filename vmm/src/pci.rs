//! The PCI root: configuration spaces, BARs and message-signalled interrupts.
//!
//! ```text
//!   ECAM, 0xCF8/0xCFC ──► Root ──► ConfigSpace of the slot ──► Function (side effects)
//!                           │ BarMove: what the write asks for
//!                           ▼
//!                memory bus ──────────────► Function::read_bar, write_bar
//! ```
//!
//! Writes to configuration space return what they ask of the bus, and the root carries it out: no function reaches
//! into a bus. Our own functions interrupt by MSI-X only; those of the host that are passed through have pins, too.

pub mod allocator;
pub mod config;
pub mod config_access;
pub mod function;
pub mod host_bridge;
pub mod msix;
pub mod platform;
pub mod registers;
pub mod root;
#[cfg(test)]
pub(crate) mod testing;

pub use config::{BarKind, BarMove, ConfigSpace, Identity};
pub use function::Function;
pub use platform::{Platform, Vector};
pub use root::{PciError, Root, Windows};
