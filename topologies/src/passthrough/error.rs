//! Why a device could not be prepared or given back.

use sriov::address::Bdf;
use sriov::apply::ApplyError;
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
    /// No such device.
    #[error("there is no PCI device {0} on this host; `sriov list --all` shows what there is")]
    NoDevice(Bdf),
    /// No such physical function.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The virtual functions cannot be shared out as the lab wants.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Virtual functions could not be made, set up, bound or taken away.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The former driver could not be kept.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The lab's state could not be kept.
    #[error(transparent)]
    State(#[from] StateError),
}

impl From<CreateError> for PrepareError {
    fn from(error: CreateError) -> Self {
        ApplyError::from(error).into()
    }
}

impl From<VfError> for PrepareError {
    fn from(error: VfError) -> Self {
        ApplyError::from(error).into()
    }
}

impl From<BindError> for PrepareError {
    fn from(error: BindError) -> Self {
        ApplyError::from(error).into()
    }
}
