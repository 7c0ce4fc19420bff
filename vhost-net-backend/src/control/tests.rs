use virtio::memory::SharedMemory;

use super::*;

const ALL: u64 = FEATURES | f::NET_F_MQ | f::NET_F_CTRL_VQ | f::NET_F_GUEST_CSUM | f::NET_F_GUEST_TSO4;
const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PAIRS: u16 = 4;

fn state() -> ControlState {
    ControlState::new(ALL, Some(OWN), 1)
}

/// Has a driver with these features send a command.
fn send_as(state: &mut ControlState, acked: u64, bytes: &[u8]) -> Option<Change> {
    let memory = SharedMemory::new("command", 0, 0x2_0000).unwrap();
    let slice = memory.region().slice().take(bytes.len());
    slice.write_from(0, bytes);
    let list = [slice];
    Command::read(&list, bytes.len()).and_then(|mut command| state.apply(&mut command, acked, PAIRS))
}

fn send(state: &mut ControlState, bytes: &[u8]) -> Option<Change> {
    send_as(state, ALL, bytes)
}

fn macs(count: u32, first: u8) -> Vec<u8> {
    let mut bytes = count.to_le_bytes().to_vec();
    for n in 0..count {
        bytes.extend([first, 0, 0]);
        bytes.extend(&n.to_be_bytes()[1..]);
    }
    bytes
}

fn rss(types: u32, mask: u16, unclassified: u16, table: &[u16], transmit: u16, key: &[u8]) -> Vec<u8> {
    let mut bytes = vec![4, 1];
    bytes.extend(types.to_le_bytes());
    bytes.extend(mask.to_le_bytes());
    bytes.extend(unclassified.to_le_bytes());
    bytes.extend(table.iter().flat_map(|pair| pair.to_le_bytes()));
    bytes.extend(transmit.to_le_bytes());
    bytes.push(u8::try_from(key.len()).unwrap());
    bytes.extend(key);
    bytes
}

#[test]
fn lengths_have_to_be_right() {
    let good: [&[u8]; 9] = [
        &[0, 0, 0],
        &[0, 5, 1],
        &[1, 1, 2, 0, 0, 0, 0, 7],
        &[2, 0, 5, 0],
        &[2, 1, 0xff, 0x0f],
        &[3, 0],
        &[4, 0, 4, 0],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    for command in good {
        assert!(send(&mut state(), command).is_some(), "{command:?}");
        for len in 0..command.len() {
            assert_eq!(send(&mut state(), &command[..len]), None, "{command:?} cut");
        }
        let longer = [command, &[0]].concat();
        assert_eq!(send(&mut state(), &longer), None, "{command:?} and more");
    }
}

#[test]
fn what_was_not_negotiated_or_does_not_exist_is_refused() {
    for (command, bit) in [
        (&[0, 0, 1][..], f::NET_F_CTRL_RX),
        (&[0, 3, 1], f::NET_F_CTRL_RX_EXTRA),
        (&[1, 1, 2, 0, 0, 0, 0, 7], f::NET_F_CTRL_MAC_ADDR),
        (&[2, 0, 5, 0], f::NET_F_CTRL_VLAN),
        (&[3, 0], f::NET_F_GUEST_ANNOUNCE),
        (&[4, 0, 1, 0], f::NET_F_MQ),
        (&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0], f::NET_F_CTRL_GUEST_OFFLOADS),
    ] {
        assert!(send_as(&mut state(), ALL, command).is_some(), "{command:?}");
        assert_eq!(send_as(&mut state(), ALL & !bit, command), None, "{command:?}");
    }
    for command in [
        [0, 6, 1],
        [1, 2, 0],
        [2, 2, 0],
        [3, 1, 0],
        [4, 3, 0],
        [6, 0, 0],
        [255, 255, 0],
    ] {
        assert_eq!(send(&mut state(), &command), None, "{command:?}");
    }
}

#[test]
fn values_have_to_make_sense_and_change_nothing_otherwise() {
    let mut state = state();
    let before = state.clone();
    for command in [
        &[1, 1, 3, 0, 0, 0, 0, 7][..],
        &[1, 1, 0, 0, 0, 0, 0, 0],
        &[2, 0, 0, 0x10],
        &[2, 1, 0xff, 0xff],
        &[4, 0, 0, 0],
        &[4, 0, 5, 0],
        &[5, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(send(&mut state, command), None, "{command:?}");
    }
    for bad in [
        rss(1 << 9, 0, 0, &[0], 1, &[1; 40]),
        rss(1, 2, 0, &[0, 0, 0], 1, &[1; 40]),
        rss(1, 255, 0, &[0; 256], 1, &[1; 40]),
        rss(1, 0xffff, 0, &[0; 4], 1, &[1; 40]),
        rss(1, 0, PAIRS, &[0], 1, &[1; 40]),
        rss(1, 1, 0, &[0, PAIRS], 1, &[1; 40]),
        rss(1, 0, 0, &[0], 0, &[1; 40]),
        rss(1, 0, 0, &[0], PAIRS + 1, &[1; 40]),
        rss(1, 0, 0, &[0], 1, &[1; 41]),
    ] {
        assert_eq!(send(&mut state, &bad), None, "{bad:?}");
    }
    assert_eq!(state, before);
    assert!(send(&mut state, &rss(0x3f, 127, 3, &[1; 128], 2, &[1; 40])).is_some());
    assert_eq!(state.pairs, 4);
    let steering = state.steering().unwrap();
    assert_eq!(steering.pair(&[0; 60]), 3, "no hash of that");
    assert!(send(&mut state, &[4, 0, 2, 0]).is_some());
    assert_eq!((state.pairs, state.steering()), (2, None), "and RSS is over");
}

#[test]
fn hash_settings_are_checked_and_take_a_key_of_any_length() {
    for len in [0, 1, 40, 41] {
        let mut command = vec![4, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, len];
        command.extend(vec![7; usize::from(len)]);
        let mut state = state();
        assert_eq!(send(&mut state, &command).is_some(), len <= 40, "{len}");
        assert_eq!(state.steering().is_some_and(|s| !s.spreads()), len <= 40, "{len}");
    }
}

fn frame(to: [u8; 6], tag: Option<u16>) -> Vec<u8> {
    let mut frame = [&to[..], &[2, 0, 0, 0, 0, 9]].concat();
    if let Some(tag) = tag {
        frame.extend([0x81, 0]);
        frame.extend(tag.to_be_bytes());
    }
    frame.extend([8, 0]);
    frame.resize(60, 0);
    frame
}

#[test]
fn modes_and_tables_decide() {
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];
    const ALL_OF: [[u8; 6]; 4] = [OWN, OTHER, GROUP, [0xff; 6]];
    let acked = ALL & !f::NET_F_CTRL_VLAN;
    let mut state = ControlState::new(acked, Some(OWN), 1);
    assert!(
        state.filter().is_none(),
        "everything, before the driver says anything"
    );
    let table = [
        &[1, 0][..],
        &1u32.to_le_bytes(),
        &OTHER,
        &1u32.to_le_bytes(),
        &GROUP,
    ]
    .concat();
    for (command, expected) in [
        (&[0, 0, 0][..], [true, false, false, true]),
        (&[0, 1, 1], [true, false, true, true]),
        (&[0, 2, 1], [true, true, true, true]),
        (&[0, 3, 1], [true, true, false, true]),
        (&[0, 5, 1], [true, true, false, false]),
        (&[0, 4, 1], [false, false, false, false]),
        (&[0, 0, 1], [true, true, true, true]),
        (&[0, 0, 0], [false, false, false, false]),
        (&[0, 4, 0], [true, true, false, false]),
        (&[0, 2, 0], [true, false, false, false]),
        (&[0, 3, 0], [true, false, true, false]),
        (&[0, 1, 0], [true, false, false, false]),
        (&table, [true, true, true, false]),
        (&[1, 1, 2, 0, 0, 0, 0, 7], [false, true, true, false]),
        (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0], [false, false, false, false]),
    ] {
        assert_eq!(send_as(&mut state, acked, command), Some(Change::Filter));
        let filter = state.filter();
        let accepted = ALL_OF.map(|to| {
            filter
                .as_ref()
                .is_none_or(|filter| filter.accepts(&frame(to, None)))
        });
        assert_eq!(accepted, expected, "{command:?}");
    }
}

#[test]
fn tables_are_bounded_and_too_large_ones_accept_all() {
    let mut state = state();
    assert!(send(&mut state, &[0, 0, 0]).is_some());
    let other = frame([4, 9, 9, 9, 9, 9], None);
    let group = frame([3, 9, 9, 9, 9, 9], None);
    let accepts = |state: &ControlState, frame: &[u8]| state.filter().unwrap().accepts(frame);
    let table = [vec![1, 0], macs(64, 4), macs(64, 3)].concat();
    assert!(send(&mut state, &table).is_some());
    assert_eq!((accepts(&state, &other), accepts(&state, &group)), (false, false));
    let table = [vec![1, 0], macs(65, 4), macs(5000, 3)].concat();
    assert!(send(&mut state, &table).is_some());
    assert_eq!((accepts(&state, &other), accepts(&state, &group)), (true, true));
    assert!(
        serde_json::to_string(&state).unwrap().len() < 8192,
        "whatever it says"
    );
    for count in [1_u32, 2, u32::MAX, u32::MAX / 6] {
        let lie = [&[1, 0][..], &count.to_le_bytes(), &[0; 4]].concat();
        assert_eq!(send(&mut state, &lie), None, "{count}");
    }
}

#[test]
fn vlans_are_wanted_one_by_one() {
    let mut state = state();
    let accepts = |state: &ControlState, tag| state.filter().unwrap().accepts(&frame(OWN, tag));
    assert!(!accepts(&state, Some(5)), "none to begin with");
    assert!(
        accepts(&state, None) && accepts(&state, Some(0xe000)),
        "untagged, or a priority only"
    );
    for vlan in [5_u16, 4095] {
        let [low, high] = vlan.to_le_bytes();
        assert!(send(&mut state, &[2, 0, low, high]).is_some());
        assert!(accepts(&state, Some(vlan)) && accepts(&state, Some(0xe000 | vlan)));
        assert!(send(&mut state, &[2, 1, low, high]).is_some());
        assert!(!accepts(&state, Some(vlan)));
    }
}

#[test]
fn offloads_that_are_off_are_not_gone_by() {
    let mut state = state();
    assert_eq!(state.features(ALL), ALL);
    let tso = f::NET_F_GUEST_TSO4.to_le_bytes();
    assert!(send(&mut state, &[&[5, 0], &tso[..]].concat()).is_some());
    assert_eq!(state.features(ALL), ALL & !f::NET_F_GUEST_CSUM);
}

#[test]
fn a_driver_whose_wishes_were_lost_gets_everything() {
    let mut state = ControlState::unknown(4);
    assert_eq!(state.pairs, 4);
    let wants = |state: &ControlState, tag| {
        state
            .filter()
            .is_none_or(|filter| filter.accepts(&frame([2, 9, 9, 9, 9, 9], tag)))
    };
    assert!(wants(&state, None) && wants(&state, Some(77)));
    assert!(
        send(&mut state, &[2, 1, 77, 0]).is_some(),
        "and goes on from there"
    );
    assert!(!wants(&state, Some(77)));
}
