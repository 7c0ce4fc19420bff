//! What sits in a slot of the PCI root.

use std::fmt::Debug;

use super::config::{BarMove, ConfigSpace};
use crate::hv::HvError;

/// A PCI function.
///
/// The root calls with its own lock held when configuration space is concerned, and without it when a BAR is read or
/// written. A function therefore never calls the root.
pub trait Function: Debug + Send + Sync {
    /// The configuration space after power-on.
    fn config_space(&self) -> ConfigSpace;

    /// Reads configuration space. For registers whose value is not in `config`.
    fn read_config(&self, config: &mut ConfigSpace, offset: u16, data: &mut [u8]) {
        config.read(offset, data);
    }

    /// Writes configuration space and returns what the root has to do. For registers with a side effect.
    fn write_config(&self, config: &mut ConfigSpace, offset: u16, data: &[u8]) -> Vec<BarMove> {
        config.write(offset, data)
    }

    /// Reads from a BAR. `data` comes zeroed.
    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// Writes to a BAR.
    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]);

    /// `bar` is about to answer at `addr`: registers what bypasses the bus. On failure nothing is registered.
    fn map_bar(&self, bar: u8, addr: u64) -> Result<(), HvError> {
        let _ = (bar, addr);
        Ok(())
    }

    /// `bar` stops answering at `addr`: unregisters what bypasses the bus. Called before the range is given to anyone
    /// else.
    fn unmap_bar(&self, bar: u8, addr: u64) {
        let _ = (bar, addr);
    }

    /// Keeps away from guest memory until `resume`: when this returns, nothing in it changes any more. A function that
    /// does nothing of its own accord has nothing to do here, and a device of the host that only its driver can stop goes on.
    fn pause(&self) {}

    /// Goes on where `pause` stopped.
    fn resume(&self) {}

    /// Back to the state after power-on, and not paused.
    fn reset(&self);
}
