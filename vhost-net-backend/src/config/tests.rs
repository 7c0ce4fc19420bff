use super::*;

const UP: Status = Status {
    link_up: true,
    announce: false,
};

#[test]
fn the_default_port_offers_what_the_device_serves() {
    let port = PortConfig {
        mac: Some([2, 0, 0, 0, 0, 1]),
        mtu: Some(1500),
        ..PortConfig::new("p")
    };
    let offered = port.offered();
    for bit in [
        f::VERSION_1,
        f::NET_F_MRG_RXBUF,
        f::NET_F_MQ,
        f::NET_F_MAC,
        f::NET_F_MTU,
        f::NET_F_STATUS,
        f::NET_F_HOST_TSO6,
        f::NET_F_HOST_USO,
        f::NET_F_GUEST_USO4,
        f::NET_F_GUEST_USO6,
        f::RING_PACKED,
        f::IN_ORDER,
        f::RING_RESET,
        f::VHOST_USER_F_PROTOCOL_FEATURES,
    ] {
        assert_ne!(offered & bit, 0, "bit {bit:#x}");
    }
    assert_eq!(PortConfig::new("p").offered() & (f::NET_F_MAC | f::NET_F_MTU), 0);
}

#[test]
fn a_bit_is_not_offered_without_the_one_it_needs() {
    let no_csum = PortConfig {
        features: !f::NET_F_CSUM,
        ..PortConfig::new("p")
    };
    let host = f::NET_F_HOST_TSO4 | f::NET_F_HOST_TSO6 | f::NET_F_HOST_ECN | f::NET_F_HOST_USO;
    assert_eq!(no_csum.offered() & host, 0);
    let no_ctrl = PortConfig {
        features: !f::NET_F_CTRL_VQ,
        ..PortConfig::new("p")
    };
    assert_eq!(no_ctrl.offered() & f::NET_F_MQ, 0);
}

#[test]
fn the_configuration_space_can_be_read_in_any_window() {
    let port = PortConfig {
        mac: Some([2, 1, 2, 3, 4, 5]),
        mtu: Some(9000),
        queue_pairs: 4,
        ..PortConfig::new("p")
    };
    assert_eq!(
        port.config_space(UP, 0, 14),
        [2, 1, 2, 3, 4, 5, 1, 0, 4, 0, 0x28, 0x23, 0, 0]
    );
    assert_eq!(port.config_space(Status::default(), 6, 2), [0, 0]);
    assert_eq!(port.config_space(UP, 4000, 3), [0, 0, 0]);
}

#[test]
fn values_out_of_range_are_refused() {
    let port = PortConfig::new("p");
    assert_eq!(
        PortConfig {
            queue_pairs: 0,
            ..port.clone()
        }
        .check(),
        Err(PortError::QueuePairs(0))
    );
    assert_eq!(
        PortConfig {
            queue_pairs: 17,
            ..port.clone()
        }
        .check(),
        Err(PortError::QueuePairs(17))
    );
    assert_eq!(
        PortConfig {
            mtu: Some(67),
            ..port.clone()
        }
        .check(),
        Err(PortError::Mtu(67))
    );
    assert_eq!(
        PortConfig {
            mac: Some([1, 0, 0, 0, 0, 0]),
            ..port.clone()
        }
        .check(),
        Err(PortError::GroupMac)
    );
    assert_eq!(port.check(), Ok(()));
}

#[test]
fn an_mtu_is_accepted_up_to_the_ports_own() {
    let port = PortConfig {
        mtu: Some(1500),
        ..PortConfig::new("p")
    };
    assert_eq!(port.accepts_mtu(1500), Some(1500));
    for refused in [0, 67, 1501, 1 << 16, u64::MAX] {
        assert_eq!(port.accepts_mtu(refused), None, "{refused}");
    }
    assert_eq!(PortConfig::new("p").accepts_mtu(65535), Some(65535));
}
