//! Both ends of both kinds of virtqueue, on memory that the other end filled with anything.

use std::sync::Arc;
use std::sync::LazyLock;

use virtio::burst::Burst;
use virtio::memory::{GuestSlice, MemoryMap, SharedMemory};
use virtio::queue::{DriverQueue, Queue, QueueConfig};
use virtio::split::RingLayout;
use virtio::split::driver::Buffer;

const SIZE: u16 = 16;
const BASE: u64 = 0x1_0000;
/// What an input can fill: rings, tables, buffers.
const FILLED: usize = 2048;
/// Of each of two regions, of which the second follows the first and is elsewhere in this process.
const REGION: u64 = 0x2000;

static MEMORY: LazyLock<[SharedMemory; 2]> = LazyLock::new(|| {
    [BASE, BASE + REGION].map(|at| SharedMemory::new("fuzz", at, REGION).expect("memory for the fuzzer"))
});

thread_local! {
    static MAP: Arc<MemoryMap> = Arc::new(
        MemoryMap::new(MEMORY.iter().map(|memory| Arc::clone(memory.region())).collect())
            .expect("regions side by side"),
    );
}

/// Memory for whatever lies in a guest's.
pub(crate) fn scratch() -> GuestSlice<'static> {
    MEMORY[1].region().slice()
}

/// What the first byte of an input chooses, and the rest of it.
fn begin(data: &[u8], packed: bool) -> Option<(QueueConfig, &[u8])> {
    let (&first, rest) = data.split_first()?;
    let layout = RingLayout::new(SIZE);
    let start = match (packed, first & 4 != 0) {
        (false, false) => 0,
        (false, true) => 0xfff8,
        (true, wrapped) => 0x8000 | if wrapped { SIZE - 2 } else { 0 },
    };
    let config = QueueConfig {
        size: SIZE,
        desc: BASE + layout.desc,
        avail: BASE + layout.avail,
        used: BASE + layout.used,
        event_idx: first & 1 != 0,
        indirect: first & 2 != 0,
        next_avail: start,
        used_idx: start,
    };
    Some((config, rest))
}

/// Fills the first region with `data` and zeroes.
fn fill(data: &[u8]) {
    let mut bytes = [0; FILLED];
    let len = data.len().min(FILLED);
    bytes[..len].copy_from_slice(&data[..len]);
    MEMORY[0].region().slice().write_from(0, &bytes);
}

fn device(data: &[u8], packed: bool) {
    let Some((config, rest)) = begin(data, packed) else {
        return;
    };
    fill(rest);
    let map = MAP.with(Arc::clone);
    let mut queue = Queue::new(Arc::clone(&map), &config, packed).expect("a queue inside the memory");
    let mut burst = Burst::new();
    // The ring stays as it is, or is overwritten with used chains: it comes to an end, or goes on for ever. Four bursts show either.
    for _ in 0..4 {
        let Ok(count) = queue.pop_burst(&mut burst, 64) else {
            return;
        };
        assert!(count <= 64 && count == burst.len());
        for chain in burst.chains() {
            let mut lengths = [0_u64; 2];
            for (list, length) in [chain.readable, chain.writable].iter().zip(&mut lengths) {
                for segment in *list {
                    *length += segment.len() as u64;
                    let inside = map.regions().iter().any(|region| {
                        let start = region.slice().as_ptr().addr();
                        let at = segment.as_ptr().addr();
                        at >= start && at + segment.len() <= start + region.slice().len()
                    });
                    assert!(inside, "a segment outside the memory");
                }
            }
            assert_eq!(
                lengths,
                [u64::from(chain.readable_len), u64::from(chain.writable_len)]
            );
            assert!(
                chain.error.is_none() || lengths == [0, 0],
                "an error and segments as well"
            );
        }
        if count == 0 {
            queue.enable_notification();
            return;
        }
        let back = count / 4;
        queue.unpop(u16::try_from(back).unwrap_or(0));
        queue.add_used(
            burst
                .chains()
                .take(count - back)
                .map(|chain| (chain.head, chain.writable_len)),
        );
        queue.publish();
    }
}

/// The device end of a split queue.
///
/// # Panics
/// When something is wrong with what comes of it.
pub fn split_device(data: &[u8]) {
    device(data, false);
}

/// The device end of a packed queue.
///
/// # Panics
/// When something is wrong with what comes of it.
pub fn packed_device(data: &[u8]) {
    device(data, true);
}

/// Plays a driver end whose device writes what the input says between any two steps.
fn driver(data: &[u8], packed: bool) {
    let Some((config, mut rest)) = begin(data, packed) else {
        return;
    };
    fill(&[]);
    let map = MAP.with(Arc::clone);
    let mut queue =
        DriverQueue::new(Arc::clone(&map), &config, None, packed).expect("a queue inside the memory");
    let mut outstanding = [false; 256];
    // Each step: how many chains to push, then where the device writes what.
    while let Some((&[chains, at_low, at_high, count], more)) = rest.split_first_chunk::<4>() {
        rest = more;
        for _ in 0..chains % 8 {
            let Some(token) = outstanding.iter().position(|out| !out) else {
                break;
            };
            let buffer = Buffer {
                addr: BASE + 0x1000,
                len: 64,
            };
            let list = [buffer; 3];
            let several = usize::from(chains >> 6);
            if queue
                .push(&[], &list[..several.clamp(1, 3)], token as u64)
                .is_ok()
            {
                outstanding[token] = true;
            }
        }
        queue.publish();
        let (written, more) = rest.split_at(usize::from(count % 32).min(rest.len()));
        rest = more;
        let at = usize::from(u16::from_le_bytes([at_low, at_high])) % 1024;
        MEMORY[0].region().slice().write_from(at, written);
        loop {
            match queue.pop_used() {
                Ok(Some((token, len))) => {
                    let out = usize::try_from(token).ok().and_then(|at| outstanding.get_mut(at));
                    let out = out.expect("a token of ours");
                    assert!(std::mem::take(out), "a chain came back twice");
                    assert!(len <= 3 * 64, "more written than there was room for");
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        queue.enable_interrupts();
    }
}

/// The driver end of a split queue.
///
/// # Panics
/// When something is wrong with what comes of it.
pub fn split_driver(data: &[u8]) {
    driver(data, false);
}

/// The driver end of a packed queue.
///
/// # Panics
/// When something is wrong with what comes of it.
pub fn packed_driver(data: &[u8]) {
    driver(data, true);
}
