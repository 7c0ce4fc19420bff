//! Both ends of a virtqueue, each on a thread: whatever the order, what is shown is whole, and nobody sleeps over what came.
//!
//! Each barrier was taken out once, and a model failed. `interrupts_are_not_lost`: the fence in `publish` of the device end, in
//! `enable_interrupts` of the driver end, the release of the used index. `kicks_are_not_lost`: the fence in `publish` of the driver end, in
//! `enable_notification` of the device end, the release and the acquire of the available index. The same of packed queues, with the
//! release and the acquire of a descriptor's flags.

use std::sync::Arc;

use loom::thread;
use netyard_models::atomic::forget;
use netyard_models::burst::Burst;
use netyard_models::memory::{MemoryMap, SharedMemory};
use netyard_models::queue::{DriverQueue, Queue, QueueConfig};
use netyard_models::split::RingLayout;
use netyard_models::split::driver::Buffer;

const BASE: u64 = 0x1_0000;
const BUFFERS: u64 = BASE + 0x1000;
const SIZE: u16 = 4;

/// A driver end whose chains are known by their numbers.
struct Driver(DriverQueue);

impl Driver {
    /// Pushes a chain; true when the device is to be kicked.
    fn push(&mut self, number: u32) -> bool {
        let buffer = Buffer {
            addr: BUFFERS + u64::from(number) * 64,
            len: number + 1,
        };
        self.0.push(&[buffer], &[], u64::from(number)).expect("room");
        self.0.publish()
    }

    /// The number of the next chain that came back.
    fn pop(&mut self) -> Option<u64> {
        let used = self.0.pop_used().expect("a device that keeps to the rules");
        used.map(|(number, _)| number)
    }
}

#[derive(Clone, Copy)]
struct Kind {
    packed: bool,
    event_idx: bool,
}

const KINDS: [Kind; 4] = [
    Kind {
        packed: false,
        event_idx: false,
    },
    Kind {
        packed: false,
        event_idx: true,
    },
    Kind {
        packed: true,
        event_idx: false,
    },
    Kind {
        packed: true,
        event_idx: true,
    },
];

impl Kind {
    fn ends(self, map: &Arc<MemoryMap>) -> (Driver, Queue) {
        let layout = RingLayout::new(SIZE);
        let start = if self.packed { 0x8000 } else { 0 };
        let config = QueueConfig {
            size: SIZE,
            desc: BASE + layout.desc,
            avail: BASE + layout.avail,
            used: BASE + layout.used,
            event_idx: self.event_idx,
            indirect: false,
            next_avail: start,
            used_idx: start,
        };
        let map = || Arc::clone(map);
        let driver = DriverQueue::new(map(), &config, None, self.packed).expect("a queue");
        (
            Driver(driver),
            Queue::new(map(), &config, self.packed).expect("a queue"),
        )
    }

    /// Explores what `model` does with a queue on which one chain went both ways before.
    fn check(self, model: impl Fn(Driver, Queue) + Send + Sync + 'static) {
        let memory = SharedMemory::new("model", BASE, 0x2000).expect("memory");
        let map = Arc::new(MemoryMap::new(vec![Arc::clone(memory.region())]).expect("a map"));
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.max_branches = 10_000;
        builder.check(move || {
            let (mut driver, mut device) = self.ends(&map);
            // Neither end asks for anything before its model does.
            driver.0.disable_interrupts();
            device.disable_notification();
            driver.push(0);
            assert_eq!(take(&mut device), [0]);
            device.add_used([(0, 0)]);
            device.publish();
            assert_eq!(driver.pop(), Some(0));
            model(driver, device);
            forget();
        });
    }
}

/// Takes what is there; asserts that each chain is the one that was pushed, and gives their numbers.
fn take(device: &mut Queue) -> Vec<u32> {
    let mut burst = Burst::new();
    device
        .pop_burst(&mut burst, 4)
        .expect("a driver that keeps to the rules");
    burst
        .chains()
        .map(|chain| {
            assert_eq!(chain.error(), None);
            assert_eq!(chain.readable.len(), 1, "a chain of one buffer");
            chain.readable_len - 1
        })
        .collect()
}

/// A device that takes what it finds, then asks to be kicked; the numbers, and whether it sleeps.
fn serve(device: &mut Queue) -> (Vec<u32>, bool) {
    let mut numbers = take(device);
    if device.enable_notification() {
        device.disable_notification();
        numbers.extend(take(device));
        return (numbers, false);
    }
    (numbers, true)
}

#[test]
fn kicks_are_not_lost() {
    for kind in KINDS {
        kind.check(|mut driver, mut device| {
            let other = thread::spawn(move || {
                let served = serve(&mut device);
                (device, served)
            });
            let kicked = driver.push(1) | driver.push(2);
            let (mut device, (mut numbers, sleeps)) = other.join().expect("no panic");
            if sleeps && !kicked {
                assert_eq!(numbers, [1, 2], "the device sleeps over a chain");
            }
            numbers.extend(take(&mut device));
            assert_eq!(numbers, [1, 2]);
        });
    }
}

#[test]
fn interrupts_are_not_lost() {
    for kind in KINDS {
        kind.check(|mut driver, mut device| {
            driver.push(1);
            assert_eq!(take(&mut device), [1]);
            let other = thread::spawn(move || {
                // Descriptors and ids are taken in turn: the second chain has the second.
                device.add_used([(1, 0)]);
                (device.publish(), device)
            });
            let mut number = driver.pop();
            let mut sleeps = false;
            if number.is_none() {
                sleeps = !driver.0.enable_interrupts();
                if !sleeps {
                    number = driver.pop();
                    assert!(number.is_some(), "what was seen was not there");
                }
            }
            let (notified, _device) = other.join().expect("no panic");
            assert!(!sleeps || notified, "the driver sleeps over a used chain");
            assert_eq!(number.or_else(|| driver.pop()), Some(1));
        });
    }
}
