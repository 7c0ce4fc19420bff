//! What a port offers to its front-end: features and the configuration space.

use std::ops::Range;

use virtio::features as f;
use virtio::net::{STATUS_ANNOUNCE, STATUS_LINK_UP};
use virtio::rss;

use crate::control;

/// The most queue pairs of a device.
pub const MAX_QUEUE_PAIRS: u16 = 16;

/// The smallest MTU that a virtio-net device may have.
pub const MIN_MTU: u16 = 68;

/// The size of `struct virtio_net_config` as far as it is filled in here: mac, status, max pairs, mtu; speed and duplex, which
/// are not offered; what receive-side scaling can do.
const CONFIG_FIELDS: usize = 24;

/// Where in it the link state is.
pub(crate) const STATUS: Range<usize> = 6..8;

/// Features that are offered whatever the plane can do: how rings work, not what frames look like.
const RING_FEATURES: u64 = f::VERSION_1
    | f::RING_F_INDIRECT_DESC
    | f::RING_F_EVENT_IDX
    | f::RING_PACKED
    | f::IN_ORDER
    | f::RING_RESET
    | f::VHOST_USER_F_PROTOCOL_FEATURES;

/// Checksum and segmentation offloads, both ways.
pub const OFFLOADS: u64 = f::NET_F_CSUM
    | f::NET_F_GUEST_CSUM
    | f::NET_F_HOST_TSO4
    | f::NET_F_HOST_TSO6
    | f::NET_F_HOST_ECN
    | f::NET_F_GUEST_TSO4
    | f::NET_F_GUEST_TSO6
    | f::NET_F_GUEST_ECN
    | USO;

/// Segmentation of UDP, both ways. Taps know it since Linux 6.2.
pub const USO: u64 = f::NET_F_HOST_USO | f::NET_F_GUEST_USO4 | f::NET_F_GUEST_USO6;

/// Why a port cannot be as configured.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Too few or too many queue pairs.
    #[error("{0} queue pairs refused: a device has 1 to 16; choose a number in that range")]
    QueuePairs(u16),
    /// An MTU that no virtio-net device may have.
    #[error("MTU {0} refused: a virtio-net device needs at least 68; choose 68 to 65535")]
    Mtu(u16),
    /// A group address cannot be a NIC's own.
    #[error("MAC address refused: it is a group address; choose one whose first octet is even")]
    GroupMac,
}

/// The state that the configuration space shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// The link is up.
    pub link_up: bool,
    /// The driver should announce itself.
    pub announce: bool,
}

impl Status {
    fn bits(self) -> u16 {
        let link = if self.link_up { STATUS_LINK_UP } else { 0 };
        link | if self.announce { STATUS_ANNOUNCE } else { 0 }
    }
}

/// One virtio-net device as it is offered to front-ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConfig {
    /// The name in log lines.
    pub name: String,
    /// Queue pairs offered, 1 to 16.
    pub queue_pairs: u16,
    /// The MAC address in the configuration space; `None`: the front-end chooses.
    pub mac: Option<[u8; 6]>,
    /// The MTU in the configuration space; `None`: the driver chooses.
    pub mtu: Option<u16>,
    /// Feature bits that the data plane can serve; bits of the rings themselves are always offered.
    pub features: u64,
    /// The link state until the owner sets another.
    pub link_up: bool,
    /// The device serves the control queue itself, as the virtqueue behind the queue pairs. Not for front-ends that answer it
    /// themselves, as most do: their guests would be offered what nobody does.
    pub control_queue: bool,
}

impl PortConfig {
    /// A port with every feature, one queue pair, and neither MAC nor MTU of its own.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            queue_pairs: 1,
            mac: None,
            mtu: None,
            features: u64::MAX,
            link_up: true,
            control_queue: false,
        }
    }

    /// Check the values against what a device may be.
    pub fn check(&self) -> Result<(), PortError> {
        if !(1..=MAX_QUEUE_PAIRS).contains(&self.queue_pairs) {
            return Err(PortError::QueuePairs(self.queue_pairs));
        }
        if self.mac.is_some_and(|mac| mac[0] & 1 == 1) {
            return Err(PortError::GroupMac);
        }
        match self.mtu {
            Some(mtu) if mtu < MIN_MTU => Err(PortError::Mtu(mtu)),
            _ => Ok(()),
        }
    }

    /// Virtqueues of the device. A control queue that the front-end owns is not counted.
    pub fn vrings(&self) -> u16 {
        self.queue_pairs * 2 + u16::from(self.control_queue)
    }

    /// The feature bits offered to the front-end.
    pub fn offered(&self) -> u64 {
        let mut net = f::NET_F_MRG_RXBUF | f::NET_F_STATUS | f::NET_F_CTRL_VQ | f::NET_F_MQ | OFFLOADS;
        if self.mac.is_some() {
            net |= f::NET_F_MAC;
        }
        if self.mtu.is_some() {
            net |= f::NET_F_MTU;
        }
        if self.control_queue {
            net |= control::FEATURES;
        }
        net &= self.features;
        // A bit is never offered without the one it depends on.
        for (bits, needs) in [
            (f::NET_F_MQ | control::FEATURES, f::NET_F_CTRL_VQ),
            (f::NET_F_CTRL_RX_EXTRA, f::NET_F_CTRL_RX),
            (
                f::NET_F_HOST_TSO4 | f::NET_F_HOST_TSO6 | f::NET_F_HOST_USO,
                f::NET_F_CSUM,
            ),
            (
                f::NET_F_GUEST_TSO4 | f::NET_F_GUEST_TSO6 | f::NET_F_GUEST_USO4 | f::NET_F_GUEST_USO6,
                f::NET_F_GUEST_CSUM,
            ),
            (f::NET_F_HOST_ECN, f::NET_F_HOST_TSO4 | f::NET_F_HOST_TSO6),
            (f::NET_F_GUEST_ECN, f::NET_F_GUEST_TSO4 | f::NET_F_GUEST_TSO6),
        ] {
            if net & needs == 0 {
                net &= !bits;
            }
        }
        RING_FEATURES | net
    }

    /// Whether the front-end may set this MTU.
    pub fn accepts_mtu(&self, mtu: u64) -> Option<u16> {
        let mtu = u16::try_from(mtu).ok()?;
        (MIN_MTU..=self.mtu.unwrap_or(u16::MAX))
            .contains(&mtu)
            .then_some(mtu)
    }

    /// `size` bytes of the configuration space from `offset` on; zero past the fields of this device.
    pub fn config_space(&self, status: Status, offset: usize, size: usize) -> Vec<u8> {
        let mut fields = [0u8; CONFIG_FIELDS];
        fields[..6].copy_from_slice(&self.mac.unwrap_or_default());
        fields[STATUS].copy_from_slice(&status.bits().to_le_bytes());
        fields[8..10].copy_from_slice(&self.queue_pairs.to_le_bytes());
        fields[10..12].copy_from_slice(&self.mtu.unwrap_or_default().to_le_bytes());
        if self.control_queue {
            fields[17] = u8::try_from(rss::KEY_LEN).unwrap_or(u8::MAX);
            let table = u16::try_from(control::MAX_TABLE).unwrap_or(u16::MAX);
            fields[18..20].copy_from_slice(&table.to_le_bytes());
            fields[20..24].copy_from_slice(&rss::SUPPORTED.to_le_bytes());
        }
        fields
            .into_iter()
            .chain(std::iter::repeat(0))
            .skip(offset)
            .take(size)
            .collect()
    }
}

#[cfg(test)]
mod tests;
