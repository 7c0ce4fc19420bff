use virtio::net::{GSO_TCPV4, HDR_F_NEEDS_CSUM};

use super::*;

#[test]
fn a_header_with_offloads_that_the_driver_lacks_is_not_handed_on() {
    let csum = NetHeader {
        flags: HDR_F_NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::default()
    };
    let gso = NetHeader {
        gso_type: GSO_TCPV4,
        gso_size: 1448,
        ..csum
    };
    assert_eq!(clean(&csum, 100, as_host(0)), None);
    assert_eq!(clean(&csum, 100, as_host(f::NET_F_GUEST_CSUM)), Some(csum));
    assert_eq!(clean(&gso, 4000, as_host(f::NET_F_GUEST_CSUM)), None);
    assert_eq!(
        clean(&gso, 4000, as_host(f::NET_F_GUEST_CSUM | f::NET_F_GUEST_TSO4)),
        Some(gso)
    );
}

#[test]
fn a_checksum_known_to_be_good_stays_known() {
    let valid = NetHeader {
        flags: HDR_F_DATA_VALID,
        ..NetHeader::default()
    };
    assert_eq!(clean(&valid, 60, 0), Some(valid));
}
