//! Front-ends that break every rule: they lose their connection, and nobody else notices.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use netyard_testkit::message::{header, message};
use rustix::event::EventfdFlags;
use rustix::fs::{MemfdFlags, OFlags};
use vhost::VhostBackend;
use vhost_net_backend::{PortConfig, SocketConfig};
use virtio::net::{GSO_TCPV4, HDR_F_NEEDS_CSUM, NetHeader};
use vmm_sys_util::eventfd::EventFd;

use crate::guest::{BASE, FEATURES, Guest, SIZE, connect, frame, negotiate};
use crate::session::Device;
use crate::until;

const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_KICK: u32 = 12;
const NET_SET_MTU: u32 = 20;
const ADD_MEM_REG: u32 = 37;
const GET_FEATURES: u32 = 1;
const PATIENCE: Duration = Duration::from_millis(300);

fn device() -> Device {
    let port = PortConfig {
        mtu: Some(1500),
        ..PortConfig::new("victim")
    };
    Device::with(port, |config| SocketConfig {
        patience: PATIENCE,
        ..config
    })
}

pub(crate) fn send_fds(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    netyard_testkit::message::send(stream, bytes, fds).unwrap();
}

fn fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Attack a device; it has to end the connection, close what it got, and serve the next front-end.
pub(crate) fn survives(what: &str, attack: impl FnOnce(&Device, UnixStream)) {
    let device = device();
    Guest::start(&device.path, 1).ping(0, "before");
    until("the first is gone", || !device.handle.status().connected);
    let before = fds();
    attack(&device, connect(&device.path));
    until(what, || {
        device.handle.status().errors == 1 && !device.handle.status().connected
    });
    assert_eq!(fds(), before, "{what}: descriptors are left");
    Guest::start(&device.path, 1).ping(0, "after");
}

/// The connection ends for a message sent after a handshake.
pub(crate) fn refuses(what: &str, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    survives(what, |_, stream| {
        let again = stream.try_clone().unwrap();
        let _frontend = negotiate(stream);
        send_fds(&again, bytes, fds);
        let mut rest = Vec::new();
        let _ = (&again).read_to_end(&mut rest);
    });
}

#[test]
fn headers_that_are_none_of_the_protocol() {
    for (what, request, flags, size) in [
        ("size of 4 GiB", GET_FEATURES, 1, u32::MAX),
        ("size over 4 KiB", GET_FEATURES, 1, 4097),
        ("version 0", GET_FEATURES, 0, 0),
        ("version 2", GET_FEATURES, 2, 0),
        ("a reply", GET_FEATURES, 5, 0),
        ("reserved flags", GET_FEATURES, 0x11, 0),
        ("request 0", 0, 1, 0),
        ("request 99", 99, 1, 0),
        ("request 2^31", 1 << 31, 1, 0),
    ] {
        refuses(what, &header(request, flags, size), &[]);
    }
}

#[test]
fn requests_that_were_not_offered() {
    // SEND_RARP, SET_LOG_FD, IOTLB_MSG, VRING_KICK, SET_STATUS, GET_INFLIGHT_FD, SET_VRING_ENDIAN
    for request in [19, 7, 22, 35, 39, 31, 23] {
        refuses(&format!("request {request}"), &message(request, 1, &[0]), &[]);
    }
}

#[test]
fn rings_that_do_not_exist_or_have_no_such_size() {
    for index in [2u64, 255, 0x1_0000, 0xffff_ffff] {
        refuses("an index", &message(SET_VRING_NUM, 1, &[256 << 32 | index]), &[]);
    }
    for size in [0u64, 3, 40_000, 65_536] {
        refuses("a size", &message(SET_VRING_NUM, 1, &[size << 32]), &[]);
    }
}

#[test]
fn the_wrong_number_of_descriptors() {
    let event = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
    let some = |count| vec![event.as_fd(); count];
    refuses("no kick", &message(SET_VRING_KICK, 1, &[0]), &[]);
    refuses("two kicks", &message(SET_VRING_KICK, 1, &[0]), &some(2));
    refuses(
        "a kick that is none",
        &message(SET_VRING_KICK, 1, &[0x100]),
        &some(1),
    );
    refuses(
        "a descriptor for nothing",
        &message(GET_FEATURES, 1, &[]),
        &some(1),
    );
    refuses(
        "a descriptor with an MTU",
        &message(NET_SET_MTU, 1, &[1500]),
        &some(1),
    );
    refuses("32 descriptors", &message(SET_VRING_KICK, 1, &[0]), &some(32));
    refuses("33 descriptors", &message(SET_VRING_KICK, 1, &[0]), &some(33));
    refuses("253 descriptors", &message(SET_VRING_KICK, 1, &[0]), &some(253));
    refuses(
        "a region without memory",
        &message(ADD_MEM_REG, 1, &[0, 0, 4096, 0, 0]),
        &[],
    );
}

#[test]
fn descriptors_that_are_no_eventfds() {
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    let file = File::open("/dev/zero").unwrap();
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::empty()).unwrap();
    let memfd = memfd(4096);
    for fd in [pipe.as_fd(), file.as_fd(), epoll.as_fd(), memfd.as_fd()] {
        for request in [SET_VRING_KICK, 13, 14] {
            refuses("not an eventfd", &message(request, 1, &[0]), &[fd]);
        }
    }
}

fn memfd(len: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create("hostile", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    fd
}

/// A memory table of regions, each guest address, size, user address and offset.
fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut words = vec![regions.len() as u64];
    words.extend(regions.iter().flatten());
    message(SET_MEM_TABLE, 1, &words)
}

#[test]
fn memory_that_is_none() {
    let memory = memfd(0x10_0000);
    let fds = |count| vec![memory.as_fd(); count];
    let regions: [(&str, &[[u64; 4]]); 8] = [
        ("no bytes", &[[0, 0, 0, 0]]),
        ("too short a file", &[[0, 0x20_0000, 0, 0]]),
        ("an offset past the file", &[[0, 0x1000, 0, 0x10_0000]]),
        ("a guest address that wraps", &[[u64::MAX - 4095, 0x2000, 0, 0]]),
        ("a user address that wraps", &[[0, 0x2000, u64::MAX - 4095, 0]]),
        ("an offset that wraps", &[[0, 0x2000, 0, u64::MAX - 4095]]),
        (
            "overlap for the guest",
            &[[0, 0x2000, 0, 0], [0x1000, 0x2000, 0x10_0000, 0]],
        ),
        (
            "overlap for the front-end",
            &[[0, 0x2000, 0, 0], [0x10_0000, 0x2000, 0x1000, 0]],
        ),
    ];
    for (what, regions) in regions {
        refuses(what, &table(regions), &fds(regions.len()));
    }
    refuses(
        "fewer files than regions",
        &table(&[[0, 4096, 0, 0], [8192, 4096, 8192, 0]]),
        &fds(1),
    );
    // A file system whose pages may block or vanish.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(true);
    let mut file = options.open(dir.path().join("memory")).unwrap();
    file.write_all(&[0; 8192]).unwrap();
    if rustix::fs::fstatfs(&file).unwrap().f_type != 0x0102_1994 {
        refuses("memory on a disk", &table(&[[0, 4096, 0, 0]]), &[file.as_fd()]);
    }
}

#[test]
fn a_region_that_was_never_added_is_not_removed() {
    survives("a stray removal", |_, stream| {
        let guest = Guest::on_stream(stream.try_clone().unwrap(), 1, FEATURES);
        send_fds(&stream, &message(38, 1, &[0, BASE + 4096, 4096, BASE, 0]), &[]);
        let _ = (&stream).read_to_end(&mut Vec::new());
        drop(guest);
    });
}

#[test]
fn a_file_that_shrinks_under_a_running_ring() {
    survives("the file was cut", |device, stream| {
        let memory = memfd(0x20_0000);
        let frontend = negotiate(stream);
        let guest = Guest::over(frontend, &memory, FEATURES);
        guest.start_ring(1, 0);
        guest.frontend.set_features(FEATURES).unwrap();
        rustix::fs::ftruncate(&memory, 0).unwrap();
        // The device looks at the ring and finds no page there.
        guest.queues_kick(1);
        until("the connection is ended", || device.handle.status().errors == 1);
    });
}

#[test]
fn rings_change_only_while_stopped() {
    type Change = fn(&Guest) -> bool;
    let changes: [(&str, Change); 4] = [
        ("size", |guest| guest.frontend.set_vring_num(0, SIZE / 2).is_err()),
        ("addresses", |guest| {
            guest.frontend.set_vring_addr(0, &guest.addresses(1)).is_err()
        }),
        ("base", |guest| guest.frontend.set_vring_base(0, 7).is_err()),
        ("features", |guest| {
            guest.frontend.set_features(FEATURES & !1).is_err()
        }),
    ];
    for (what, change) in changes {
        survives(what, |_, stream| {
            let guest = Guest::on_stream(stream, 1, FEATURES);
            guest.start_ring(0, 0);
            assert!(change(&guest), "{what} was accepted");
        });
    }
}

#[test]
fn rings_outside_the_memory() {
    survives("a ring in a hole", |_, stream| {
        let guest = Guest::on_stream(stream, 1, FEATURES);
        let mut at = guest.addresses(0);
        at.used_ring_addr = 0xdead_0000;
        guest.frontend.set_vring_num(0, SIZE).unwrap();
        guest.frontend.set_vring_addr(0, &at).unwrap();
        assert!(guest.frontend.set_vring_kick(0, &guest.queues[0].kick).is_err());
    });
}

#[test]
fn features_that_were_not_offered() {
    survives("a platform's translation", |_, stream| {
        assert!(
            negotiate(stream)
                .set_features(FEATURES | virtio::features::ACCESS_PLATFORM)
                .is_err()
        );
    });
}

#[test]
fn messages_that_never_end() {
    survives("half a header", |device, mut stream| {
        stream.write_all(&[1, 0, 0, 0, 1, 0]).unwrap();
        until("patience ends", || device.handle.status().errors == 1);
    });
    survives("a body that does not come", |device, mut stream| {
        stream.write_all(&message(SET_VRING_NUM, 1, &[0])[..16]).unwrap();
        until("patience ends", || device.handle.status().errors == 1);
    });
    survives("half a message and the end", |_, mut stream| {
        stream.write_all(&message(SET_VRING_NUM, 1, &[0])[..16]).unwrap();
    });
    survives("silence", |device, _stream| {
        until("patience ends", || device.handle.status().errors == 1);
    });
    survives("one byte at a time", |_, mut stream| {
        let bytes = message(SET_VRING_NUM, 1, &[0]);
        for byte in bytes.iter().cycle() {
            if stream.write_all(&[*byte]).is_err() {
                break;
            }
            std::thread::sleep(PATIENCE / 8);
        }
    });
}

#[test]
fn replies_that_nobody_reads() {
    survives("a deaf peer", |device, stream| {
        stream.set_nonblocking(true).unwrap();
        let bytes = message(GET_FEATURES, 1, &[]);
        until("the connection is ended", || {
            let _ = (&stream).write(&bytes);
            device.handle.status().errors == 1
        });
    });
}

#[test]
fn stopping_does_not_wait_for_a_peer() {
    for sent in [&[][..], &[1, 0, 0][..]] {
        let device = Device::start(1);
        let mut stream = connect(&device.path);
        stream.write_all(sent).unwrap();
        until("it is connected", || device.handle.status().connected);
        let begin = Instant::now();
        device.handle.stop();
        assert!(
            begin.elapsed() < Duration::from_secs(4),
            "the patience of a session was waited out"
        );
        assert!(!device.path.exists());
    }
}

#[test]
fn only_one_front_end_is_served_and_the_others_are_turned_away() {
    let device = device();
    let mut guest = Guest::start(&device.path, 1);
    for _ in 0..200 {
        let stream = connect(&device.path);
        assert_eq!((&stream).read(&mut [0; 16]).unwrap_or(0), 0);
    }
    guest.ping(0, "undisturbed");
    assert_eq!(device.handle.status().connections, 1);
}

#[test]
fn a_call_that_would_block_does_not_stall_the_ring() {
    let device = device();
    let mut guest = Guest::start(&device.path, 1);
    guest.ping(0, "before");
    let event = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
    let ours = event.try_clone().unwrap();
    let call = event_fd(event);
    guest.frontend.set_vring_call(1, &call).unwrap();
    // Full, and made to block again behind the device's back.
    let mut count = [0; 8];
    let _ = rustix::io::read(&ours, &mut count);
    rustix::io::write(&ours, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let flags = rustix::fs::fcntl_getfl(&ours).unwrap();
    rustix::fs::fcntl_setfl(&ours, flags - OFlags::NONBLOCK).unwrap();
    for round in 0..200 {
        guest.queues[1].driver.enable_interrupts();
        guest.ping(0, &format!("round {round}"));
    }
    guest.frontend.get_vring_base(1).unwrap();
}

fn event_fd(fd: OwnedFd) -> EventFd {
    let call = vhost_net_backend::eventfd::Call::new(File::from(fd)).unwrap();
    call.to_event_fd().unwrap()
}

#[test]
fn the_mtu_is_taken_or_refused_with_an_answer() {
    let device = device();
    let stream = connect(&device.path);
    let _frontend = negotiate(stream.try_clone().unwrap());
    for (mtu, verdict) in [(1500u64, 0u64), (68, 0), (67, 1), (9000, 1), (u64::MAX, 1)] {
        send_fds(&stream, &message(NET_SET_MTU, 1 | 8, &[mtu]), &[]);
        let mut reply = [0; 20];
        (&stream).read_exact(&mut reply).unwrap();
        assert_eq!(reply[..], message(NET_SET_MTU, 1 | 4, &[verdict]), "MTU {mtu}");
    }
    assert_eq!(device.handle.status().mtu, Some(68));
    refuses(
        "an MTU out of range, no answer wanted",
        &message(NET_SET_MTU, 1, &[60]),
        &[],
    );
}

#[test]
fn broken_chains_cost_the_guest_only_its_own_frames() {
    let device = device();
    let mut guest = Guest::start(&device.path, 1);
    let headers = [
        NetHeader {
            gso_type: GSO_TCPV4,
            ..NetHeader::default()
        },
        NetHeader {
            gso_type: 0x7f,
            gso_size: 1,
            flags: HDR_F_NEEDS_CSUM,
            ..NetHeader::default()
        },
        NetHeader {
            flags: HDR_F_NEEDS_CSUM,
            csum_start: 0xffff,
            csum_offset: 0xffff,
            ..NetHeader::default()
        },
    ];
    for header in &headers {
        assert!(guest.send_with(0, header, &frame("malformed")));
    }
    assert!(guest.send(0, b"runt"));
    assert!(guest.send(0, &vec![0; 1519]), "longer than the MTU allows");
    assert!(guest.send_raw(0, &[0; 5]), "shorter than a header");
    until("all are taken back", || guest.in_flight(0) == 0);
    let counts = device.nic.counts()[0];
    assert_eq!((counts.tx_malformed, counts.tx_frames), (6, 0), "{counts:?}");
    guest.ping(0, "after");
}
