//! A front-end announces its guest (`VHOST_USER_SEND_RARP`), as QEMU does after it moved one that cannot by itself.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::support::net::{Net, frame, mac};
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};

const SEND_RARP: u32 = 19;
const VERSION_AND_NEED_REPLY: u32 = 1 | 1 << 3;

/// A front-end that negotiated `protocol`, and its socket for what it cannot say.
fn front_end(net: &Net, port: &str, protocol: VhostUserProtocolFeatures) -> (Frontend, UnixStream) {
    net.switch.add_port(&net.new_port(port, 1)).unwrap();
    let socket = UnixStream::connect(net.socket(port)).unwrap();
    let mut frontend = Frontend::from_stream(socket.try_clone().unwrap(), 2);
    frontend.set_owner().unwrap();
    frontend.get_features().unwrap();
    let offered = frontend.get_protocol_features().unwrap();
    assert!(offered.contains(protocol));
    frontend.set_protocol_features(protocol).unwrap();
    (frontend, socket)
}

/// Sends the request; true if it was granted, false if it was refused or the connection ended.
fn send_rarp(socket: &mut UnixStream, address: [u8; 6]) -> bool {
    let mut message = Vec::new();
    for word in [SEND_RARP, VERSION_AND_NEED_REPLY, 8] {
        message.extend(word.to_ne_bytes());
    }
    message.extend(address);
    message.extend([0, 0]);
    socket.write_all(&message).unwrap();
    let mut reply = [0; 20];
    socket.read_exact(&mut reply).is_ok() && reply[12..] == [0; 8]
}

#[test]
fn the_switch_learns_and_tells_the_other_ports() {
    let net = Net::new();
    let (mut b, mut c) = (net.guest("b"), net.guest("c"));
    let wanted = VhostUserProtocolFeatures::RARP | VhostUserProtocolFeatures::REPLY_ACK;
    let (_frontend, mut socket) = front_end(&net, "a", wanted);
    assert!(send_rarp(&mut socket, mac(9).octets()));
    assert_eq!(net.known(mac(9)).as_deref(), Some("a"));
    for guest in [&mut b, &mut c] {
        let (_, received) = guest.receive();
        let got = received.frame;
        assert_eq!((&got[..6], &got[6..12]), (&[0xff; 6][..], &mac(9).octets()[..]));
        // Reverse ARP's request for IPv4 over Ethernet, sender and target the same.
        assert_eq!(got[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!((&got[22..28], &got[32..38]), (&got[6..12], &got[6..12]));
        assert_eq!(
            (got.len(), &got[28..32], &got[38..]),
            (60, &[0; 4][..], &[0; 22][..])
        );
    }
    // What nobody can be is neither learned nor told.
    assert!(send_rarp(&mut socket, [0xff; 6]));
    assert!(send_rarp(&mut socket, [0; 6]));
    let marker = frame(mac(1), mac(3), 1, 60);
    c.send(0, &marker);
    b.expect(&marker);
    assert_eq!(net.known(vswitch::mac::MacAddr::new([0xff; 6])), None);
}

#[test]
fn who_did_not_negotiate_it_is_refused() {
    let net = Net::new();
    let (_frontend, mut socket) = front_end(&net, "a", VhostUserProtocolFeatures::REPLY_ACK);
    assert!(!send_rarp(&mut socket, mac(9).octets()));
    assert_eq!(net.known(mac(9)), None);
}
