//! What a well-behaved front-end sees.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use netyard_testkit::endpoint::region_info;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost_net_backend::nic::Nic;
use vhost_net_backend::{PortConfig, Session, SessionHandle, SocketConfig};
use virtio::features as f;
use virtio::memory::SharedMemory;

use crate::guest::{FEATURES, Guest, SIZE, connect, frame, negotiate};
use crate::until;
use crate::wires::echo;

/// A device whose frames come back, on a socket of its own.
pub(crate) struct Device {
    pub(crate) handle: SessionHandle,
    pub(crate) nic: Arc<Nic>,
    pub(crate) path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Device {
    pub(crate) fn start(pairs: u16) -> Self {
        Self::with(
            PortConfig {
                queue_pairs: pairs,
                ..PortConfig::new("test")
            },
            |config| config,
        )
    }

    pub(crate) fn with(port: PortConfig, socket: impl FnOnce(SocketConfig) -> SocketConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let nic = echo(port.queue_pairs, port.mtu);
        let config = socket(SocketConfig::server(&path));
        let handle = Session::spawn(config, port, Arc::clone(&nic) as _).unwrap();
        Self {
            handle,
            nic,
            path,
            _dir: dir,
        }
    }
}

#[test]
fn frames_go_both_ways_on_every_pair() {
    let device = Device::start(16);
    let mut guest = Guest::start(&device.path, 16);
    for round in 0..3 {
        for pair in 0..16 {
            guest.ping(pair, &format!("round {round} on pair {pair}"));
        }
    }
    assert_eq!(device.handle.status().enabled_queue_pairs(), 16);
    assert!(
        device
            .nic
            .counts()
            .iter()
            .all(|counts| counts.tx_frames == 3 && counts.rx_frames == 3)
    );
}

#[test]
fn many_frames_keep_their_order() {
    let device = Device::start(1);
    let mut guest = Guest::start(&device.path, 1);
    let (mut sent, mut received) = (0, 0);
    while received < 20_000 {
        while sent - received < usize::from(SIZE) - 1 && guest.send(0, &frame(&format!("frame {sent}"))) {
            sent += 1;
        }
        assert_eq!(guest.receive(0), frame(&format!("frame {received}")));
        received += 1;
    }
}

#[test]
fn works_without_event_idx_and_mergeable_buffers() {
    let device = Device::start(1);
    let mut guest = Guest::connect(&device.path, 1, f::VERSION_1 | f::VHOST_USER_F_PROTOCOL_FEATURES);
    for ring in 0..2 {
        guest.start_ring(ring, 0);
        guest.frontend.set_vring_enable(ring, true).unwrap();
    }
    guest.post_all(0);
    for round in 0..500 {
        guest.ping(0, &format!("round {round}"));
    }
}

#[test]
fn a_ring_that_is_not_enabled_receives_nothing_and_discards_what_it_sends() {
    let device = Device::start(1);
    let mut guest = Guest::connect(&device.path, 1, FEATURES);
    guest.start_ring(0, 0);
    guest.start_ring(1, 0);
    guest.post_all(0);
    assert!(guest.send(0, &frame("into the void")));
    until("the frame is taken", || guest.in_flight(0) == 0);
    assert_eq!(device.nic.counts()[0].tx_discarded, 1);
    assert_eq!(guest.try_receive(0), None);

    guest.frontend.set_vring_enable(1, true).unwrap();
    assert!(guest.send(0, &frame("kept for nobody")));
    until("the frame is sent", || guest.in_flight(0) == 0);
    assert_eq!(guest.try_receive(0), None);

    guest.frontend.set_vring_enable(0, true).unwrap();
    // The echo holds frames only while the receiving ring is enabled or not yet so; it has one.
    let first = guest.receive(0);
    assert!(first == frame("kept for nobody"));
    guest.ping(0, "both enabled");
    guest.frontend.set_vring_enable(0, false).unwrap();
    assert!(guest.send(0, &frame("not received")));
    until("the frame is sent", || guest.in_flight(0) == 0);
    assert_eq!(guest.try_receive(0), None);
}

#[test]
fn without_protocol_features_all_rings_are_enabled_at_once() {
    let device = Device::start(1);
    let mut guest = Guest::connect(&device.path, 1, FEATURES & !f::VHOST_USER_F_PROTOCOL_FEATURES);
    guest.start_ring(0, 0);
    guest.start_ring(1, 0);
    guest.post_all(0);
    guest.ping(0, "no enable needed");
}

#[test]
fn rings_may_be_enabled_before_the_features_are_set() {
    let device = Device::start(2);
    let stream = connect(&device.path);
    let again = stream.try_clone().unwrap();
    let frontend = negotiate(stream);
    // What QEMU does for every queue pair while its guest has not booted.
    for (ring, state) in [(0u64, 1u64), (1, 1), (2, 0), (3, 0)] {
        let mut bytes: Vec<u8> = [18u32, 1 | 8, 8].into_iter().flat_map(u32::to_ne_bytes).collect();
        bytes.extend((state << 32 | ring).to_ne_bytes());
        (&again).write_all(&bytes).unwrap();
        let mut reply = [0; 20];
        (&again).read_exact(&mut reply).unwrap();
        assert_eq!(reply[12..], [0; 8]);
    }
    frontend.set_features(FEATURES).unwrap();
    assert_eq!(device.handle.status().enabled_rings, 0b0011);
}

#[test]
fn a_stopped_ring_goes_on_where_it_was() {
    let device = Device::start(1);
    let mut guest = Guest::start(&device.path, 1);
    for round in 0..100 {
        guest.ping(0, &format!("round {round}"));
        for ring in 0..2 {
            let base = u16::try_from(guest.frontend.get_vring_base(ring).unwrap()).unwrap();
            // A transmit ring has no chain left; a receive ring was given all its buffers back.
            let avail = guest.queues[ring].driver.avail_idx();
            let expected = if ring == 1 {
                avail
            } else {
                avail.wrapping_sub(SIZE)
            };
            assert_eq!(base, expected, "ring {ring}");
            assert_eq!(device.handle.status().started_rings & (1 << ring), 0);
            guest.start_ring(ring, base);
        }
    }
    guest.ping(0, "still there");
}

#[test]
fn a_stopped_ring_is_not_written_any_more() {
    let device = Device::start(1);
    let mut guest = Guest::start(&device.path, 1);
    for _ in 0..20 {
        for n in 0..32 {
            guest.send(0, &frame(&format!("burst {n}")));
        }
        let base = guest.frontend.get_vring_base(1).unwrap();
        let left = guest.in_flight(0);
        // Kicks do not wake a stopped ring.
        guest.queues[1].kick.write(1).unwrap();
        guest.ping_config();
        assert_eq!(guest.in_flight(0), left);
        guest.start_ring(1, u16::try_from(base).unwrap());
        until("the rest is sent", || guest.in_flight(0) == 0);
        while guest.try_receive(0).is_some() {}
    }
}

impl Guest {
    /// A round trip on the socket.
    fn ping_config(&mut self) {
        self.frontend
            .get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8])
            .unwrap();
    }
}

#[test]
fn the_configuration_space_tells_mac_link_pairs_and_mtu() {
    let port = PortConfig {
        mac: Some([2, 0, 0, 0, 0, 7]),
        mtu: Some(9000),
        queue_pairs: 3,
        ..PortConfig::new("config")
    };
    let device = Device::with(port, |config| config);
    let mut guest = Guest::connect(&device.path, 1, FEATURES);
    let mut read = || {
        guest
            .frontend
            .get_config(0, 12, VhostUserConfigFlags::empty(), &[0; 12])
            .unwrap()
            .1
    };
    assert_eq!(read(), [2, 0, 0, 0, 0, 7, 1, 0, 3, 0, 0x28, 0x23]);
    device.handle.set_link(false);
    assert_eq!(read()[6..8], [0, 0]);
    // Writing it is refused, and that is all.
    assert!(
        guest
            .frontend
            .set_config(0, VhostUserConfigFlags::WRITABLE, &[0; 6])
            .is_err()
    );
    assert!(device.handle.status().connected);
    guest
        .frontend
        .get_config(0, 12, VhostUserConfigFlags::empty(), &[0; 12])
        .unwrap();
}

#[test]
fn memory_comes_and_goes_under_traffic() {
    let device = Device::start(1);
    let mut guest = Guest::start(&device.path, 1);
    let slots = guest.frontend.get_max_mem_slots().unwrap();
    assert!(slots >= 64);
    for round in 0..30u64 {
        let extra = SharedMemory::new("extra", 0x1_0000_0000 + round * 0x10_0000, 0x10_0000).unwrap();
        for n in 0..16 {
            guest.send(0, &frame(&format!("before {n}")));
        }
        guest.frontend.add_mem_region(&region_info(&extra)).unwrap();
        assert_eq!(device.handle.status().regions, 2);
        guest.frontend.remove_mem_region(&region_info(&extra)).unwrap();
        // The whole table once more, while rings run.
        guest
            .frontend
            .set_mem_table(&[region_info(&guest.memory)])
            .unwrap();
        for n in 0..16 {
            assert_eq!(guest.receive(0), frame(&format!("before {n}")), "round {round}");
        }
    }
    assert_eq!(device.handle.status().regions, 1);
}

#[test]
fn a_reset_forgets_the_rings_and_keeps_the_connection() {
    let device = Device::start(1);
    let mut guest = Guest::start(&device.path, 1);
    guest.ping(0, "before");
    guest.frontend.reset_device().unwrap();
    let status = device.handle.status();
    assert_eq!(
        (status.started_rings, status.enabled_rings, status.features),
        (0, 0, 0)
    );
    assert!(status.connected);
    guest.frontend.set_features(FEATURES).unwrap();
    let base = [0, 1].map(|ring| guest.queues[ring].driver.avail_idx());
    guest.start_ring(0, base[0].wrapping_sub(SIZE));
    guest.start_ring(1, base[1]);
    guest.frontend.set_vring_enable(0, true).unwrap();
    guest.frontend.set_vring_enable(1, true).unwrap();
    guest.ping(0, "after");
}

#[test]
fn a_call_that_is_exchanged_is_signalled_at_once() {
    let device = Device::start(1);
    let mut guest = Guest::start(&device.path, 1);
    guest.ping(0, "first");
    guest.queues[0].call = vmm_sys_util::eventfd::EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
    guest.frontend.set_vring_call(0, &guest.queues[0].call).unwrap();
    assert!(guest.queues[0].call.read().is_ok());
    guest.ping(0, "second");
}

#[test]
fn a_front_end_may_come_again_and_again_and_leaves_nothing() {
    let device = Device::start(2);
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.contains("memfd:guest")).count()
    };
    drop(Guest::start(&device.path, 2));
    until("the first is gone", || !device.handle.status().connected);
    let (before, rss) = (fds(), rss());
    for round in 0..50 {
        let mut guest = Guest::start(&device.path, 2);
        guest.ping(0, &format!("connection {round}"));
        guest.ping(1, &format!("connection {round}"));
        drop(guest);
        until("the connection is over", || !device.handle.status().connected);
    }
    assert_eq!(fds(), before);
    assert_eq!(maps(), 0);
    assert!(
        self::rss() < rss + 8 * 1024 * 1024,
        "resident memory grew from {rss} to {}",
        self::rss()
    );
    let status = device.handle.status();
    assert_eq!(
        (status.connections, status.errors),
        (51, 0),
        "{:?}",
        status.last_error
    );
}

/// Resident memory in bytes.
fn rss() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
