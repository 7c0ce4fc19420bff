//! Both ends against a model: chains come out as they went in and in that order, and tokens come back as chains are used.

use std::collections::VecDeque;

use proptest::prelude::*;
use virtio::burst::Burst;
use virtio::packed::WRAP;
use virtio::split::driver::{Buffer, IndirectTables};

use crate::either::{ends, make_packed};
use crate::rig::{BUFFERS, NEXT, Rig, TABLES};

#[derive(Debug, Clone)]
enum Op {
    Push {
        readable: Vec<u32>,
        writable: Vec<u32>,
    },
    /// Single buffers, all to be read or all to be written.
    PushEach {
        writable: bool,
        lens: Vec<u32>,
    },
    PublishAvailable,
    /// Pops, and puts some of what was popped back.
    Pop {
        max: usize,
        put_back: usize,
    },
    /// Uses one of the chains that the device has.
    Use {
        which: prop::sample::Index,
        len: u32,
    },
    PublishUsed,
    Reclaim,
    ReclaimEach {
        most: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let lens = |n| prop::collection::vec(1u32..300, n);
    prop_oneof![
        4 => (lens(0..4), lens(0..4)).prop_map(|(readable, writable)| Op::Push { readable, writable }),
        2 => Just(Op::PublishAvailable),
        2 => (1usize..6, 0usize..4).prop_map(|(max, put_back)| Op::Pop { max, put_back }),
        4 => (any::<prop::sample::Index>(), 0u32..400).prop_map(|(which, len)| Op::Use { which, len }),
        2 => Just(Op::PublishUsed),
        1 => Just(Op::Reclaim),
        2 => (any::<bool>(), lens(0..6)).prop_map(|(writable, lens)| Op::PushEach { writable, lens }),
        2 => (0usize..6).prop_map(|most| Op::ReclaimEach { most }),
    ]
}

struct Pushed {
    token: u64,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
}

impl Pushed {
    fn single((buffer, token): (Buffer, u64), is_writable: bool) -> Self {
        let (readable, writable) = if is_writable {
            (Vec::new(), vec![buffer])
        } else {
            (vec![buffer], Vec::new())
        };
        Self {
            token,
            readable,
            writable,
        }
    }
}

/// Buffers of the given lengths, each a chain with a token of its own.
fn singles(lens: &[u32], n: u64) -> Vec<(Buffer, u64)> {
    let addr = BUFFERS + 0x1000 * (n % 64);
    (0..)
        .zip(lens)
        .map(|(i, len)| {
            let addr = addr + 0x200 * i;
            (Buffer { addr, len: *len }, n << 8 | i)
        })
        .collect()
}

/// Buffers of the given lengths, one of them over the border between two regions now and then.
fn place(lens: &[u32], n: u64) -> Vec<Buffer> {
    lens.iter()
        .zip(0..)
        .map(|(len, i)| {
            let addr = if (n + i).is_multiple_of(7) {
                NEXT - 1 - n % 100
            } else {
                BUFFERS + 512 * ((n * 8 + i) % 900)
            };
            Buffer { addr, len: *len }
        })
        .collect()
}

fn total(list: &[Buffer]) -> u32 {
    list.iter().map(|b| b.len).sum()
}

fn addresses(rig: &Rig, list: &[virtio::desc::Segment<'_>]) -> Vec<u64> {
    list.iter()
        .flat_map(|s| (0..s.len()).map(|i| rig.guest_addr(s.skip(i).as_ptr())))
        .collect()
}

fn wanted_addresses(list: &[Buffer]) -> Vec<u64> {
    list.iter()
        .flat_map(|b| b.addr..b.addr + u64::from(b.len))
        .collect()
}

fn check(
    packed: bool,
    size: u16,
    event_idx: bool,
    indirect: bool,
    ops: Vec<Op>,
) -> Result<(), TestCaseError> {
    let mut rig = Rig::new(size);
    rig.config.event_idx = event_idx;
    rig.config.indirect = indirect;
    if packed {
        make_packed(&mut rig, (size - 1) | WRAP, (size - 1) | WRAP);
    } else {
        rig.config.next_avail = u16::MAX - 2;
        rig.config.used_idx = u16::MAX - 2;
    }
    let (mut device, mut driver) = ends(
        &rig,
        packed,
        Some(IndirectTables {
            addr: TABLES,
            entries: 4,
        }),
    );
    let mut burst = Burst::new();
    let (mut unpublished, mut available): (Vec<Pushed>, VecDeque<Pushed>) = (Vec::new(), VecDeque::new());
    let mut popped: Vec<(u16, Pushed)> = Vec::new();
    let mut recorded: Vec<(u64, u32)> = Vec::new();
    let mut used: VecDeque<(u64, u32)> = VecDeque::new();
    for (token, op) in (0..).zip(ops) {
        match op {
            Op::Push { readable, writable } => {
                let (readable, writable) = (place(&readable, token), place(&writable, token + 3));
                let total = readable.len() + writable.len();
                let in_table = indirect && (2..=4).contains(&total);
                let needed = if in_table { 1 } else { total };
                let fits = total > 0 && needed <= usize::from(driver.free_descriptors());
                prop_assert_eq!(driver.push(&readable, &writable, token).is_ok(), fits);
                unpublished.extend(fits.then_some(Pushed {
                    token,
                    readable,
                    writable,
                }));
            }
            Op::PushEach { writable, lens } => {
                let free = usize::from(driver.free_descriptors());
                let chains = singles(&lens, token);
                let count = driver.push_each(writable, &chains);
                prop_assert_eq!(count, lens.len().min(free));
                let pushed = chains.into_iter().take(count);
                unpublished.extend(pushed.map(|chain| Pushed::single(chain, writable)));
            }
            Op::PublishAvailable => {
                let told = driver.publish();
                prop_assert!(!told || !unpublished.is_empty());
                available.extend(unpublished.drain(..));
            }
            Op::Pop { max, put_back } => {
                let n = device.pop_burst(&mut burst, max).expect("a sane ring");
                prop_assert_eq!(n, max.min(available.len()));
                for (chain, pushed) in burst.chains().zip(&available) {
                    prop_assert_eq!(chain.error(), None);
                    prop_assert_eq!(chain.readable_len, total(&pushed.readable));
                    prop_assert_eq!(chain.writable_len, total(&pushed.writable));
                    prop_assert_eq!(
                        addresses(&rig, chain.readable),
                        wanted_addresses(&pushed.readable)
                    );
                    prop_assert_eq!(
                        addresses(&rig, chain.writable),
                        wanted_addresses(&pushed.writable)
                    );
                }
                let back = put_back.min(n);
                device.unpop(u16::try_from(back).expect("few"));
                let heads = burst.chains().map(|c| c.head).take(n - back);
                popped.extend(heads.zip(available.drain(..n - back)));
            }
            Op::Use { which, len } => {
                if popped.is_empty() {
                    continue;
                }
                let (head, pushed) = popped.swap_remove(which.index(popped.len()));
                device.add_used([(head, len)]);
                recorded.push((pushed.token, len.min(total(&pushed.writable))));
            }
            Op::PublishUsed => {
                let told = device.publish();
                prop_assert!(!told || !recorded.is_empty());
                used.extend(recorded.drain(..));
            }
            Op::Reclaim => {
                prop_assert_eq!(driver.pop_used().expect("a sane ring"), used.pop_front());
            }
            Op::ReclaimEach { most } => {
                let (mut back, there) = (vec![(0, 0); most], most.min(used.len()));
                prop_assert_eq!(driver.pop_each(&mut back), Ok(there));
                prop_assert_eq!(&back[..there], used.drain(..there).collect::<Vec<_>>());
            }
        }
        let out = unpublished.len() + available.len() + popped.len() + recorded.len() + used.len();
        prop_assert_eq!(driver.in_flight(), out);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn split_queues_do_as_the_model_says(
        shift in 1u32..5, event_idx: bool, indirect: bool, ops in prop::collection::vec(op(), 1..250),
    ) {
        check(false, 1 << shift, event_idx, indirect, ops)?;
    }

    #[test]
    fn packed_queues_do_as_the_model_says(
        size in 1u16..20, event_idx: bool, indirect: bool, ops in prop::collection::vec(op(), 1..250),
    ) {
        check(true, size, event_idx, indirect, ops)?;
    }
}
