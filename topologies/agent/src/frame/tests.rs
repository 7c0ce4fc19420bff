use proptest::prelude::*;

use super::*;

const KINDS: [Kind; 13] = [
    Kind::Hello,
    Kind::Exec,
    Kind::Stdin,
    Kind::StdinEof,
    Kind::Resize,
    Kind::Signal,
    Kind::Ping,
    Kind::Stdout,
    Kind::Stderr,
    Kind::Exit,
    Kind::Pong,
    Kind::StdinTaken,
    Kind::Refused,
];

fn any_frame() -> impl Strategy<Value = Frame> {
    (
        prop::sample::select(KINDS.to_vec()),
        prop::collection::vec(any::<u8>(), 0..600),
    )
        .prop_map(|(kind, payload)| Frame { kind, payload })
}

fn encoded(frames: &[Frame]) -> Vec<u8> {
    let mut out = Vec::new();
    for frame in frames {
        encode(&mut out, frame.kind, &frame.payload);
    }
    out
}

/// Push `bytes` in pieces of `piece` and return the frames and whether an error was seen.
fn decode(decoder: &mut Decoder, bytes: &[u8], piece: usize) -> (Vec<Frame>, bool) {
    let mut frames = Vec::new();
    let mut failed = false;
    for chunk in bytes.chunks(piece) {
        decoder.push(chunk);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => failed = true,
            }
        }
    }
    (frames, failed)
}

proptest! {
    #[test]
    fn frames_survive_any_cutting(frames in prop::collection::vec(any_frame(), 0..12), piece in 1usize..900) {
        let (got, failed) = decode(&mut Decoder::new(), &encoded(&frames), piece);
        prop_assert!(!failed);
        prop_assert_eq!(got, frames);
    }

    #[test]
    fn filler_between_frames_is_skipped(frames in prop::collection::vec(any_frame(), 1..6), filler in 0usize..40) {
        let mut bytes = Vec::new();
        for frame in &frames {
            bytes.extend(std::iter::repeat_n(0, filler));
            encode(&mut bytes, frame.kind, &frame.payload);
        }
        let (got, failed) = decode(&mut Decoder::new(), &bytes, 7);
        prop_assert!(!failed);
        prop_assert_eq!(got, frames);
    }

    #[test]
    fn noise_never_panics_nor_grows_without_bound(noise in prop::collection::vec(any::<u8>(), 0..4000), piece in 1usize..700) {
        let mut decoder = Decoder::new();
        decode(&mut decoder, &noise, piece);
        prop_assert!(decoder.bytes.len() <= HEADER + MAX_PAYLOAD + piece);
    }

    #[test]
    fn a_flush_brings_the_decoder_back_after_any_noise(
        noise in prop::collection::vec(any::<u8>(), 0..2000),
        frame in any_frame(),
        piece in 1usize..5000,
    ) {
        let mut decoder = Decoder::new();
        decode(&mut decoder, &noise, piece);
        decode(&mut decoder, &vec![0; FLUSH], piece);
        let (got, failed) = decode(&mut decoder, &encoded(std::slice::from_ref(&frame)), piece);
        prop_assert!(!failed);
        prop_assert_eq!(got, vec![frame]);
    }
}

#[test]
fn a_flush_completes_the_longest_half_sent_frame() {
    let mut decoder = Decoder::new();
    let mut bytes = Vec::new();
    encode(&mut bytes, Kind::Stdin, &vec![7; MAX_PAYLOAD]);
    let (got, _) = decode(&mut decoder, &bytes[..=HEADER], 3);
    assert!(got.is_empty());
    decode(&mut decoder, &vec![0; FLUSH], 1000);
    bytes.clear();
    encode(&mut bytes, Kind::Ping, b"x");
    let (got, failed) = decode(&mut decoder, &bytes, 2);
    assert!(!failed);
    assert_eq!(
        got,
        [Frame {
            kind: Kind::Ping,
            payload: b"x".to_vec()
        }]
    );
}

#[test]
fn a_payload_over_the_limit_is_refused() {
    let mut decoder = Decoder::new();
    decoder.push(&[3, 1, 0, 1, 0]);
    assert_eq!(decoder.next_frame(), Err(FrameError::TooLong(0x1_0001)));
}

#[test]
fn long_streams_go_out_as_several_frames() {
    let stream: Vec<u8> = (0..MAX_PAYLOAD + 10)
        .map(|i| u8::try_from(i % 251).unwrap())
        .collect();
    let mut bytes = Vec::new();
    encode(&mut bytes, Kind::Stdout, &stream);
    let (got, _) = decode(&mut Decoder::new(), &bytes, 4096);
    assert_eq!(got.len(), 2);
    assert_eq!(got.concat_payloads(), stream);
}

trait ConcatPayloads {
    fn concat_payloads(&self) -> Vec<u8>;
}

impl ConcatPayloads for Vec<Frame> {
    fn concat_payloads(&self) -> Vec<u8> {
        self.iter()
            .flat_map(|frame| frame.payload.iter().copied())
            .collect()
    }
}
