//! What a frame costs at the rings: nanoseconds per frame, one core, caches warm, single-descriptor chains.
//!
//! `pop` is a device end's pop, `add_used` and `publish` of one frame; `hop` is a whole frame through a switch without its
//! look-ups: both ends' rings, the header read and written, and the copy. `offload` is what a receiver without offloads costs:
//! a checksum completed during the copy, and the frames that a super-frame becomes.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio::burst::Burst;
use virtio::checksum::copy_completing;
use virtio::memory::{MemoryMap, SharedMemory, copy_chain, read_chain, write_chain};
use virtio::net::{GSO_TCPV4, HDR_F_NEEDS_CSUM, HEADER_LEN, NetHeader};
use virtio::packed;
use virtio::queue::{DriverQueue, Queue, QueueConfig};
use virtio::segment::{Completion, Segmenter};
use virtio::split::RingLayout;
use virtio::split::driver::Buffer;

const SIZE: u16 = 256;
const BUFFER: u64 = 2048;
const REGION: u64 = 1 << 22;
const RUNS: usize = 10_000;

/// A device end, a driver end and a buffer for every entry, spread over all regions in turn.
struct Bench {
    device: Queue,
    driver: DriverQueue,
    buffers: Vec<Buffer>,
}

impl Bench {
    fn new(packed: bool, regions: u64) -> Self {
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
            next_avail: if packed { packed::WRAP } else { 0 },
            used_idx: if packed { packed::WRAP } else { 0 },
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
        let mut driver = DriverQueue::new(Arc::clone(&mem), &config, None, packed).expect("a driver end");
        driver.disable_interrupts();
        let device = Queue::new(mem, &config, packed).expect("a device end");
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

/// The median of many runs of a piece of work over `SIZE` frames, in nanoseconds per frame: others on the machine don't show.
/// `prepare` isn't counted.
fn median<T>(state: &mut T, prepare: impl Fn(&mut T), work: impl Fn(&mut T)) -> f64 {
    let mut runs: Vec<Duration> = (0..RUNS)
        .map(|_| {
            prepare(state);
            let start = Instant::now();
            work(state);
            start.elapsed()
        })
        .collect();
    runs.sort_unstable();
    runs[RUNS / 2].as_secs_f64() * 1e9 / f64::from(SIZE)
}

fn pop(packed: bool, burst_len: usize, regions: u64) -> f64 {
    let mut state = (Bench::new(packed, regions), Burst::new());
    median(
        &mut state,
        |(bench, _)| bench.fill(false, 64),
        |(bench, burst)| {
            while bench.device.pop_burst(burst, burst_len).expect("a sane ring") > 0 {
                bench.device.add_used(burst.chains().map(|chain| {
                    black_box(chain.readable);
                    (chain.head, 0)
                }));
                black_box(bench.device.publish());
            }
        },
    )
}

fn hop(packed: bool, burst_len: usize, regions: u64, frame: u32) -> f64 {
    let header_len = u32::try_from(HEADER_LEN).expect("fits");
    let mut state = (
        Bench::new(packed, regions),
        Bench::new(packed, regions),
        Burst::new(),
        Burst::new(),
    );
    median(
        &mut state,
        |(tx, rx, _, _)| {
            tx.fill(false, frame + header_len);
            rx.fill(true, 0);
        },
        |(tx, rx, out, into)| {
            while tx.device.pop_burst(out, burst_len).expect("a sane ring") > 0 {
                let n = rx.device.pop_burst(into, out.len()).expect("a sane ring");
                assert_eq!(n, out.len());
                rx.device
                    .add_used(out.chains().zip(into.chains()).map(|(from, to)| {
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
                        (to.head, u32::try_from(copied + HEADER_LEN).expect("fits"))
                    }));
                tx.device.add_used(out.chains().map(|from| (from.head, 0)));
                black_box(rx.device.publish());
                black_box(tx.device.publish());
            }
        },
    )
}

/// A checksum completed during the copy of a full frame, and a frame of a super-frame of 44 of them.
fn offload() -> (f64, f64) {
    let mut shared = SharedMemory::new("offload-bench", 0, REGION).expect("shared memory");
    let header = NetHeader {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::default()
    };
    let mut head = [0; 66];
    head[12] = 8;
    head[14] = 0x45;
    head[23] = 6;
    head[46] = 0x80;
    let complete = median(
        &mut shared,
        |_| {},
        |shared| {
            let (from, to) = shared.region().slice().split_at(1 << 17);
            for _ in 0..SIZE {
                black_box(copy_completing(&[from], 0, &[to], 0, 1514, 34, 16));
            }
        },
    );
    let segment = median(
        &mut shared,
        |_| {},
        |shared| {
            let (from, to) = shared.region().slice().split_at(1 << 17);
            let src = [from];
            let mut left = SIZE;
            while left > 0 {
                let plan = Segmenter::new(&head, &header, 66 + 44 * 1448).expect("a plan");
                let mut frames = plan.frames(&src, 0);
                while left > 0 && black_box(frames.write_next(&[to], 0, Completion::Here)).is_some() {
                    left -= 1;
                }
            }
        },
    );
    (complete, segment)
}

fn main() {
    println!("{:<32} {:>10} {:>10}", "ns per frame", "1 region", "8 regions");
    for (packed, layout) in [(false, "split"), (true, "packed")] {
        for burst in [1, 32] {
            let row = format!("{layout} pop, burst {burst}");
            println!(
                "{row:<32} {:>10.1} {:>10.1}",
                pop(packed, burst, 1),
                pop(packed, burst, 8)
            );
        }
        for frame in [60, 1514] {
            for burst in [1, 32] {
                let row = format!("{layout} hop, {frame} bytes, burst {burst}");
                let (one, eight) = (hop(packed, burst, 1, frame), hop(packed, burst, 8, frame));
                println!("{row:<32} {one:>10.1} {eight:>10.1}");
            }
        }
    }
    let (complete, segment) = offload();
    println!("{:<32} {complete:>10.1}", "offload, checksum, 1514 bytes");
    println!("{:<32} {segment:>10.1}", "offload, segment, 1514 bytes");
}
