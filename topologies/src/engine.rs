//! Engines: the virtual machine monitors that run a lab's machines, on the same switches.

mod choose;
mod engines;
mod qemu;
mod vmm;

use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::plan::NodePlan;

pub use choose::{Choice, EngineArg, EngineError, choose, hardware_kvm};
pub use engines::Engines;
pub use qemu::Qemu;
pub use vmm::Vmm;

/// The engines there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Our own `vmm`.
    Vmm,
    /// QEMU, with KVM where hardware backs it and with a software CPU elsewhere.
    Qemu,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vmm => "vmm",
            Self::Qemu => "qemu",
        })
    }
}

/// A virtual machine monitor: says how a machine is started. Everything else about a machine goes by its files and its
/// [`crate::control`] socket.
pub trait Engine: fmt::Debug + Send + Sync {
    /// Which engine this is.
    fn kind(&self) -> EngineKind;

    /// The program.
    fn program(&self) -> &Path;

    /// The arguments that run `node`.
    fn arguments(&self, node: &NodePlan) -> Vec<OsString>;

    /// Whether it forwards a guest's control queue to the switch. One that does not answers it itself.
    fn forwards_control_queue(&self) -> bool {
        false
    }

    /// Whether its process may abort while a guest boots, though neither the guest nor the lab is at fault.
    fn aborts_by_itself(&self) -> bool {
        false
    }
}
