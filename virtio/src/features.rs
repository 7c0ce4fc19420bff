//! Feature bits (VIRTIO 1.3 §5.1.3 and §6), as masks.

/// Device completes partial checksums.
pub const NET_F_CSUM: u64 = 1 << 0;
/// Driver handles packets with partial checksums.
pub const NET_F_GUEST_CSUM: u64 = 1 << 1;
/// The driver may change receive offloads through the control queue.
pub const NET_F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// The device gives a maximum MTU.
pub const NET_F_MTU: u64 = 1 << 3;
/// The device gives a MAC address.
pub const NET_F_MAC: u64 = 1 << 5;
/// Driver can receive TCP super-frames over IPv4.
pub const NET_F_GUEST_TSO4: u64 = 1 << 7;
/// Driver can receive TCP super-frames over IPv6.
pub const NET_F_GUEST_TSO6: u64 = 1 << 8;
/// Driver can receive TSO with ECN.
pub const NET_F_GUEST_ECN: u64 = 1 << 9;
/// Driver can receive UFO.
pub const NET_F_GUEST_UFO: u64 = 1 << 10;
/// Device can receive TCP super-frames over IPv4.
pub const NET_F_HOST_TSO4: u64 = 1 << 11;
/// Device can receive TCP super-frames over IPv6.
pub const NET_F_HOST_TSO6: u64 = 1 << 12;
/// Device can receive TSO with ECN.
pub const NET_F_HOST_ECN: u64 = 1 << 13;
/// Device can receive UFO.
pub const NET_F_HOST_UFO: u64 = 1 << 14;
/// Driver can merge receive buffers.
pub const NET_F_MRG_RXBUF: u64 = 1 << 15;
/// The configuration has a status field.
pub const NET_F_STATUS: u64 = 1 << 16;
/// There is a control queue.
pub const NET_F_CTRL_VQ: u64 = 1 << 17;
/// Control queue: receive modes.
pub const NET_F_CTRL_RX: u64 = 1 << 18;
/// Control queue: VLAN filtering.
pub const NET_F_CTRL_VLAN: u64 = 1 << 19;
/// Control queue: extra receive modes.
pub const NET_F_CTRL_RX_EXTRA: u64 = 1 << 20;
/// Driver can send gratuitous packets.
pub const NET_F_GUEST_ANNOUNCE: u64 = 1 << 21;
/// Several queue pairs.
pub const NET_F_MQ: u64 = 1 << 22;
/// The MAC address may be set through the control queue.
pub const NET_F_CTRL_MAC_ADDR: u64 = 1 << 23;
/// Driver can receive UDP super-frames over IPv4.
pub const NET_F_GUEST_USO4: u64 = 1 << 54;
/// Driver can receive UDP super-frames over IPv6.
pub const NET_F_GUEST_USO6: u64 = 1 << 55;
/// Device can receive UDP super-frames over IPv4 and IPv6.
pub const NET_F_HOST_USO: u64 = 1 << 56;
/// The device reports a per-packet hash.
pub const NET_F_HASH_REPORT: u64 = 1 << 57;
/// The driver gives an exact header length.
pub const NET_F_GUEST_HDRLEN: u64 = 1 << 59;
/// Receive-side scaling.
pub const NET_F_RSS: u64 = 1 << 60;
/// The device reports coalesced segments.
pub const NET_F_RSC_EXT: u64 = 1 << 61;
/// The device is a standby for another with the same MAC.
pub const NET_F_STANDBY: u64 = 1 << 62;
/// The device reports speed and duplex.
pub const NET_F_SPEED_DUPLEX: u64 = 1 << 63;

/// Chains may use indirect descriptor tables.
pub const RING_F_INDIRECT_DESC: u64 = 1 << 28;
/// `used_event` and `avail_event` suppress notifications.
pub const RING_F_EVENT_IDX: u64 = 1 << 29;
/// vhost-user: the back-end has protocol features (not seen by the guest).
pub const VHOST_USER_F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// Compliance with VIRTIO 1.0 or later.
pub const VERSION_1: u64 = 1 << 32;
/// The device's access to memory is translated by the platform.
pub const ACCESS_PLATFORM: u64 = 1 << 33;
/// Packed virtqueues.
pub const RING_PACKED: u64 = 1 << 34;
/// Buffers are used in the order in which they were made available.
pub const IN_ORDER: u64 = 1 << 35;
/// Memory accesses are ordered as the platform says.
pub const ORDER_PLATFORM: u64 = 1 << 36;
/// The device supports single-root I/O virtualization.
pub const SR_IOV: u64 = 1 << 37;
/// Notifications carry extra data.
pub const NOTIFICATION_DATA: u64 = 1 << 38;
/// Virtqueues can be reset one by one.
pub const RING_RESET: u64 = 1 << 40;
