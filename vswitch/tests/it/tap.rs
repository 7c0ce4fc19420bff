//! An interface of the host as a port, in a network namespace of the test's own.

use std::net::UdpSocket;

use crate::support::namespace::{in_namespace, ip};
use crate::support::net::{Net, mac, next_udp, udp_answer};
use netyard_testkit::guest::{Guest, wait_for};
use virtio::checksum::Checksum;
use vswitch::model::NewPort;

#[test]
fn the_host_joins_a_bridge() {
    in_namespace("tap::inside::the_host_joins_a_bridge");
}

#[test]
fn a_tap_comes_and_goes_with_its_port() {
    in_namespace("tap::inside::a_tap_comes_and_goes_with_its_port");
}

#[test]
fn super_frames_of_the_host_reach_a_guest_in_pieces() {
    in_namespace("tap::inside::super_frames_of_the_host_reach_a_guest_in_pieces");
}

#[test]
fn a_port_follows_the_link_of_its_tap_and_finds_it_again() {
    in_namespace("tap::inside::a_port_follows_the_link_of_its_tap_and_finds_it_again");
}

fn tap(net: &Net, queues: u16) {
    let port = NewPort {
        tap: Some("tap0".into()),
        queues,
        ..NewPort::new("host")
    };
    net.switch.add_port(&port).unwrap();
    ip("addr add 10.9.0.1/24 dev tap0");
    ip(&format!("neigh replace 10.9.0.2 lladdr {} dev tap0", mac(2)));
}

mod inside {
    use super::*;

    #[test]
    #[ignore = "run by its namesake"]
    fn the_host_joins_a_bridge() {
        let net = Net::new();
        let mut guest = net.guest("vm");
        tap(&net, 1);
        assert!(net.is_up("host"));
        let socket = UdpSocket::bind("10.9.0.1:7000").unwrap();
        socket.connect("10.9.0.2:7001").unwrap();
        for round in 0..200_u16 {
            socket.send(&round.to_be_bytes()).unwrap();
            let frame = next_udp(&mut guest);
            assert_eq!(frame[42..44], round.to_be_bytes());
            // The guest negotiated no offload, so the checksum is there.
            let mut sum = Checksum::new();
            sum.add(&frame[26..34]);
            sum.add(&[0, 17, 0, 10]);
            sum.add(&frame[34..44]);
            assert_eq!(sum.finish(), [0, 0]);
            guest.send(0, &udp_answer(&frame, mac(2)));
            let mut back = [0; 100];
            assert_eq!(socket.recv(&mut back).unwrap(), 2);
            assert_eq!(back[..2], round.to_be_bytes());
        }
        assert_eq!(net.known(mac(2)).as_deref(), Some("vm"));
        assert!(net.port("host").counters.rx_frames >= 200);
        wait_for("the last frame to be counted", || {
            net.port("host").counters.tx_frames >= 200
        });
    }

    #[test]
    #[ignore = "run by its namesake"]
    fn a_tap_comes_and_goes_with_its_port() {
        let net = Net::new();
        let mut guest = net.guest("vm");
        for queues in [1, 4] {
            tap(&net, queues);
            assert_eq!(net.port("host").enabled_queue_pairs, queues);
            let socket = UdpSocket::bind("10.9.0.1:7000").unwrap();
            socket.send_to(b"hello", "10.9.0.2:7001").unwrap();
            next_udp(&mut guest);
            net.switch.delete_port("host").unwrap();
            assert!(!ip("link").contains("tap0"));
        }
        ip("tuntap add dev tap1 mode tap");
        net.switch
            .add_port(&NewPort {
                tap: Some("tap1".into()),
                ..NewPort::new("host")
            })
            .unwrap();
        let again = NewPort {
            tap: Some("tap1".into()),
            ..NewPort::new("other")
        };
        assert!(
            net.switch
                .add_port(&again)
                .unwrap_err()
                .to_string()
                .contains("belongs to port host")
        );
        net.switch.delete_port("host").unwrap();
        assert!(ip("link").contains("tap1"), "an interface that was there stays");
        let bad = NewPort {
            tap: Some("no/such".into()),
            ..NewPort::new("bad")
        };
        assert!(
            net.switch
                .add_port(&bad)
                .unwrap_err()
                .to_string()
                .contains("no/such")
        );
        assert_eq!(net.switch.view().ports.len(), 1);
    }

    #[test]
    #[ignore = "run by its namesake"]
    fn a_port_follows_the_link_of_its_tap_and_finds_it_again() {
        use vswitch::config::LinkSetting;
        use vswitch::model::{PortChange, PortState};

        let net = Net::new();
        let mut guest = net.guest("vm");
        tap(&net, 2);
        let mut hello = |net: &Net| {
            let socket = UdpSocket::bind("10.9.0.1:7000").unwrap();
            socket.send_to(b"hello", "10.9.0.2:7001").unwrap();
            assert_eq!(next_udp(&mut guest)[42..], *b"hello");
            assert_eq!(net.port("host").enabled_queue_pairs, 2);
        };
        hello(&net);
        let is = |state| {
            wait_for("the port's state", || net.port("host").state == state);
            net.port("host")
        };
        ip("link set tap0 down");
        assert!(!is(PortState::Down).connected);
        ip("link set tap0 up");
        is(PortState::Up);

        let set = |link| {
            net.switch
                .set_port(
                    "host",
                    &PortChange {
                        link: Some(link),
                        ..PortChange::default()
                    },
                )
                .unwrap()
        };
        set(LinkSetting::Down);
        wait_for("the host to see it", || {
            ip("link show tap0").contains("NO-CARRIER")
        });
        set(LinkSetting::Up);
        wait_for("the host to see it", || {
            !ip("link show tap0").contains("NO-CARRIER")
        });
        is(PortState::Up);

        for _ in 0..2 {
            ip("link del tap0");
            is(PortState::Down);
            assert!(!ip("link").contains("tap0"), "the switch does not make it again");
            ip("tuntap add tap0 mode tap multi_queue vnet_hdr");
            is(PortState::Up);
            wait_for("it to be set up", || ip("link show tap0").contains("LOWER_UP"));
            ip("addr add 10.9.0.1/24 dev tap0");
            ip(&format!("neigh replace 10.9.0.2 lladdr {} dev tap0", mac(2)));
            hello(&net);
        }
        net.switch.delete_port("host").unwrap();
        assert!(ip("link").contains("tap0"), "the one that others made stays");
    }

    #[test]
    #[ignore = "run by its namesake"]
    fn super_frames_of_the_host_reach_a_guest_in_pieces() {
        let net = Net::new();
        let mut guest = net.guest("vm");
        tap(&net, 1);
        // The host opens a connection, and a guest made of a few lines answers.
        let client = std::thread::spawn(|| {
            use std::io::Write;
            let mut stream = std::net::TcpStream::connect("10.9.0.2:80").unwrap();
            stream.write_all(&vec![7; 20_000]).unwrap();
            stream
        });
        let tcp = |guest: &mut Guest| loop {
            let (_, received) = guest.receive();
            if received.frame[12..14] == [8, 0] && received.frame[23] == 6 {
                return received.frame;
            }
        };
        let syn = tcp(&mut guest);
        let answer = |to: &[u8], sequence: u32, flags: u8, next: u32| {
            let mut frame = [
                &to[6..12],
                &mac(2).octets(),
                &[8, 0, 0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0],
            ]
            .concat();
            frame.extend([10, 9, 0, 2, 10, 9, 0, 1]);
            let mut sum = Checksum::new();
            sum.add(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.finish());
            frame.extend_from_slice(&to[36..38]);
            frame.extend_from_slice(&to[34..36]);
            frame.extend(sequence.to_be_bytes());
            frame.extend(next.to_be_bytes());
            frame.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            let mut sum = Checksum::new();
            sum.add(&frame[26..34]);
            sum.add(&[0, 6, 0, 20]);
            sum.add(&frame[34..54]);
            frame[50..52].copy_from_slice(&sum.finish());
            frame
        };
        let sequence = |frame: &[u8]| u32::from_be_bytes(frame[38..42].try_into().unwrap());
        let first = sequence(&syn).wrapping_add(1);
        guest.send(0, &answer(&syn, 100, 0x12, first));
        let mut received = 0_u32;
        while received < 20_000 {
            let frame = tcp(&mut guest);
            assert!(frame.len() <= 1514, "{} bytes", frame.len());
            let header = 34 + usize::from(frame[46] >> 4) * 4;
            let length =
                u32::from(u16::from_be_bytes([frame[16], frame[17]])) + 14 - u32::try_from(header).unwrap();
            if length > 0 && sequence(&frame).wrapping_sub(first) == received {
                received += length;
                guest.send(0, &answer(&frame, 101, 0x10, first.wrapping_add(received)));
            }
        }
        wait_for("everything to be sent", || client.is_finished());
        drop(client.join().unwrap());
    }
}
