//! `sriov`, and labs with devices of the host, on NICs and an IOMMU that do what real ones do: those of the emulated host.

mod functions;
mod labs;
mod lacks;
mod machine;
mod pages;

/// A NIC with virtual functions.
const PF: &str = "0000:01:00.0";
const VFS: [&str; 2] = ["0000:01:10.0", "0000:01:10.2"];
/// A NIC without virtual functions, alone in its group.
const NIC: &str = "0000:02:00.0";
/// Two functions of one device in one IOMMU group.
const PAIR: [&str; 2] = ["0000:04:00.0", "0000:04:00.1"];
/// Two conventional PCI NICs behind one bridge.
const BRIDGE: &str = "0000:05:00.0";
const BRIDGED: [&str; 2] = ["0000:06:01.0", "0000:06:02.0"];
