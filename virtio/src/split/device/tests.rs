//! The device end against the driver end.

use std::sync::Arc;

use crate::burst::Burst;
use crate::memory::{MemoryMap, SharedMemory};
use crate::split::device::DeviceQueue;
use crate::split::driver::{Buffer, DriverQueue};
use crate::split::{QueueConfig, RingLayout};

#[test]
fn a_frame_goes_over_and_its_buffer_comes_back() {
    let shared = SharedMemory::new("virtio-test", 0x10_0000, 0x1_0000).expect("shared memory");
    let mem = Arc::new(MemoryMap::new(vec![Arc::clone(shared.region())]).expect("map"));
    let layout = RingLayout::new(8);
    let base = 0x10_0000;
    let config = QueueConfig {
        size: 8,
        desc: base + layout.desc,
        avail: base + layout.avail,
        used: base + layout.used,
        ..QueueConfig::default()
    };
    let mut driver = DriverQueue::new(Arc::clone(&mem), &config, None).expect("driver");
    let mut device = DeviceQueue::new(Arc::clone(&mem), &config).expect("device");
    let mut burst = Burst::new();
    assert_eq!(device.pop_burst(&mut burst, 64), Ok(0));

    let (addr, len) = (base + 0x8000, 5);
    assert_eq!(mem.slice(addr, 5).expect("mapped").write_from(0, b"hello"), 5);
    driver.push(&[Buffer { addr, len }], &[], 77).expect("room");
    assert!(driver.publish(), "the device didn't ask for silence");
    assert_eq!(device.pop_burst(&mut burst, 64), Ok(1));
    let chain = burst.get(0).expect("one chain");
    let mut got = [0; 5];
    assert_eq!(chain.readable[0].read_to(0, &mut got), 5);
    assert_eq!(&got, b"hello");
    assert!(chain.writable.is_empty());
    device.add_used(chain.head, 0);
    assert_eq!(driver.pop_used(), Ok(None), "not published yet");
    assert!(device.publish());
    assert_eq!(driver.pop_used(), Ok(Some((77, 0))));
    assert_eq!(driver.in_flight(), 0);
}
