//! Which feature bits a vhost-user NIC offers to its guest, and which of them the back-end is told.

use std::fmt;

use virtio_bindings::virtio_config::{
    VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_RSS, VIRTIO_NET_F_STATUS,
};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// vhost-user's own bit: the back-end knows protocol features, and rings start disabled.
pub(super) const PROTOCOL_FEATURES: u64 = 1 << 30;

pub(super) const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
pub(super) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
pub(super) const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
pub(super) const CSUM: u64 = 1 << VIRTIO_NET_F_CSUM;
pub(super) const GUEST_CSUM: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;
pub(super) const MTU: u64 = 1 << VIRTIO_NET_F_MTU;
pub(super) const MAC: u64 = 1 << VIRTIO_NET_F_MAC;
pub(super) const GUEST_TSO4: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4;
pub(super) const GUEST_TSO6: u64 = 1 << VIRTIO_NET_F_GUEST_TSO6;
pub(super) const GUEST_ECN: u64 = 1 << VIRTIO_NET_F_GUEST_ECN;
pub(super) const HOST_TSO4: u64 = 1 << VIRTIO_NET_F_HOST_TSO4;
pub(super) const HOST_TSO6: u64 = 1 << VIRTIO_NET_F_HOST_TSO6;
pub(super) const HOST_ECN: u64 = 1 << VIRTIO_NET_F_HOST_ECN;
pub(super) const MRG_RXBUF: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
pub(super) const STATUS: u64 = 1 << VIRTIO_NET_F_STATUS;
pub(super) const CTRL_VQ: u64 = 1 << VIRTIO_NET_F_CTRL_VQ;
pub(super) const GUEST_ANNOUNCE: u64 = 1 << VIRTIO_NET_F_GUEST_ANNOUNCE;
pub(super) const MQ: u64 = 1 << VIRTIO_NET_F_MQ;
pub(super) const CTRL_GUEST_OFFLOADS: u64 = 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
pub(super) const CTRL_RX: u64 = 1 << VIRTIO_NET_F_CTRL_RX;
pub(super) const CTRL_VLAN: u64 = 1 << VIRTIO_NET_F_CTRL_VLAN;
pub(super) const CTRL_RX_EXTRA: u64 = 1 << VIRTIO_NET_F_CTRL_RX_EXTRA;
pub(super) const CTRL_MAC_ADDR: u64 = 1 << VIRTIO_NET_F_CTRL_MAC_ADDR;
pub(super) const HASH_REPORT: u64 = 1 << VIRTIO_NET_F_HASH_REPORT;
pub(super) const RSS: u64 = 1 << VIRTIO_NET_F_RSS;
pub(super) const GUEST_USO4: u64 = 1 << VIRTIO_NET_F_GUEST_USO4;
pub(super) const GUEST_USO6: u64 = 1 << VIRTIO_NET_F_GUEST_USO6;
pub(super) const HOST_USO: u64 = 1 << VIRTIO_NET_F_HOST_USO;
pub(super) const RING_PACKED: u64 = 1 << VIRTIO_F_RING_PACKED;
pub(super) const IN_ORDER: u64 = 1 << VIRTIO_F_IN_ORDER;
pub(super) const RING_RESET: u64 = 1 << VIRTIO_F_RING_RESET;

/// UDP segmentation, which came later than TCP's.
const USO: u64 = GUEST_USO4 | GUEST_USO6 | HOST_USO;

const OFFLOADS: u64 =
    CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | HOST_TSO4 | HOST_TSO6 | HOST_ECN;

/// Features whose work the back-end does: the guest may have them only while the back-end offers them.
///
/// Packed rings only where it has us keep what the next one needs, too: a front-end could not say where a back-end that died
/// had got to in one.
pub(super) const BACKEND: u64 = VERSION_1
    | EVENT_IDX
    | INDIRECT_DESC
    | RING_PACKED
    | IN_ORDER
    | RING_RESET
    | MRG_RXBUF
    | MQ
    | MTU
    | OFFLOADS
    | USO;

/// Features of which a back-end does the work that serves the control queue itself.
pub(super) const CONTROL: u64 = CTRL_GUEST_OFFLOADS
    | CTRL_RX
    | CTRL_VLAN
    | CTRL_RX_EXTRA
    | CTRL_MAC_ADDR
    | GUEST_ANNOUNCE
    | HASH_REPORT
    | RSS;

/// What only such a back-end offers; some offer a control queue, and even its receive modes, that they leave to us.
pub(super) const SERVES_CONTROL: u64 = CTRL_VQ | CTRL_MAC_ADDR;

/// Features that the front-end provides by itself, whatever the back-end offers.
pub(super) const FRONTEND: u64 = STATUS | CTRL_VQ | GUEST_ANNOUNCE;

/// What a NIC offers when its guest starts before any back-end was seen: what every vhost-user network
/// back-end in use has, so that whichever comes can serve the guest.
pub(super) const WITHOUT_BACKEND: u64 =
    (BACKEND & !(MTU | GUEST_ECN | HOST_ECN | USO | RING_PACKED | IN_ORDER | RING_RESET)) | FRONTEND;

/// Takes away what cannot stand alone: the standard forbids offering a feature without what it requires.
pub(super) fn with_requirements(mut features: u64) -> u64 {
    let rules = [
        (GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6, GUEST_CSUM),
        (HOST_TSO4 | HOST_TSO6 | HOST_USO, CSUM),
        (GUEST_ECN, GUEST_TSO4 | GUEST_TSO6),
        (HOST_ECN, HOST_TSO4 | HOST_TSO6),
        (MQ | CONTROL, CTRL_VQ),
        (CTRL_RX_EXTRA, CTRL_RX),
    ];
    for (feature, any_of) in rules {
        if features & any_of == 0 {
            features &= !feature;
        }
    }
    features
}

/// Feature bits by their names in the standard, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureNames(pub u64);

const NAMES: [(u64, &str); 31] = [
    (CSUM, "CSUM"),
    (GUEST_CSUM, "GUEST_CSUM"),
    (MTU, "MTU"),
    (MAC, "MAC"),
    (GUEST_TSO4, "GUEST_TSO4"),
    (GUEST_TSO6, "GUEST_TSO6"),
    (GUEST_ECN, "GUEST_ECN"),
    (HOST_TSO4, "HOST_TSO4"),
    (HOST_TSO6, "HOST_TSO6"),
    (HOST_ECN, "HOST_ECN"),
    (MRG_RXBUF, "MRG_RXBUF"),
    (STATUS, "STATUS"),
    (CTRL_VQ, "CTRL_VQ"),
    (GUEST_ANNOUNCE, "GUEST_ANNOUNCE"),
    (MQ, "MQ"),
    (GUEST_USO4, "GUEST_USO4"),
    (GUEST_USO6, "GUEST_USO6"),
    (HOST_USO, "HOST_USO"),
    (INDIRECT_DESC, "INDIRECT_DESC"),
    (EVENT_IDX, "EVENT_IDX"),
    (VERSION_1, "VERSION_1"),
    (RING_PACKED, "RING_PACKED"),
    (IN_ORDER, "IN_ORDER"),
    (RING_RESET, "RING_RESET"),
    (CTRL_GUEST_OFFLOADS, "CTRL_GUEST_OFFLOADS"),
    (CTRL_RX, "CTRL_RX"),
    (CTRL_VLAN, "CTRL_VLAN"),
    (CTRL_RX_EXTRA, "CTRL_RX_EXTRA"),
    (CTRL_MAC_ADDR, "CTRL_MAC_ADDR"),
    (HASH_REPORT, "HASH_REPORT"),
    (RSS, "RSS"),
];

impl fmt::Display for FeatureNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        let mut separator = "";
        for (bit, name) in NAMES {
            if rest & bit != 0 {
                write!(f, "{separator}{name}")?;
                separator = ", ";
                rest &= !bit;
            }
        }
        if rest != 0 {
            write!(f, "{separator}{rest:#x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_without_what_it_requires_is_not_offered() {
        assert_eq!(with_requirements(GUEST_TSO4 | GUEST_ECN), 0);
        assert_eq!(with_requirements(GUEST_USO4 | GUEST_USO6 | HOST_USO), 0);
        assert_eq!(with_requirements(CSUM | HOST_USO), CSUM | HOST_USO);
        assert_eq!(
            with_requirements(HOST_TSO6 | HOST_ECN | CSUM),
            HOST_TSO6 | HOST_ECN | CSUM
        );
        assert_eq!(with_requirements(MQ | GUEST_ANNOUNCE | STATUS), STATUS);
        assert_eq!(with_requirements(WITHOUT_BACKEND), WITHOUT_BACKEND);
    }

    #[test]
    fn names_are_the_standards() {
        assert_eq!(
            FeatureNames(MQ | HOST_USO | EVENT_IDX | 1 << 61).to_string(),
            "MQ, HOST_USO, EVENT_IDX, 0x2000000000000000"
        );
    }
}
