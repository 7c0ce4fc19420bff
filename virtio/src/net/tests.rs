//! What a transmitted header may say.

use proptest::prelude::*;

use super::{
    GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, HDR_F_DATA_VALID, HDR_F_NEEDS_CSUM, HEADER_LEN, HeaderError,
    NetHeader,
};
use crate::features::{
    NET_F_CSUM, NET_F_GUEST_CSUM, NET_F_GUEST_ECN, NET_F_GUEST_TSO4, NET_F_GUEST_TSO6, NET_F_GUEST_USO4,
    NET_F_GUEST_USO6, NET_F_HOST_ECN, NET_F_HOST_TSO4, NET_F_HOST_TSO6, NET_F_HOST_USO,
};

const ALL: u64 = NET_F_CSUM | NET_F_HOST_TSO4 | NET_F_HOST_TSO6 | NET_F_HOST_ECN;

fn gso() -> NetHeader {
    NetHeader {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    }
}

#[test]
fn fields_are_where_the_standard_has_them() {
    let bytes = [1, 4, 0x36, 0, 0xa8, 5, 34, 0, 16, 0, 3, 0];
    let header = NetHeader {
        gso_type: GSO_TCPV6,
        num_buffers: 3,
        ..gso()
    };
    assert_eq!(NetHeader::from_bytes(&bytes), header);
    assert_eq!(header.to_bytes(), bytes);
}

#[test]
fn good_headers_are_passed_on_clean() {
    assert_eq!(gso().validate_tx(4000, ALL), Ok(gso()));
    let ecn = NetHeader {
        gso_type: GSO_TCPV6 | GSO_ECN,
        ..gso()
    };
    assert_eq!(ecn.validate_tx(4000, ALL), Ok(ecn));
    // Flags that mean nothing here, and fields that their flags don't ask for, are not handed on.
    let odd = NetHeader {
        flags: 0xfe,
        csum_start: 9999,
        hdr_len: 7,
        num_buffers: 5,
        ..NetHeader::default()
    };
    assert_eq!(odd.validate_tx(60, 0), Ok(NetHeader::default()));
    let valid = NetHeader {
        flags: HDR_F_DATA_VALID,
        ..NetHeader::default()
    };
    assert_eq!(valid.validate_tx(60, ALL), Ok(NetHeader::default()));
    let long = NetHeader {
        hdr_len: 5000,
        ..gso()
    };
    assert_eq!(long.validate_tx(4000, ALL).map(|h| h.hdr_len), Ok(0));
}

fn udp() -> NetHeader {
    NetHeader {
        gso_type: GSO_UDP_L4,
        csum_offset: 6,
        ..gso()
    }
}

#[test]
fn udp_super_frames_need_their_own_bit_and_have_no_ecn() {
    assert_eq!(udp().validate_tx(4000, ALL | NET_F_HOST_USO), Ok(udp()));
    assert_eq!(udp().validate_tx(4000, ALL), Err(HeaderError::GsoType));
    let ecn = NetHeader {
        gso_type: GSO_UDP_L4 | GSO_ECN,
        ..udp()
    };
    assert_eq!(
        ecn.validate_tx(4000, ALL | NET_F_HOST_USO),
        Err(HeaderError::GsoType)
    );
}

#[test]
fn a_header_tells_what_its_frame_needs() {
    let of = |gso_type| {
        let header = NetHeader { gso_type, ..gso() };
        (header.needed_to_receive(), header.needed_to_transmit())
    };
    assert_eq!(of(0), (NET_F_GUEST_CSUM, NET_F_CSUM));
    assert_eq!(
        of(GSO_TCPV4),
        (NET_F_GUEST_CSUM | NET_F_GUEST_TSO4, NET_F_CSUM | NET_F_HOST_TSO4)
    );
    assert_eq!(
        of(GSO_TCPV6 | GSO_ECN),
        (
            NET_F_GUEST_CSUM | NET_F_GUEST_TSO6 | NET_F_GUEST_ECN,
            NET_F_CSUM | NET_F_HOST_TSO6 | NET_F_HOST_ECN
        )
    );
    assert_eq!(
        of(GSO_UDP_L4),
        (
            NET_F_GUEST_CSUM | NET_F_GUEST_USO4 | NET_F_GUEST_USO6,
            NET_F_CSUM | NET_F_HOST_USO
        )
    );
    assert_eq!(NetHeader::default().needed_to_receive(), 0);
    assert_eq!(NetHeader::default().needed_to_transmit(), 0);
}

#[test]
fn bad_headers_are_refused() {
    let refused = |header: NetHeader, features| header.validate_tx(1000, features).unwrap_err();
    assert_eq!(refused(gso(), 0), HeaderError::ChecksumNotNegotiated);
    assert_eq!(refused(gso(), NET_F_CSUM), HeaderError::GsoType);
    assert_eq!(refused(gso(), ALL & !NET_F_HOST_TSO4), HeaderError::GsoType);
    let ecn = NetHeader {
        gso_type: GSO_TCPV4 | GSO_ECN,
        ..gso()
    };
    assert_eq!(refused(ecn, ALL & !NET_F_HOST_ECN), HeaderError::GsoType);
    for gso_type in [GSO_UDP_L4, 2, 3, 0x7f, GSO_ECN] {
        assert_eq!(
            refused(NetHeader { gso_type, ..gso() }, ALL),
            HeaderError::GsoType
        );
    }
    assert_eq!(
        refused(NetHeader { gso_size: 0, ..gso() }, ALL),
        HeaderError::GsoSize
    );
    assert_eq!(
        refused(NetHeader { flags: 0, ..gso() }, ALL),
        HeaderError::GsoWithoutChecksum
    );
    for (csum_start, csum_offset) in [(999, 0), (0, 999), (0xffff, 0xffff), (983, 16)] {
        let header = NetHeader {
            csum_start,
            csum_offset,
            ..gso()
        };
        assert_eq!(refused(header, ALL), HeaderError::ChecksumOutside);
    }
}

proptest! {
    #[test]
    fn whatever_passes_is_safe_to_act_on(bytes: [u8; HEADER_LEN], features: u64, len in 0usize..70_000) {
        let header = NetHeader::from_bytes(&bytes);
        prop_assert_eq!(header.to_bytes(), bytes);
        if let Ok(clean) = header.validate_tx(len, features) {
            if clean.needs_csum() {
                let end = usize::from(clean.csum_start) + usize::from(clean.csum_offset) + 2;
                prop_assert!(end <= len && features & NET_F_CSUM != 0);
            }
            prop_assert!(clean.gso_type == 0 || (clean.gso_size > 0 && clean.needs_csum()));
            prop_assert!(usize::from(clean.hdr_len) <= len);
            prop_assert_eq!(clean.num_buffers, 0);
            prop_assert_eq!(clean.is_plain(), clean == NetHeader::default());
        }
    }
}
