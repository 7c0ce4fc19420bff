use std::sync::Mutex;

use super::*;

/// Reads answer with the offset; writes are recorded.
#[derive(Default)]
struct Probe(Mutex<Vec<(u64, u64, Vec<u8>)>>);

impl BusDevice for Probe {
    fn read(&self, _base: u64, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = u8::try_from(at & 0xff).expect("masked");
        }
    }

    fn write(&self, base: u64, offset: u64, data: &[u8]) {
        self.0.lock().unwrap().push((base, offset, data.to_vec()));
    }
}

#[test]
fn access_reaches_the_device_with_its_offset() {
    let bus = Bus::new();
    let probe = Arc::new(Probe::default());
    bus.insert(0x1000..0x1010, probe.clone()).unwrap();
    bus.insert(0x1010..0x1020, Arc::new(Probe::default())).unwrap();

    let mut data = [0u8; 4];
    assert!(bus.read(0x1004, &mut data));
    assert_eq!(data, [4, 5, 6, 7]);
    assert!(bus.write(0x100f, &[9]));
    assert_eq!(*probe.0.lock().unwrap(), [(0x1000, 0xf, vec![9])]);
}

#[test]
fn an_access_across_the_end_is_clipped() {
    let bus = Bus::new();
    let probe = Arc::new(Probe::default());
    bus.insert(0x1000..0x1003, probe.clone()).unwrap();

    let mut data = [0u8; 8];
    assert!(bus.read(0x1001, &mut data));
    assert_eq!(data, [1, 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert!(bus.write(0x1002, &[1, 2, 3, 4]));
    assert_eq!(*probe.0.lock().unwrap(), [(0x1000, 2, vec![1])]);
}

#[test]
fn nobody_there_reads_as_ones() {
    let bus = Bus::new();
    bus.insert(0x1000..0x1003, Arc::new(Probe::default())).unwrap();
    let mut data = [0u8; 2];
    assert!(!bus.read(0x0fff, &mut data));
    assert_eq!(data, [0xff; 2]);
    assert!(!bus.read(0x1003, &mut data));
    assert!(!bus.read(u64::MAX, &mut data));
    assert!(!bus.write(0x2000, &[0]));
}

#[test]
fn overlaps_are_refused_and_a_removed_range_is_free() {
    let bus = Bus::new();
    bus.insert(0x1000..0x1010, Arc::new(Probe::default())).unwrap();
    for range in [0x0ff0..0x1001, 0x100f..0x1100, 0x1004..0x1005, 0x0..0x2000] {
        assert!(matches!(
            bus.insert(range, Arc::new(Probe::default())),
            Err(BusError::Overlap(..))
        ));
    }
    assert!(matches!(
        bus.insert(0x10..0x10, Arc::new(Probe::default())),
        Err(BusError::Empty(..))
    ));
    assert!(!bus.remove(&(0x1000..0x1008)));
    assert!(bus.remove(&(0x1000..0x1010)));
    bus.insert(0x0ff0..0x1001, Arc::new(Probe::default())).unwrap();
}
