//! Frames and their virtio-net headers.

use virtio::checksum::{Checksum, complete};
use virtio::net::{GSO_NONE, HEADER_LEN, NetHeader};
use virtio::segment::{Completion, Segmenter};
use vswitch::frame::Frame;

/// The longest frame of segmentation here: long enough for some hundred segments.
const LONGEST: usize = 8192;

/// The fields that forwarding needs, and the header's check.
///
/// # Panics
/// When something is wrong with what comes of it.
pub fn frame(data: &[u8]) {
    let Some((header, frame)) = data.split_first_chunk::<HEADER_LEN>() else {
        return;
    };
    let parsed = Frame::parse(frame);
    assert_eq!(parsed.is_some(), frame.len() >= 14);
    let header = NetHeader::from_bytes(header);
    assert_eq!(NetHeader::from_bytes(&header.to_bytes()), header);
    for features in [0, u64::MAX] {
        let Ok(clean) = header.validate_tx(frame.len(), features) else {
            continue;
        };
        if clean.needs_csum() {
            assert!(usize::from(clean.csum_start) + usize::from(clean.csum_offset) + 2 <= frame.len());
        }
        assert!(clean.gso_type == GSO_NONE || (features != 0 && clean.gso_size != 0));
        assert!(usize::from(clean.hdr_len) <= frame.len());
    }
}

/// Sums of any parts are the sum of the whole, and a completed checksum is right.
///
/// # Panics
/// When something is wrong with what comes of it.
pub fn checksum(data: &[u8]) {
    let Some((&[start_low, start_high, offset, cut], bytes)) = data.split_first_chunk::<4>() else {
        return;
    };
    let mut whole = Checksum::new();
    whole.add(bytes);
    let mut parts = Checksum::new();
    // Parts of an even length, as all but the last have to be.
    let cut = (usize::from(cut) * 2).min(bytes.len() & !1);
    parts.add(&bytes[..cut]);
    parts.add(&bytes[cut..]);
    assert_eq!(whole.finish(), parts.finish());
    let slow = bytes.chunks(2).fold(0_u32, |sum, pair| {
        let word = u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    });
    let slow = !u16::try_from(slow).expect("folded as it was added");
    assert!(matches!(
        (whole.finish(), slow.to_be_bytes()),
        (a, b) if a == b || [a, b] == [[0, 0], [0xff, 0xff]] || [b, a] == [[0, 0], [0xff, 0xff]]
    ));
    let mut frame = bytes.to_vec();
    let start = u16::from_le_bytes([start_low, start_high]) % 2048;
    let fits = usize::from(start) + usize::from(offset) + 2 <= frame.len();
    let field = usize::from(start) + usize::from(offset);
    if fits {
        frame[field..field + 2].fill(0);
    }
    assert_eq!(complete(&mut frame, start, u16::from(offset)), fits);
    if fits && offset % 2 == 0 {
        let mut sum = Checksum::new();
        sum.add(&frame[usize::from(start)..]);
        assert!(matches!(sum.finish(), [0, 0] | [0xff, 0xff]));
    }
}

/// The segments of a super-frame carry its payload, in order and once.
///
/// # Panics
/// When something is wrong with what comes of it.
pub fn segmentation(data: &[u8]) {
    let Some((header, frame)) = data.split_first_chunk::<HEADER_LEN>() else {
        return;
    };
    let frame = &frame[..frame.len().min(LONGEST)];
    let header = NetHeader::from_bytes(header);
    let Ok(header) = header.validate_tx(frame.len(), u64::MAX) else {
        return;
    };
    let Ok(plan) = Segmenter::new(frame, &header, frame.len()) else {
        return;
    };
    assert!(plan.count() <= frame.len().max(1) && plan.max_frame_len() <= frame.len());
    let memory = crate::rings::scratch();
    memory.write_from(0, frame);
    let source = [memory.take(frame.len())];
    let mut out = vec![0; plan.max_frame_len()];
    for completion in [Completion::Here, Completion::Receiver] {
        let mut frames = plan.frames(&source, 0);
        let mut segments = Vec::new();
        while let Some(len) = frames.write_next_to(&mut out, completion) {
            segments.push(out[..len].to_vec());
        }
        assert_eq!(segments.len(), plan.count());
        let sum: usize = segments.iter().map(Vec::len).sum();
        // All have the same headers, which the super-frame has once.
        let headers = match segments.len() {
            1 => sum - frame.len(),
            count => (sum - frame.len()) / (count - 1),
        };
        if segments.len() > 1 {
            let payload: Vec<u8> = segments.iter().flat_map(|one| one[headers..].to_vec()).collect();
            assert_eq!(payload, frame[headers..], "the payload changed");
        } else {
            assert_eq!(headers, 0, "one segment is as long as the frame");
        }
    }
}
