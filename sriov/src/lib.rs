//! SR-IOV and PCI passthrough on the host's side: physical and virtual functions, IOMMU groups, drivers, and what stands in the way.
//!
//! Everything reads and writes sysfs below a root that the caller may choose, so that a recorded tree serves in tests, and sets the
//! attributes of virtual functions through rtnetlink as `ip link set PF vf N …` does.
#![forbid(unsafe_code)]

pub mod address;
pub mod apply;
pub mod bind;
pub mod capability;
pub mod check;
pub mod cli;
pub mod create;
pub mod declared;
pub mod inventory;
pub mod mac;
pub mod plan;
pub mod record;
pub mod render;
pub mod route;
pub mod settings;
pub mod sysfs;
pub mod users;
pub mod vf;
