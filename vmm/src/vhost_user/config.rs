//! The configuration space that the guest reads: the back-end's, with our MAC and our link state over it.

/// The fields of `struct virtio_net_config` that a NIC can have here: MAC, status, queue pairs and MTU.
pub(super) const CONFIG_LEN: usize = 12;
/// Speed, duplex and the limits of receive-side scaling: a back-end that serves the control queue has them.
pub(super) const REST_LEN: usize = 12;

/// `VIRTIO_NET_S_LINK_UP`.
pub(super) const LINK_UP: u16 = 1;
/// `VIRTIO_NET_S_ANNOUNCE`.
pub(super) const ANNOUNCE: u16 = 2;

/// The smallest MTU that the standard allows to be offered.
pub(super) const MIN_MTU: u16 = 68;

/// `struct virtio_net_config`, as far as it is offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NetConfig {
    pub(super) mac: [u8; 6],
    pub(super) status: u16,
    pub(super) pairs: u16,
    pub(super) mtu: u16,
    /// What follows, where the back-end has a say in it: what receive-side scaling can do.
    pub(super) rest: [u8; REST_LEN],
}

impl NetConfig {
    pub(super) fn from_bytes(bytes: &[u8; CONFIG_LEN]) -> Self {
        let [m0, m1, m2, m3, m4, m5, s0, s1, p0, p1, t0, t1] = *bytes;
        Self {
            mac: [m0, m1, m2, m3, m4, m5],
            status: u16::from_le_bytes([s0, s1]),
            pairs: u16::from_le_bytes([p0, p1]),
            mtu: u16::from_le_bytes([t0, t1]),
            rest: [0; REST_LEN],
        }
    }

    pub(super) fn to_bytes(self) -> [u8; CONFIG_LEN + REST_LEN] {
        let mut bytes = [0; CONFIG_LEN + REST_LEN];
        bytes[..6].copy_from_slice(&self.mac);
        bytes[6..8].copy_from_slice(&self.status.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.pairs.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.mtu.to_le_bytes());
        bytes[12..].copy_from_slice(&self.rest);
        bytes
    }

    /// Fills `data` from `offset` on; what lies behind the last field reads as zero.
    pub(super) fn read(self, offset: u64, data: &mut [u8]) {
        let bytes = self.to_bytes();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = offset
                .checked_add(i)
                .and_then(|at| bytes.get(at))
                .copied()
                .unwrap_or(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: NetConfig = NetConfig {
        mac: [2, 0, 0, 0, 0, 9],
        status: LINK_UP,
        pairs: 2,
        mtu: 0x05dc,
        rest: [0, 0, 0, 0, 0, 40, 128, 0, 0x3f, 0, 0, 0],
    };

    #[test]
    fn bytes_are_those_of_the_standard() {
        let bytes = CONFIG.to_bytes();
        assert_eq!(bytes[..12], [2, 0, 0, 0, 0, 9, 1, 0, 2, 0, 0xdc, 5]);
        let mut back = NetConfig::from_bytes(bytes.first_chunk().unwrap());
        back.rest.copy_from_slice(&bytes[12..]);
        assert_eq!(back, CONFIG);
    }

    #[test]
    fn a_read_may_start_and_end_anywhere() {
        let mut data = [0xff; 4];
        CONFIG.read(5, &mut data);
        assert_eq!(data, [9, 1, 0, 2]);
        CONFIG.read(10, &mut data);
        assert_eq!(data, [0xdc, 5, 0, 0]);
        CONFIG.read(17, &mut data);
        assert_eq!(data, [40, 128, 0, 0x3f]);
        CONFIG.read(22, &mut data);
        assert_eq!(data, [0; 4]);
        CONFIG.read(u64::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
