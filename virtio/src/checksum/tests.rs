//! Sums against a slow reference, and completions against etherparse.

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::{Checksum, complete, copy_completing};
use crate::memory::{GuestSlice, SharedMemory, read_chain, write_chain};

/// RFC 1071 word for word.
fn reference(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// Cuts a view into pieces of the given lengths.
fn pieces<'a>(mut view: GuestSlice<'a>, lens: &[usize]) -> Vec<GuestSlice<'a>> {
    let mut list = Vec::new();
    for len in lens {
        let (piece, rest) = view.split_at(*len);
        list.push(piece);
        view = rest;
    }
    list.push(view);
    list
}

proptest! {
    #[test]
    fn sums_match_the_reference(data in prop::collection::vec(any::<u8>(), 0..600), cuts in prop::collection::vec(0usize..80, 0..12)) {
        let mut sum = Checksum::new();
        let mut rest = &data[..];
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            sum.add(piece);
            rest = after;
        }
        sum.add(rest);
        prop_assert_eq!(u16::from_be_bytes(sum.finish()), reference(&data));
    }

    #[test]
    fn a_partial_udp_checksum_is_completed(
        payload in prop::collection::vec(any::<u8>(), 0..5000),
        src_cuts in prop::collection::vec(0usize..700, 0..8),
        dst_cuts in prop::collection::vec(0usize..700, 0..8),
    ) {
        let mut whole = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(7, 9)
            .write(&mut whole, &payload).expect("frame");
        // What a driver sends: the pseudo-header's sum in the checksum field.
        let mut partial = whole.clone();
        let udp_len = u16::try_from(8 + payload.len()).expect("fits");
        let mut pseudo = Checksum::new();
        pseudo.add(&[10, 0, 0, 1, 10, 0, 0, 2]);
        pseudo.add_word(17);
        pseudo.add_word(udp_len);
        partial[40..42].copy_from_slice(&pseudo.partial());

        let mut in_place = partial.clone();
        prop_assert!(complete(&mut in_place, 34, 6));
        prop_assert_eq!(&in_place, &whole);

        let shared = SharedMemory::new("checksum", 0, 65536).expect("shared memory");
        let (from, to) = shared.region().slice().split_at(32768);
        let (src, dst) = (pieces(from, &src_cuts), pieces(to, &dst_cuts));
        write_chain(&src, 12, &partial);
        prop_assert!(copy_completing(&src, 12, &dst, 3, partial.len(), 34, 6));
        let mut got = vec![0; whole.len()];
        read_chain(&dst, 3, &mut got);
        prop_assert_eq!(&got, &whole);
        let parsed = SlicedPacket::from_ethernet(&got).expect("valid");
        prop_assert!(matches!(parsed.transport, Some(TransportSlice::Udp(_))));
    }
}

#[test]
fn a_field_outside_the_frame_is_refused() {
    let shared = SharedMemory::new("checksum", 0, 4096).expect("shared memory");
    let (from, to) = shared.region().slice().split_at(2048);
    for (start, offset) in [(59, 0), (0, 59), (u16::MAX, u16::MAX), (61, 6)] {
        assert!(!complete(&mut [0; 60], start, offset));
        assert!(!copy_completing(&[from], 0, &[to], 0, 60, start, offset));
    }
    assert!(
        !copy_completing(&[from], 0, &[to.take(59)], 0, 60, 34, 6),
        "no room"
    );
    assert!(
        !copy_completing(&[from.take(59)], 0, &[to], 0, 60, 34, 6),
        "cut short"
    );
}

#[test]
fn a_sum_of_zero_is_sent_as_all_ones() {
    let mut frame = [0xff; 4];
    assert!(complete(&mut frame, 0, 0));
    assert_eq!(frame[..2], [0xff; 2]);
}
