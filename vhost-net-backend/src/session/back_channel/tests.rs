use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};

use super::*;

const MESSAGE: [u8; 12] = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

fn opened() -> (BackChannel, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut channel = BackChannel::default();
    channel.open(ours.into(), true).unwrap();
    (channel, theirs)
}

/// All messages that wait to be read.
fn messages(stream: &mut UnixStream) -> usize {
    let (mut count, mut message) = (0, [0; 12]);
    while stream.read_exact(&mut message).is_ok() {
        assert_eq!(message, MESSAGE);
        count += 1;
    }
    count
}

#[test]
fn only_what_the_front_end_does_not_know_is_told() {
    let (mut channel, mut theirs) = opened();
    assert!(!channel.tell(true));
    assert_eq!(messages(&mut theirs), 0);
    for up in [false, true, false] {
        assert!(!channel.tell(up));
        assert!(!channel.tell(up));
        assert_eq!(messages(&mut theirs), 1);
    }
    channel.read(true);
    channel.tell(true);
    assert_eq!(messages(&mut theirs), 0);
}

#[test]
fn what_was_read_before_the_channel_came_counts() {
    let (mut channel, mut theirs) = (BackChannel::default(), UnixStream::pair().unwrap());
    theirs.1.set_nonblocking(true).unwrap();
    channel.read(true);
    assert!(!channel.tell(false));
    channel.open(theirs.0.into(), false).unwrap();
    channel.tell(false);
    assert_eq!(messages(&mut theirs.1), 1);
}

#[test]
fn what_finds_no_room_is_told_once_there_is_some() {
    let (mut channel, mut theirs) = opened();
    let (mut up, mut told) = (true, 0);
    loop {
        up = !up;
        if channel.tell(up) {
            break;
        }
        told += 1;
    }
    assert!(channel.tell(up), "still no room");
    assert_eq!(messages(&mut theirs), told);
    assert!(!channel.tell(up));
    assert_eq!(messages(&mut theirs), 1);
}

#[test]
fn a_front_end_that_closed_its_end_is_told_nothing_more() {
    let (mut channel, theirs) = opened();
    drop(theirs);
    assert!(!channel.tell(false));
    assert!(channel.socket.is_none());
}

#[test]
fn descriptors_that_are_no_unix_stream_are_refused() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
    for fd in [OwnedFd::from(null), udp.into(), tcp.into(), datagram.into()] {
        assert!(BackChannel::default().open(fd, true).is_err());
    }
    // One that is not connected is no use either, and does no harm.
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let mut channel = BackChannel::default();
    channel.open(listener.into(), true).unwrap();
    assert!(!channel.tell(false));
}
