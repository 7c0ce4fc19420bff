//! The device end against `virtio-queue` on the same memory: same chains, same used ring, same notifications.

use std::fs::File;

use proptest::prelude::*;
use virtio::burst::{Burst, Chain};
use virtio_queue::{Queue, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::rig::{BASE, BUFFERS, FAR, HOLE, INDIRECT, NEXT, NEXT_FLAG, REGION, Rig, TABLES, WRITE};

const SIZE: u16 = 16;
/// The oracle writes a used ring of its own.
const ORACLE_USED: u64 = BASE + 0x3_0000;
const TABLE_ENTRIES: u16 = 4;

/// A descriptor as bytes make it.
type Desc = (u64, u32, u16, u16);

fn descriptor(entries: u16) -> impl Strategy<Value = Desc> {
    let addr = prop_oneof![
        6 => (0u64..64).prop_map(|i| BUFFERS + 64 * i),
        1 => (0u64..32).prop_map(|i| NEXT - i),
        1 => (0u64..32).prop_map(|i| HOLE - i),
        1 => Just(FAR),
        1 => any::<u64>(),
        4 => (0u64..4).prop_map(|i| TABLES + i * 16 * u64::from(TABLE_ENTRIES)),
    ];
    let len = prop_oneof![
        6 => 1u32..64,
        1 => Just(0),
        4 => (1u32..6).prop_map(|n| n * 16),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![
        4 => Just(0),
        4 => Just(WRITE),
        6 => Just(NEXT_FLAG),
        3 => Just(NEXT_FLAG | WRITE),
        3 => Just(INDIRECT),
        1 => 0u16..8,
    ];
    (
        addr,
        len,
        flags,
        prop_oneof![12 => 0..entries, 1 => Just(entries), 1 => any::<u16>()],
    )
}

#[derive(Debug, Clone)]
struct Round {
    heads: Vec<u16>,
    max: usize,
    event: u16,
}

fn round() -> impl Strategy<Value = Round> {
    (prop::collection::vec(0..SIZE, 0..8), 1usize..9, 0u16..24).prop_map(|(heads, max, event)| Round {
        heads,
        max,
        event,
    })
}

/// The buffers of a chain as (address, length, writable), empty ones left out; None when the chain is malformed. Written for
/// being obvious.
fn expected(rig: &Rig, head: u16) -> Option<Vec<(u64, u32, bool)>> {
    let read = |table: u64, i: u16| -> Desc {
        let b: [u8; 16] = rig.read(table + 16 * u64::from(i));
        (
            u64::from_le_bytes(b[..8].try_into().expect("8")),
            u32::from_le_bytes(b[8..12].try_into().expect("4")),
            u16::from_le_bytes(b[12..14].try_into().expect("2")),
            u16::from_le_bytes(b[14..].try_into().expect("2")),
        )
    };
    let (mut table, mut entries, mut index, mut inside) = (rig.config.desc, u32::from(SIZE), head, false);
    let (mut list, mut seen, mut total): (Vec<(u64, u32, bool)>, u32, u64) = (Vec::new(), 0, 0);
    loop {
        if u32::from(index) >= entries || seen == entries {
            return None;
        }
        seen += 1;
        let at = table + 16 * u64::from(index);
        if !mapped(at, 16) {
            return None;
        }
        let (addr, len, flags, next) = read(table, index);
        if flags & INDIRECT != 0 {
            let whole = len > 0 && len % 16 == 0 && len / 16 <= 1024;
            if inside || flags & NEXT_FLAG != 0 || !whole || addr.checked_add(u64::from(len)).is_none() {
                return None;
            }
            (table, entries, index, inside, seen) = (addr, len / 16, 0, true, 0);
            continue;
        }
        if len > 0 {
            total += u64::from(len);
            let late = flags & WRITE == 0 && list.iter().any(|b| b.2);
            if late || total > u64::from(u32::MAX) || !mapped(addr, u64::from(len)) {
                return None;
            }
            list.push((addr, len, flags & WRITE != 0));
        }
        if flags & NEXT_FLAG == 0 {
            return Some(list);
        }
        index = next;
    }
}

fn mapped(addr: u64, len: u64) -> bool {
    let Some(end) = addr.checked_add(len) else {
        return false;
    };
    (BASE <= addr && end <= HOLE) || (FAR <= addr && end <= FAR + REGION)
}

/// A chain's buffers, with the pieces of one that crosses regions put together as `wanted` has them.
fn buffers(rig: &Rig, chain: &Chain<'_>, wanted: &[(u64, u32, bool)]) -> Vec<(u64, u32, bool)> {
    let readable = chain.readable.iter().map(|s| (s, false));
    let mut pieces = readable
        .chain(chain.writable.iter().map(|s| (s, true)))
        .peekable();
    let mut list = Vec::new();
    for want in wanted {
        let Some((first, write)) = pieces.next() else {
            break;
        };
        let addr = rig.guest_addr(first.as_ptr());
        let mut len = u32::try_from(first.len()).expect("fits");
        while len < want.1 {
            let Some((more, _)) =
                pieces.next_if(|(s, _)| rig.guest_addr(s.as_ptr()) == addr + u64::from(len))
            else {
                break;
            };
            len += u32::try_from(more.len()).expect("fits");
        }
        list.push((addr, len, write));
    }
    assert!(pieces.next().is_none(), "segments beyond the chain's buffers");
    list
}

fn oracle(rig: &Rig) -> (GuestMemoryMmap, Queue) {
    let regions = rig.shared.iter().map(|s| {
        let file = File::from(s.fd().try_clone_to_owned().expect("a descriptor"));
        let at = GuestAddress(s.region().guest_addr());
        let len = usize::try_from(s.region().len()).expect("fits");
        GuestRegionMmap::from_range(at, len, Some(FileOffset::new(file, 0))).expect("a mapping")
    });
    let mem = GuestMemoryMmap::from_regions(regions.collect()).expect("a map");
    let mut queue = Queue::new(SIZE).expect("a queue");
    queue.set_size(SIZE);
    queue
        .try_set_desc_table_address(GuestAddress(rig.config.desc))
        .expect("aligned");
    queue
        .try_set_avail_ring_address(GuestAddress(rig.config.avail))
        .expect("aligned");
    queue
        .try_set_used_ring_address(GuestAddress(ORACLE_USED))
        .expect("aligned");
    queue.set_event_idx(true);
    queue.set_next_avail(rig.config.next_avail);
    queue.set_next_used(rig.config.used_idx);
    queue.set_ready(true);
    assert!(queue.is_valid(&mem));
    (mem, queue)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn both_do_the_same(
        descs in prop::collection::vec(descriptor(SIZE), usize::from(SIZE)),
        tables in prop::collection::vec(descriptor(TABLE_ENTRIES), 4 * usize::from(TABLE_ENTRIES)),
        rounds in prop::collection::vec(round(), 1..8),
        start in prop_oneof![Just(0), Just(65_530), any::<u16>()],
    ) {
        let mut rig = Rig::new(SIZE);
        rig.config.event_idx = true;
        rig.config.next_avail = start;
        rig.config.used_idx = start;
        for (i, (addr, len, flags, next)) in (0..).zip(descs) {
            rig.desc(i, addr, len, flags, next);
        }
        for (i, (addr, len, flags, next)) in (0..).zip(tables) {
            rig.table_desc(TABLES, i, addr, len, flags, next);
        }
        rig.set_avail_idx(start);
        let (oracle_mem, mut oracle) = oracle(&rig);
        let mut device = rig.device();
        let mut burst = Burst::new();
        let (mut idx, mut published_before) = (start, false);
        for round in rounds {
            rig.make_available(idx, &round.heads);
            idx = idx.wrapping_add(u16::try_from(round.heads.len()).expect("few"));
            rig.set_used_event(device.used_idx().wrapping_add(round.event).wrapping_sub(8));
            loop {
                let Ok(n) = device.pop_burst(&mut burst, round.max) else {
                    let slot = u64::from(device.next_avail() % SIZE);
                    let head = rig.read_u16(rig.config.avail + 4 + 2 * slot);
                    prop_assert_eq!(expected(&rig, head), None, "a broken ring has a malformed chain next");
                    return Ok(());
                };
                prop_assert!(n <= round.max);
                if n == 0 {
                    break;
                }
                for chain in burst.chains() {
                    let theirs = oracle.pop_descriptor_chain(&oracle_mem).expect("as many chains");
                    prop_assert_eq!(theirs.head_index(), chain.head);
                    let wanted = expected(&rig, chain.head);
                    prop_assert_eq!(chain.error().is_none(), wanted.is_some());
                    if let Some(wanted) = wanted {
                        let theirs: Vec<_> = theirs
                            .filter(|d| d.len() > 0)
                            .map(|d| (d.addr().0, d.len(), d.is_write_only()))
                            .collect();
                        prop_assert_eq!(&theirs, &wanted, "the oracle agrees with what is expected");
                        prop_assert_eq!(&buffers(&rig, &chain, &wanted), &wanted);
                    }
                    device.add_used(chain.head, chain.writable_len);
                    oracle.add_used(&oracle_mem, chain.head, chain.writable_len).expect("room");
                }
                prop_assert_eq!(device.next_avail(), oracle.next_avail());
                let (ours, theirs) = (device.publish(), oracle.needs_notification(&oracle_mem).expect("mapped"));
                // The first time, ours always tells.
                prop_assert!(ours == theirs || (ours && !published_before));
                published_before = true;
                prop_assert_eq!(device.used_idx(), oracle.next_used());
                prop_assert_eq!(rig.used_idx(), rig.read_u16(ORACLE_USED + 2));
                prop_assert_eq!(rig.read::<128>(rig.config.used + 4), rig.read::<128>(ORACLE_USED + 4));
            }
            prop_assert_eq!(
                device.enable_notification(),
                oracle.enable_notification(&oracle_mem).expect("mapped")
            );
            let theirs = rig.read_u16(ORACLE_USED + 4 + 8 * u64::from(SIZE));
            prop_assert_eq!(rig.avail_event(), theirs);
        }
    }
}
