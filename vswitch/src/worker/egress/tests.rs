//! Writing to a tap whose kernel lacks an offload, with a datagram socket in its place: a frame for each message.

use std::os::unix::net::UnixDatagram;

use vhost_net_backend::tap::Tap;
use virtio::checksum::{Checksum, complete};
use virtio::features as f;
use virtio::memory::SharedMemory;
use virtio::net::{GSO_UDP_L4, HDR_F_NEEDS_CSUM, NetHeader};

use super::*;

/// A UDP datagram over IPv4 to be segmented, behind its virtio-net header.
fn super_frame(payload: u16, size: u16) -> Vec<u8> {
    let header = NetHeader {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        gso_size: size,
        csum_start: 34,
        csum_offset: 6,
        ..NetHeader::default()
    };
    let mut frame = header.to_bytes().to_vec();
    frame.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0]);
    frame.extend((payload + 28).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 7, 0, 9]);
    frame.extend((payload + 8).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend((0..payload).map(|at| u8::try_from(at % 251).unwrap()));
    frame
}

#[test]
fn a_tap_without_udp_segmentation_gets_the_frames_that_a_datagram_stands_for() {
    let (near, far) = UnixDatagram::pair().unwrap();
    let tap = Tap::take_over("tap", vec![near.into()]).into_queues().remove(0);
    let bytes = super_frame(5000, 1400);
    let memory = SharedMemory::new("guest", 0, 1 << 16).unwrap();
    let slice = memory.region().slice().take(bytes.len());
    slice.write_from(0, &bytes);
    let mut frame = Examined::empty();
    frame
        .take_piece(
            slice.take(bytes.len()),
            f::NET_F_CSUM | f::NET_F_HOST_USO,
            1500,
            Examined::usual(1500),
        )
        .unwrap();
    let mut scratch = Vec::new();
    assert_eq!(
        segments_to_tap(&frame, &[slice], &tap, &mut scratch, 1400),
        Err(DropReason::Oversize)
    );
    assert_eq!(segments_to_tap(&frame, &[slice], &tap, &mut scratch, 1518), Ok(4));
    let mut payload = Vec::new();
    for _ in 0..4 {
        let mut got = vec![0; 2000];
        let len = far.recv(&mut got).unwrap();
        let header = NetHeader::from_bytes(got.first_chunk().unwrap());
        assert_eq!((header.flags, header.gso_type), (HDR_F_NEEDS_CSUM, 0));
        let frame = &mut got[HEADER_LEN..len];
        assert!(complete(frame, header.csum_start, header.csum_offset));
        let mut sum = Checksum::new();
        sum.add(&frame[26..34]);
        sum.add(&[0, 17]);
        sum.add(&frame[38..40]);
        sum.add(&frame[34..]);
        assert_eq!(sum.finish(), [0, 0]);
        payload.extend_from_slice(&frame[42..]);
    }
    assert_eq!(payload, bytes[HEADER_LEN + 42..]);
}
