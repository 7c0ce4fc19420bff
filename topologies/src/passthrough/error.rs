//! Why a device could not be prepared or given back.

use sriov::address::Bdf;
use sriov::bind::BindError;
use sriov::create::CreateError;
use sriov::inventory::InventoryError;
use sriov::plan::PlanError;
use sriov::record::RecordError;
use sriov::vf::VfError;

use crate::state::StateError;

/// A device of the host could not be prepared, or not be given back.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The host lacks what it takes.
    #[error("this host cannot give devices to guests: {0}")]
    Host(String),
    /// Its virtual functions are fewer than the lab needs, and others have them.
    #[error(
        "{pf} has {has} virtual functions and the lab needs {needs}; make them first: sriov create {pf} {needs}"
    )]
    TooFew {
        /// The physical function.
        pf: String,
        /// How many it has.
        has: u32,
        /// How many it needs.
        needs: u32,
    },
    /// A physical function without an interface.
    #[error(
        "{0} has no network interface, so its virtual functions cannot be set up: bind it to its own driver first"
    )]
    NoInterface(String),
    /// No such device.
    #[error("there is no PCI device {0} on this host; `sriov list --all` shows what there is")]
    NoDevice(Bdf),
    /// Somebody has it.
    #[error("{bdf} is in use by {command} (pid {pid}); end it first")]
    InUse {
        /// The device.
        bdf: Bdf,
        /// The process's name.
        command: String,
        /// The process.
        pid: u32,
    },
    /// No such physical function.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The virtual functions cannot be shared out as the lab wants.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Virtual functions could not be made or taken away.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// An attribute could not be set.
    #[error(transparent)]
    Vf(#[from] VfError),
    /// A driver could not be changed.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The former driver could not be kept.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The lab's state could not be kept.
    #[error(transparent)]
    State(#[from] StateError),
}
