//! The device end against the driver end, across threads, with every byte checked.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use virtio::burst::Burst;
use virtio::memory::{read_chain, write_chain};
use virtio::packed::WRAP;
use virtio::queue::{DriverQueue, Queue};
use virtio::split::driver::{Buffer, IndirectTables};

use crate::either::{ends, make_packed};
use crate::rig::{BUFFERS, Rig, TABLES};

const CHAINS: u64 = 30_000;
const SIZE: u16 = 64;
const SLOT: u64 = 4096;
/// The first half of a slot is for the device to read, the second for it to write.
const HALF: u64 = SLOT / 2;

/// An eventfd that fails the test instead of waiting for ever.
struct Bell(OwnedFd);

impl Bell {
    fn new() -> Self {
        Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd"))
    }

    fn ring(&self) {
        rustix::io::write(&self.0, &1_u64.to_ne_bytes()).expect("room");
    }

    fn wait(&self) {
        let deadline = Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        let n = poll(
            &mut [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)],
            Some(&deadline),
        );
        assert_eq!(n, Ok(1), "a notification got lost");
        rustix::io::read(&self.0, &mut [0; 8]).expect("rung");
    }
}

/// A small generator of the same numbers for everybody.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn pattern(seed: u64, i: usize) -> u8 {
    (seed.wrapping_mul(0x9e37_79b9) >> 7).to_le_bytes()[0] ^ (i * 7).to_le_bytes()[0]
}

/// Answers every chain with what it read, each byte changed in a known way.
fn serve(mut device: Queue, kick: &Bell, call: &Bell) {
    let mut burst = Burst::with_capacity(48);
    let (mut served, mut data) = (0, vec![0; 4096]);
    while served < CHAINS {
        let n = device.pop_burst(&mut burst, 32).expect("a sane ring");
        if n == 0 {
            if !device.enable_notification() {
                kick.wait();
            }
            device.disable_notification();
            continue;
        }
        for chain in burst.chains() {
            assert_eq!(chain.error(), None);
            let got = read_chain(chain.readable, 0, &mut data);
            assert_eq!(got, chain.readable_len as usize);
            for byte in &mut data[..got] {
                *byte ^= 0x5a;
            }
            let wrote = write_chain(chain.writable, 0, &data[..got]);
            device.add_used([(chain.head, u32::try_from(wrote).expect("fits"))]);
            served += 1;
        }
        if device.publish() {
            call.ring();
        }
    }
}

/// Buffers that cut `len` bytes at `addr` into `parts`.
fn cut(numbers: &mut Numbers, addr: u64, len: u64, parts: u64) -> Vec<Buffer> {
    let (mut list, mut at) = (Vec::new(), 0);
    for part in 0..parts {
        let rest = len - at;
        let here = if part + 1 == parts {
            rest
        } else {
            numbers.below(rest + 1)
        };
        if here > 0 {
            list.push(Buffer {
                addr: addr + at,
                len: u32::try_from(here).expect("fits"),
            });
        }
        at += here;
    }
    list
}

fn drive(rig: &Rig, mut driver: DriverQueue, kick: &Bell, call: &Bell) {
    let mut numbers = Numbers(0x1234_5678_9abc_def1);
    let mut free: Vec<u64> = (0..u64::from(SIZE)).collect();
    let mut sent = vec![(0, 0, 0); usize::from(SIZE)];
    let (mut pushed, mut done) = (0, 0);
    driver.disable_interrupts();
    while done < CHAINS {
        while pushed < CHAINS {
            let Some(&slot) = free.last() else { break };
            let at = BUFFERS + slot * SLOT;
            let (read_len, write_len) = (1 + numbers.below(HALF), numbers.below(HALF + 1));
            let parts = 1 + numbers.below(4);
            let readable = cut(&mut numbers, at, read_len, parts);
            let writable = cut(&mut numbers, at + HALF, write_len, 1 + parts / 2);
            let bytes: Vec<u8> = (0..usize::try_from(read_len).expect("fits"))
                .map(|i| pattern(pushed, i))
                .collect();
            rig.mem
                .slice(at, bytes.len())
                .expect("mapped")
                .write_from(0, &bytes);
            if driver.push(&readable, &writable, slot).is_err() {
                break;
            }
            free.pop();
            sent[usize::try_from(slot).expect("fits")] = (pushed, read_len, write_len);
            pushed += 1;
            // Publish in bursts of all sizes.
            if numbers.below(5) == 0 && driver.publish() {
                kick.ring();
            }
        }
        if driver.publish() {
            kick.ring();
        }
        let Some((slot, len)) = driver.pop_used().expect("a sane ring") else {
            if !driver.enable_interrupts() {
                call.wait();
            }
            driver.disable_interrupts();
            continue;
        };
        let (seed, read_len, write_len) = sent[usize::try_from(slot).expect("fits")];
        assert_eq!(u64::from(len), read_len.min(write_len));
        let mut got = vec![0; len as usize];
        let at = BUFFERS + slot * SLOT + HALF;
        if len > 0 {
            rig.mem.slice(at, got.len()).expect("mapped").read_to(0, &mut got);
        }
        assert!(
            got.iter()
                .enumerate()
                .all(|(i, byte)| *byte == pattern(seed, i) ^ 0x5a)
        );
        free.push(slot);
        done += 1;
    }
    assert_eq!((driver.in_flight(), driver.free_descriptors()), (0, SIZE));
}

fn run(packed: bool, event_idx: bool, indirect: bool) {
    let mut rig = Rig::new(SIZE);
    rig.config.event_idx = event_idx;
    rig.config.indirect = indirect;
    if packed {
        make_packed(&mut rig, WRAP + 40, WRAP + 40);
    } else {
        rig.config.next_avail = 60_000;
        rig.config.used_idx = 60_000;
    }
    let tables = Some(IndirectTables {
        addr: TABLES,
        entries: 8,
    });
    let (device, driver) = ends(&rig, packed, tables);
    let (kick, call) = (Bell::new(), Bell::new());
    std::thread::scope(|scope| {
        scope.spawn(|| serve(device, &kick, &call));
        drive(&rig, driver, &kick, &call);
    });
}

/// A test for every combination.
macro_rules! tests {
    ($($name:ident: $packed:expr, $event_idx:expr, $indirect:expr;)*) => {
        $(#[test]
        fn $name() {
            run($packed, $event_idx, $indirect);
        })*
    };
}

tests! {
    split_flags_direct: false, false, false;
    split_flags_indirect: false, false, true;
    split_event_idx_direct: false, true, false;
    split_event_idx_indirect: false, true, true;
    packed_flags_direct: true, false, false;
    packed_flags_indirect: true, false, true;
    packed_event_idx_direct: true, true, false;
    packed_event_idx_indirect: true, true, true;
}
