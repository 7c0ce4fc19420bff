//! A NIC on a real multi-queue tap, in a network namespace of its own.

use std::path::Path;
use std::process::Command;

use netyard_testkit::command::succeed;
use netyard_testkit::tcp::Segment;
use virtio::net::NetHeader;

use crate::carrier::{Channel, link_up};
use crate::guest::{FEATURES, Guest};
use crate::process::{PROGRAM, Program};
use crate::until;

const HOST: [u8; 4] = [10, 99, 0, 1];
const GUEST: [u8; 4] = [10, 99, 0, 2];
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// What makes the host know the guest.
const NEIGHBOUR: &str = "neigh replace 10.99.0.2 lladdr 02:00:00:00:00:09 dev tap0";

/// Whether this test can make network namespaces and taps; says why not.
fn possible() -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: taps and network namespaces need root");
        return false;
    }
    if !Path::new("/dev/net/tun").exists() {
        eprintln!("skipped: there is no /dev/net/tun; load the 'tun' module");
        return false;
    }
    true
}

/// Start the program in a network namespace that ends with it.
fn start(socket: &Path, args: &[&str]) -> Program {
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--", PROGRAM, "--socket"])
        .arg(socket)
        .args(args);
    let program = Program(command.spawn().unwrap());
    until("it listens", || socket.exists());
    program
}

/// Run a command in the program's network namespace.
fn inside(program: &Program, args: &[&str]) -> String {
    let pid = program.0.id().to_string();
    let mut command = Command::new("nsenter");
    succeed(command.args(["--net", "-t", &pid, "--"]).args(args))
}

fn ip(program: &Program, args: &str) -> String {
    inside(
        program,
        &[&["ip"], &*args.split(' ').collect::<Vec<_>>()].concat(),
    )
}

/// The Ethernet address in what `ip link show` prints.
fn address(link: &str) -> [u8; 6] {
    let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
    let mut octets = words
        .nth(1)
        .unwrap()
        .split(':')
        .map(|octet| u8::from_str_radix(octet, 16).unwrap());
    [(); 6].map(|()| octets.next().unwrap())
}

/// A TCP SYN to a port that nobody listens on; the kernel has to complete its checksum.
fn syn(host_mac: [u8; 6], port: u16) -> (NetHeader, Vec<u8>) {
    Segment {
        macs: [host_mac, GUEST_MAC],
        addresses: [GUEST, HOST],
        ports: [port, 9],
        flags: 2,
        payload: &[],
    }
    .build()
}

/// Whether this is the host's refusal of our SYN from `port`.
fn is_reset(frame: &[u8], port: u16) -> bool {
    frame.len() >= 54 && frame[23] == 6 && frame[36..38] == port.to_be_bytes() && frame[47] & 4 != 0
}

#[test]
fn frames_reach_the_hosts_stack_on_every_queue() {
    if !possible() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut program = start(&socket, &["--tap", "tap0", "--queues", "2", "--mtu", "1400"]);
    let link = ip(&program, "-d link show tap0");
    for wanted in ["mtu 1400", "multi_queue", "vnet_hdr", "UP"] {
        assert!(link.contains(wanted), "no '{wanted}' in {link}");
    }
    ip(&program, "addr add 10.99.0.1/24 dev tap0");
    ip(&program, NEIGHBOUR);
    let mac = inside(&program, &["cat", "/proc/self/net/arp"]);
    assert!(mac.contains("02:00:00:00:00:09"));
    let mac = address(&link);

    let mut guest = Guest::start(&socket, 2);
    for pair in 0..2u16 {
        for flow in 0..8u16 {
            let port = 2000 + pair * 100 + flow;
            let (header, frame) = syn(mac, port);
            // The host answers a flow on the queue that it last came from; the first answer may be too early.
            until("the answer comes on the flow's pair", || {
                guest.send_with(pair, &header, &frame);
                until("an answer", || (0..2).any(|pair| guest.has_frame(pair)));
                let mut there = false;
                for from in 0..2 {
                    while let Some(frame) = guest.try_receive(from) {
                        there |= from == pair && is_reset(&frame, port);
                    }
                }
                there
            });
        }
    }

    // A pair that the guest does not use gets nothing: every flow is answered on the other one.
    guest.disable(2);
    while guest.try_receive(1).is_some() {}
    for flow in 0..8u16 {
        let port = 3000 + flow;
        let (header, frame) = syn(mac, port);
        guest.send_with(0, &header, &frame);
        until("the answer comes on pair 0", || {
            std::iter::from_fn(|| guest.try_receive(0)).any(|frame| is_reset(&frame, port))
        });
    }
    assert_eq!(guest.try_receive(1), None);

    // Headers and interfaces that the kernel refuses do not stop the worker.
    ip(&program, "link set tap0 down");
    for _ in 0..32 {
        let (header, frame) = syn(mac, 4000);
        assert!(guest.send_with(0, &header, &frame));
    }
    until("all are taken back", || guest.in_flight(0) == 0);
    ip(&program, "link set tap0 up");
    ip(&program, NEIGHBOUR);
    until("it works again", || {
        let (header, frame) = syn(mac, 4001);
        guest.send_with(0, &header, &frame);
        std::iter::from_fn(|| guest.try_receive(0)).any(|frame| is_reset(&frame, 4001))
    });

    drop(guest);
    let again = Guest::connect(&socket, 1, FEATURES);
    again.start_ring(0, 0);
    assert_eq!(program.terminate(), 0);
}

#[test]
fn a_tap_that_exists_is_attached_to() {
    if !possible() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let script = format!(
        "ip tuntap add tap7 mode tap multi_queue vnet_hdr && exec {PROGRAM} --socket {} --tap tap7",
        socket.display()
    );
    let mut command = Command::new("unshare");
    let mut program = Program(
        command
            .args(["--net", "--", "sh", "-c", &script])
            .spawn()
            .unwrap(),
    );
    until("it listens", || socket.exists());
    assert!(ip(&program, "link show tap7").contains("UP"));
    let _guest = Guest::start(&socket, 1);
    assert_eq!(program.terminate(), 0);
}

#[test]
fn the_guests_link_follows_the_tap_which_is_attached_again_when_it_returns() {
    if !possible() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut program = start(&socket, &["--tap", "tap0", "--queues", "2", "--mtu", "1400"]);
    let mut guest = Guest::start(&socket, 2);
    let mut channel = Channel::give(&mut guest.frontend);
    assert!(link_up(&mut guest.frontend));
    let ip = |args| ip(&program, args);
    let mut told = |guest: &mut Guest, up| {
        until("the guest is told", || channel.told());
        assert_eq!(link_up(&mut guest.frontend), up);
    };
    for _ in 0..2 {
        ip("link set tap0 down");
        told(&mut guest, false);
        ip("link set tap0 up");
        told(&mut guest, true);
    }
    // The second pair is unused, and stays so on the interface that comes.
    guest.disable(2);
    while guest.try_receive(1).is_some() {}
    ip("link del tap0");
    told(&mut guest, false);
    let (header, lost) = syn([2, 0, 0, 0, 0, 1], 5000);
    assert!(guest.send_with(0, &header, &lost));
    until("it is taken back", || guest.in_flight(0) == 0);
    ip("tuntap add tap0 mode tap multi_queue vnet_hdr");
    told(&mut guest, true);
    assert!(ip("link show tap0").contains("mtu 1400"));
    ip("addr add 10.99.0.1/24 dev tap0");
    ip(NEIGHBOUR);
    let link = ip("link show tap0");
    let mac = address(&link);
    for flow in 0..8 {
        let (header, frame) = syn(mac, 6000 + flow);
        until("the answer comes on pair 0", || {
            guest.send_with(0, &header, &frame);
            std::iter::from_fn(|| guest.try_receive(0)).any(|frame| is_reset(&frame, 6000 + flow))
        });
    }
    let mut elsewhere = std::iter::from_fn(|| guest.try_receive(1));
    assert!(!elsewhere.any(|frame| (6000..6008).any(|port| is_reset(&frame, port))));
    assert_eq!(program.terminate(), 0);
}
