//! Link state: what a front-end reads, and how it is told to read again.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost_net_backend::{PortConfig, SessionHandle};

use netyard_testkit::message::message;

use crate::guest::{FEATURES, Guest, connect, negotiate};
use crate::hostile::{refuses, send_fds, survives};
use crate::process::connect_to;
use crate::session::Device;
use crate::until;

const SET_BACKEND_REQ_FD: u32 = 21;
const CONFIG_CHANGE: [u8; 12] = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

/// The front-end's end of a back-end channel.
pub(crate) struct Channel(UnixStream);

impl Channel {
    /// Make one and give its other end to the back-end.
    pub(crate) fn give(frontend: &mut Frontend) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        frontend.set_backend_request_fd(&theirs).unwrap();
        ours.set_nonblocking(true).unwrap();
        Self(ours)
    }

    /// Whether there is a message; it is taken.
    pub(crate) fn told(&mut self) -> bool {
        let mut message = [0; 12];
        let told = self.0.read_exact(&mut message).is_ok();
        assert!(!told || message == CONFIG_CHANGE, "{message:?}");
        told
    }
}

/// Bit 0 of the status.
pub(crate) fn link_up(frontend: &mut Frontend) -> bool {
    let (_, config) = frontend
        .get_config(0, 12, VhostUserConfigFlags::empty(), &[0; 12])
        .unwrap();
    config[6] & 1 == 1
}

/// A round trip that does not touch the link state; what the device had to tell before is told afterwards.
fn round_trip(frontend: &mut Frontend) {
    frontend
        .get_config(0, 6, VhostUserConfigFlags::empty(), &[0; 6])
        .unwrap();
}

#[test]
fn a_front_end_is_told_once_of_every_change() {
    let device = Device::start(1);
    let mut guest = Guest::start(&device.path, 1);
    let frontend = &mut guest.frontend;
    let mut channel = Channel::give(frontend);
    assert!(link_up(frontend));
    for up in [false, true, false, true] {
        device.handle.set_link(up);
        until("it is told", || channel.told());
        assert_eq!(link_up(frontend), up);
        // The same again is no change.
        device.handle.set_link(up);
        round_trip(frontend);
        round_trip(frontend);
        assert!(!channel.told());
    }
    guest.ping(0, "frames pass whatever the state is");
}

#[test]
fn what_changes_before_the_channel_is_there_is_told_on_it() {
    let device = Device::start(1);
    let mut frontend = negotiate(connect(&device.path));
    assert!(link_up(&mut frontend));
    device.handle.set_link(false);
    let mut channel = Channel::give(&mut frontend);
    until("it is told", || channel.told());
    assert!(!link_up(&mut frontend));
    drop(frontend);
    until("the first is gone", || !device.handle.status().connected);
    // A change while nobody is there is no news to whoever comes next.
    device.handle.set_link(true);
    let mut frontend = negotiate(connect(&device.path));
    let mut channel = Channel::give(&mut frontend);
    assert!(link_up(&mut frontend));
    round_trip(&mut frontend);
    assert!(!channel.told());
}

#[test]
fn a_front_end_that_never_reads_stalls_nothing_and_is_told_when_it_does() {
    for toggles in [1000, 1001] {
        let device = Device::start(1);
        let mut guest = Guest::start(&device.path, 1);
        let mut channel = Channel::give(&mut guest.frontend);
        let mut up = true;
        for _ in 0..toggles {
            up = !up;
            device.handle.set_link(up);
            round_trip(&mut guest.frontend);
        }
        guest.ping(0, "traffic goes on");
        let mut told = 0;
        while channel.told() {
            told += 1;
        }
        assert!(told < toggles, "the channel never filled up");
        // Each message stands for one change, so that their number says what the last was about.
        until("the last state is told", || {
            told += i32::from(channel.told());
            (told % 2 == 0) == up
        });
        assert_eq!(link_up(&mut guest.frontend), up);
        device.handle.stop();
    }
}

#[test]
fn a_second_channel_replaces_the_first() {
    let device = Device::start(1);
    let mut guest = Guest::start(&device.path, 1);
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut first = Channel::give(&mut guest.frontend);
    let before = fds();
    let mut channels: Vec<_> = (0..20).map(|_| Channel::give(&mut guest.frontend)).collect();
    // Ours only: the device keeps one, as before.
    assert_eq!(fds(), before + channels.len());
    assert_eq!(first.0.read(&mut [0; 1]).unwrap(), 0, "the first is not closed");
    device.handle.set_link(false);
    let last = channels.last_mut().unwrap();
    until("the last is told", || last.told());
    drop(guest);
    until("the connection is over", || !device.handle.status().connected);
    assert_eq!(last.0.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_closed_channel_costs_nothing() {
    let device = Device::start(1);
    let mut guest = Guest::start(&device.path, 1);
    drop(Channel::give(&mut guest.frontend));
    for up in [false, true, false] {
        device.handle.set_link(up);
        assert_eq!(link_up(&mut guest.frontend), up);
    }
    guest.ping(0, "still served");
    let mut channel = Channel::give(&mut guest.frontend);
    device.handle.set_link(true);
    until("the new one is told", || channel.told());
}

/// QEMU's NICs take the channel and leave the configuration space to QEMU.
#[test]
fn a_front_end_that_reads_no_configuration_is_not_told() {
    let device = Device::start(1);
    let mut frontend = Frontend::from_stream(connect(&device.path), 2);
    frontend.set_owner().unwrap();
    frontend.get_features().unwrap();
    let offered = frontend.get_protocol_features().unwrap();
    frontend
        .set_protocol_features(offered - VhostUserProtocolFeatures::CONFIG)
        .unwrap();
    let mut channel = Channel::give(&mut frontend);
    device.handle.set_link(false);
    for _ in 0..3 {
        assert_eq!(frontend.get_queue_num().unwrap(), 2);
    }
    assert!(!channel.told());
    assert!(device.handle.status().connected);
}

#[test]
fn channels_that_are_none() {
    let (socket, other) = UnixStream::pair().unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bare = message(SET_BACKEND_REQ_FD, 1, &[]);
    refuses("no descriptor", &bare, &[]);
    refuses("two descriptors", &bare, &[socket.as_fd(), other.as_fd()]);
    refuses("a file", &bare, &[null.as_fd()]);
    refuses("a socket of another family", &bare, &[tcp.as_fd()]);
    refuses(
        "a payload",
        &message(SET_BACKEND_REQ_FD, 1, &[0]),
        &[socket.as_fd()],
    );
    survives("no such feature negotiated", |_, stream| {
        let frontend = Frontend::from_stream(stream.try_clone().unwrap(), 2);
        frontend.set_owner().unwrap();
        send_fds(&stream, &bare, &[socket.as_fd()]);
        let _ = (&stream).read_to_end(&mut Vec::new());
        drop(frontend);
    });
}

fn far(path: &Path) -> SessionHandle {
    let nic = crate::wires::echo(1, None);
    vhost_net_backend::Session::spawn(
        vhost_net_backend::SocketConfig::server(path),
        PortConfig::new("far"),
        nic,
    )
    .unwrap()
}

#[test]
fn the_link_follows_the_back_end_that_it_is_plugged_into() {
    let dir = tempfile::tempdir().unwrap();
    let (near, middle, end) = (
        dir.path().join("near"),
        dir.path().join("middle"),
        dir.path().join("end"),
    );
    let _end = far(&end);
    let mut there = Some(connect_to(&middle, &end, 1));
    until("the far back-end listens", || middle.exists());
    let _program = connect_to(&near, &middle, 1);
    let mut guest = Guest::connect(&near, 1, FEATURES);
    // Linked only when the VM has rings to link.
    assert!(!link_up(&mut guest.frontend));
    let mut channel = Channel::give(&mut guest.frontend);
    for index in 0..2 {
        guest.start_ring(index, 0);
        guest.frontend.set_vring_enable(index, true).unwrap();
    }
    guest.post_all(0);
    until("told that it is linked", || channel.told());
    assert!(link_up(&mut guest.frontend));
    for _ in 0..3 {
        // Killed, not asked to stop.
        drop(there.take());
        until("told that the other end is gone", || channel.told());
        assert!(!link_up(&mut guest.frontend));
        there = Some(connect_to(&middle, &end, 1));
        until("told that it is back", || channel.told());
        assert!(link_up(&mut guest.frontend));
        assert!(!channel.told());
    }
}
