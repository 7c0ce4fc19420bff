//! What a frame costs at the rings: nanoseconds per frame, one core, caches warm, single-descriptor chains.
//!
//! `pop` is a device end's pop, `add_used` and `publish` of one frame; `hop` is a whole frame through a switch without its
//! look-ups: both ends' rings, the header read and written, and the copy.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio::burst::Burst;
use virtio::memory::{MemoryMap, SharedMemory, copy_chain, read_chain, write_chain};
use virtio::net::{HEADER_LEN, NetHeader};
use virtio::split::device::DeviceQueue;
use virtio::split::driver::{Buffer, DriverQueue};
use virtio::split::{QueueConfig, RingLayout};

const SIZE: u16 = 256;
const BUFFER: u64 = 2048;
const REGION: u64 = 1 << 22;
const ROUNDS: usize = 2000;
const REPEATS: usize = 7;

/// A device end, a driver end and a buffer for every entry, spread over all regions in turn.
struct Bench {
    device: DeviceQueue,
    driver: DriverQueue,
    buffers: Vec<Buffer>,
}

impl Bench {
    fn new(regions: u64) -> Self {
        let shared: Vec<SharedMemory> = (0..regions)
            .map(|i| SharedMemory::new("ring-bench", i * 2 * REGION, REGION).expect("shared memory"))
            .collect();
        let mem = MemoryMap::new(shared.iter().map(|s| Arc::clone(s.region())).collect());
        let mem = Arc::new(mem.expect("a map"));
        let layout = RingLayout::new(SIZE);
        let config = QueueConfig {
            size: SIZE,
            desc: layout.desc,
            avail: layout.avail,
            used: layout.used,
            event_idx: true,
            indirect: true,
            ..QueueConfig::default()
        };
        let buffers = (0..u64::from(SIZE))
            .map(|i| {
                let addr = (i % regions) * 2 * REGION + 0x10_0000 + (i / regions) * BUFFER;
                Buffer {
                    addr,
                    len: u32::try_from(BUFFER).expect("fits"),
                }
            })
            .collect();
        let mut driver = DriverQueue::new(Arc::clone(&mem), &config, None).expect("a driver end");
        driver.disable_interrupts();
        let device = DeviceQueue::new(mem, &config).expect("a device end");
        Self {
            device,
            driver,
            buffers,
        }
    }

    fn fill(&mut self, writable: bool, len: u32) {
        while self.driver.pop_used().expect("a sane ring").is_some() {}
        for buffer in &self.buffers {
            let pushed = if writable {
                self.driver.push(&[], &[*buffer], 0)
            } else {
                self.driver.push(&[Buffer { len, ..*buffer }], &[], 0)
            };
            pushed.expect("room");
        }
        self.driver.publish();
    }
}

/// The best of several runs of a piece of work over `SIZE` frames, in nanoseconds per frame. `prepare` isn't counted.
fn best<T>(state: &mut T, prepare: impl Fn(&mut T), work: impl Fn(&mut T)) -> f64 {
    let mut best = Duration::MAX;
    for _ in 0..REPEATS {
        let mut total = Duration::ZERO;
        for _ in 0..ROUNDS {
            prepare(state);
            let start = Instant::now();
            work(state);
            total += start.elapsed();
        }
        best = best.min(total);
    }
    let frames = u32::try_from(ROUNDS).expect("fits") * u32::from(SIZE);
    best.as_secs_f64() * 1e9 / f64::from(frames)
}

fn pop(burst_len: usize, regions: u64) -> f64 {
    let mut state = (Bench::new(regions), Burst::new());
    best(
        &mut state,
        |(bench, _)| bench.fill(false, 64),
        |(bench, burst)| {
            while bench.device.pop_burst(burst, burst_len).expect("a sane ring") > 0 {
                for chain in burst.chains() {
                    black_box(chain.readable);
                    bench.device.add_used(chain.head, 0);
                }
                black_box(bench.device.publish());
            }
        },
    )
}

fn hop(burst_len: usize, regions: u64, frame: u32) -> f64 {
    let header_len = u32::try_from(HEADER_LEN).expect("fits");
    let mut state = (
        Bench::new(regions),
        Bench::new(regions),
        Burst::new(),
        Burst::new(),
    );
    best(
        &mut state,
        |(tx, rx, _, _)| {
            tx.fill(false, frame + header_len);
            rx.fill(true, 0);
        },
        |(tx, rx, out, into)| {
            while tx.device.pop_burst(out, burst_len).expect("a sane ring") > 0 {
                let n = rx.device.pop_burst(into, out.len()).expect("a sane ring");
                assert_eq!(n, out.len());
                for (from, to) in out.chains().zip(into.chains()) {
                    let len = from.readable_len as usize - HEADER_LEN;
                    let mut snapshot = [0; HEADER_LEN + 64];
                    read_chain(from.readable, 0, &mut snapshot);
                    let header = snapshot
                        .first_chunk()
                        .map(NetHeader::from_bytes)
                        .expect("long enough");
                    let header = header.validate_tx(len, 0).expect("plain");
                    black_box(&snapshot);
                    write_chain(
                        to.writable,
                        0,
                        &NetHeader {
                            num_buffers: 1,
                            ..header
                        }
                        .to_bytes(),
                    );
                    let copied = copy_chain(from.readable, HEADER_LEN, to.writable, HEADER_LEN, len);
                    rx.device
                        .add_used(to.head, u32::try_from(copied + HEADER_LEN).expect("fits"));
                    tx.device.add_used(from.head, 0);
                }
                black_box(rx.device.publish());
                black_box(tx.device.publish());
            }
        },
    )
}

fn main() {
    println!("{:<28} {:>10} {:>10}", "ns per frame", "1 region", "8 regions");
    for burst in [1, 32] {
        let row = format!("pop, burst {burst}");
        println!("{row:<28} {:>10.1} {:>10.1}", pop(burst, 1), pop(burst, 8));
    }
    for frame in [60, 1514] {
        for burst in [1, 32] {
            let row = format!("hop, {frame} bytes, burst {burst}");
            println!(
                "{row:<28} {:>10.1} {:>10.1}",
                hop(burst, 1, frame),
                hop(burst, 8, frame)
            );
        }
    }
}
