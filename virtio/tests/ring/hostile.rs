//! A driver that writes anything at any time: nothing may panic, hang, or leave its memory.

use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use virtio::burst::Burst;
use virtio::split::device::DeviceQueue;

use crate::rig::{BASE, BUFFERS, FAR, HOLE, NEXT, Rig, TABLES};

const SIZE: u16 = 16;

/// Pops once and checks that every segment lies in a region. False when the ring broke.
fn pop(rig: &Rig, device: &mut DeviceQueue, burst: &mut Burst) -> bool {
    let Ok(n) = device.pop_burst(burst, 64) else {
        return false;
    };
    assert!(n <= 64);
    for chain in burst.chains() {
        for segment in chain.readable.iter().chain(chain.writable) {
            let first = rig.guest_addr(segment.as_ptr());
            let last = rig.guest_addr(segment.skip(segment.len() - 1).as_ptr());
            assert_eq!(last - first, segment.len() as u64 - 1);
        }
        device.add_used(chain.head, chain.writable_len);
    }
    device.publish();
    true
}

#[test]
fn a_driver_changes_everything_while_the_device_reads() {
    let mut rig = Rig::new(SIZE);
    rig.config.event_idx = true;
    let stop = AtomicBool::new(false);
    let addrs = [
        BUFFERS,
        NEXT - 8,
        HOLE - 8,
        FAR,
        TABLES,
        TABLES + 64,
        NEXT - 24,
        u64::MAX - 8,
        0,
    ];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 1_u64;
            let mut next = |below: u64| {
                n ^= n << 13;
                n ^= n >> 7;
                n ^= n << 17;
                n % below
            };
            while !stop.load(Ordering::Relaxed) {
                let pick = usize::try_from(next(addrs.len() as u64)).expect("fits");
                let table = [rig.config.desc, TABLES, NEXT - 24][usize::try_from(next(3)).expect("fits")];
                let entry = u16::try_from(next(17)).expect("fits") % SIZE;
                let len = [0, 16, 48, 256, 4096, u32::MAX][usize::try_from(next(6)).expect("fits")];
                let flags = u16::try_from(next(8)).expect("fits");
                let follow = u16::try_from(next(u64::from(SIZE) + 1)).expect("fits");
                rig.table_desc(table, entry, addrs[pick], len, flags, follow);
                let heads: [u16; 2] = [entry, follow % SIZE];
                rig.make_available(rig.used_idx(), &heads);
                rig.set_used_event(entry);
            }
        });
        let mut burst = Burst::new();
        let (mut broken, mut popped) = (0, 0_usize);
        while popped < 20_000 || broken < 100 {
            let mut config = rig.config;
            config.next_avail = rig.used_idx();
            config.used_idx = rig.used_idx();
            let mut device = DeviceQueue::new(rig.mem.clone(), &config).expect("a device end");
            for _ in 0..1000 {
                if !pop(&rig, &mut device, &mut burst) {
                    broken += 1;
                    break;
                }
                popped += burst.len();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

proptest! {
    #[test]
    fn random_rings_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 16 * 16),
        table in prop::collection::vec(any::<u8>(), 64),
        heads in prop::collection::vec(0u16..20, 1..16),
        point_into_memory in prop::collection::vec((0usize..16, 0u64..0x2000), 0..16),
    ) {
        let rig = Rig::new(SIZE);
        rig.write(rig.config.desc, &bytes);
        rig.write(TABLES, &table);
        for (i, off) in point_into_memory {
            let at = rig.config.desc + 16 * i as u64;
            rig.write(at, &(BASE + 0x4_0000 + off).to_le_bytes());
            rig.write(at + 10, &[0, 0]);
        }
        rig.make_available(0, &heads);
        let mut device = rig.device();
        let mut burst = Burst::new();
        while pop(&rig, &mut device, &mut burst) && !burst.is_empty() {}
    }
}
