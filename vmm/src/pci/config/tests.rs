use super::{BarKind, BarMove, ConfigSpace, Identity};

const IDENTITY: Identity = Identity {
    vendor: 0x1af4,
    device: 0x1041,
    revision: 1,
    class: 0x02_00_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

fn with_bars() -> ConfigSpace {
    let mut config = ConfigSpace::new(&IDENTITY);
    config.add_bar(0, BarKind::Memory64, 0x8000);
    config.add_bar(2, BarKind::Memory32, 0x1000);
    config
}

/// Does what the root would.
fn apply(config: &mut ConfigSpace, offset: u16, data: &[u8]) -> Vec<BarMove> {
    let moves = config.write(offset, data);
    for step in &moves {
        config.commit(step);
    }
    moves
}

fn long(config: &ConfigSpace, offset: u16) -> u32 {
    u32::from_le_bytes(config.get(offset))
}

#[test]
fn header_says_what_the_function_is() {
    let config = with_bars();
    assert_eq!(long(&config, 0), 0x1041_1af4);
    assert_eq!(long(&config, 8), 0x0200_0001);
    assert_eq!(long(&config, 0x2c), 0x1100_1af4);
    assert_eq!(config.get::<1>(0x0e), [0], "one function, type 0");
    assert_eq!(config.get::<1>(0x3d), [0], "no interrupt pin");
    assert_eq!(config.get::<4>(0x100), [0; 4], "no extended capabilities");
    assert_eq!(config.get::<8>(0xfc), [0; 8], "an access across the end");
}

#[test]
fn capabilities_are_a_list() {
    let mut config = with_bars();
    assert_eq!(long(&config, 4) >> 16 & 0x10, 0);
    let first = config.add_capability(9, &[1, 2, 3], &[0; 3]);
    let second = config.add_capability(0x11, &[0; 10], &[0xff; 10]);
    assert_eq!((first, second), (0x40, 0x48));
    assert_eq!(long(&config, 4) >> 16 & 0x10, 0x10);
    assert_eq!(config.get::<1>(0x34), [0x40]);
    assert_eq!(config.get::<5>(first), [9, 0x48, 1, 2, 3]);
    assert_eq!(config.get::<2>(second), [0x11, 0]);
    config.write(first, &[0xff; 16]);
    assert_eq!(config.get::<5>(first), [9, 0x48, 1, 2, 3], "read-only");
    assert_eq!(
        config.get::<3>(second),
        [0x11, 0, 0xff],
        "its body can be written"
    );
}

#[test]
fn sizes_are_probed_without_moving_anything() {
    for ones in [0xffff_ffffu32, 0xffff_fff0] {
        for decode in [false, true] {
            let mut config = with_bars();
            config.set_bar(0, 0x40_0000_0000);
            config.set_bar(2, 0xc000_0000);
            if decode {
                for step in config.enable_bars() {
                    config.commit(&step);
                }
            }
            assert_eq!(apply(&mut config, 0x10, &ones.to_le_bytes()), []);
            assert_eq!(long(&config, 0x10), 0xffff_8004);
            assert_eq!(apply(&mut config, 0x14, &u32::MAX.to_le_bytes()), []);
            assert_eq!(long(&config, 0x14), 0xffff_ffff);
            // The low half first leaves an address without meaning, until the high half is there.
            for step in config.write(0x10, &0u32.to_le_bytes()) {
                assert!(decode && step.partial);
                config.roll_back(&step);
            }
            assert_eq!(apply(&mut config, 0x14, &0x40u32.to_le_bytes()), []);
            assert_eq!(apply(&mut config, 0x18, &ones.to_le_bytes()), []);
            assert_eq!(long(&config, 0x18), 0xffff_f000);
            assert_eq!(apply(&mut config, 0x18, &0xc000_0000u32.to_le_bytes()), []);
            assert_eq!(config.get::<8>(0x10), 0x40_0000_0004u64.to_le_bytes());
        }
    }
}

#[test]
fn decoding_follows_the_command_register() {
    let mut config = with_bars();
    apply(&mut config, 0x18, &0xc000_0000u32.to_le_bytes());
    apply(&mut config, 0x10, &0x40_0000_0000u64.to_le_bytes());
    let on = apply(&mut config, 4, &[2]);
    let at = |bar, size, from, to| BarMove {
        bar,
        kind: if bar == 0 {
            BarKind::Memory64
        } else {
            BarKind::Memory32
        },
        size,
        from,
        to,
        partial: false,
    };
    assert_eq!(
        on,
        [
            at(0, 0x8000, None, Some(0x40_0000_0000)),
            at(2, 0x1000, None, Some(0xc000_0000))
        ]
    );
    assert_eq!(
        apply(&mut config, 4, &[6, 4]),
        [],
        "bus master and INTx disable move nothing"
    );
    assert_eq!(
        apply(&mut config, 0x18, &0xc000_1000u32.to_le_bytes()),
        [at(2, 0x1000, Some(0xc000_0000), Some(0xc000_1000))]
    );
    let off = apply(&mut config, 4, &[0, 0]);
    assert_eq!(
        off,
        [
            at(0, 0x8000, Some(0x40_0000_0000), None),
            at(2, 0x1000, Some(0xc000_1000), None)
        ]
    );
}

#[test]
fn a_refused_move_reads_back_as_before() {
    let mut config = with_bars();
    config.set_bar(2, 0xc000_0000);
    for step in config.enable_bars() {
        config.commit(&step);
    }
    let moves = config.write(0x18, &0x1000u32.to_le_bytes());
    assert_eq!(moves.len(), 1);
    config.roll_back(&moves[0]);
    assert_eq!(long(&config, 0x18), 0xc000_0000);
    assert_eq!(config.waiting_moves(), []);
}

#[test]
fn a_refused_start_waits() {
    let mut config = with_bars();
    config.set_bar(0, 0x40_0000_0000);
    config.set_bar(2, 0xc000_0000);
    let moves = config.enable_bars();
    config.commit(&moves[0]);
    config.roll_back(&moves[1]);
    assert_eq!(long(&config, 0x18), 0xc000_0000, "the register stays");
    assert_eq!(config.waiting_moves(), [moves[1]]);
    config.write(4, &[0]);
    assert_eq!(config.waiting_moves(), [], "not while decoding is off");
}

mod properties {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::with_bars;

    proptest! {
        /// Whatever widths and alignments software chooses, the registers hold what single bytes would have left.
        #[test]
        fn any_access_is_its_bytes(
            accesses in vec((0u16..0x120, vec(any::<u8>(), 1..=8)), 1..40),
            reads in vec((0u16..0x120, 1usize..=8), 1..20),
        ) {
            let mut wide = with_bars();
            wide.add_capability(0x11, &[0; 10], &[0xc0; 10]);
            let mut narrow = wide.clone();
            for (offset, data) in &accesses {
                wide.write(*offset, data);
                for (at, byte) in (*offset..).zip(data) {
                    narrow.write(at, &[*byte]);
                }
            }
            for (offset, len) in reads {
                let mut got = vec![0; len];
                wide.read(offset, &mut got);
                let bytes: Vec<u8> =
                    (offset..).take(len).map(|at| { let [b] = narrow.get(at); b }).collect();
                prop_assert_eq!(got, bytes);
            }
        }
    }
}
