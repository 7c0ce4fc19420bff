//! Ports that are held to certain source addresses.

use netyard_testkit::endpoint::Options;
use vswitch::model::{NewPort, PortChange};

use crate::support::host::{Host, port};
use crate::support::net::{BROADCAST, Net, frame, mac};

#[test]
fn only_frames_from_allowed_addresses_pass() {
    let net = Net::new();
    let held = NewPort {
        mac: Some(mac(1)),
        anti_spoof: true,
        allow_macs: vec![mac(3)],
        ..net.new_port("held", 1)
    };
    net.switch.add_port(&held).unwrap();
    let mut guest = net.connect("held", Options::default());
    let mut other = net.guest("other");
    // What others may be asked to believe is what the port may say, be it once or between other frames.
    for (from, passes) in [
        (1, true),
        (2, false),
        (3, true),
        (9, false),
        (1, true),
        (2, false),
    ] {
        let bytes = frame(BROADCAST, mac(from), from, 60);
        guest.send(0, &bytes);
        if passes {
            other.expect(&bytes);
        }
    }
    guest.flush();
    other.expect_nothing();
    assert_eq!(net.drops("held", "spoofed"), 3);
    assert_eq!(net.total_drops("held"), 3);
    assert_eq!(net.port("held").counters.rx_frames, 3);
    assert_eq!((net.known(mac(2)), net.known(mac(9))), (None, None));
    assert_eq!(net.known(mac(3)).as_deref(), Some("held"));
    // Others may use any address, and reach it.
    let to_it = frame(mac(1), mac(2), 7, 60);
    other.send(0, &to_it);
    guest.expect(&to_it);
    assert_eq!(net.drops("other", "spoofed"), 0);
}

#[test]
fn the_policy_changes_while_frames_pass() {
    let net = Net::new();
    let port = NewPort {
        mac: Some(mac(1)),
        ..net.new_port("held", 1)
    };
    net.switch.add_port(&port).unwrap();
    let mut guest = net.connect("held", Options::default());
    let mut other = net.guest("other");
    let mut passes = |from: u8| {
        let bytes = frame(BROADCAST, mac(from), from, 60);
        guest.send(0, &bytes);
        guest.flush();
        other.try_receive(0).is_some_and(|got| got.frame == bytes)
    };
    let set = |held, allowed: &[u8]| {
        let change = PortChange {
            anti_spoof: held,
            allow_macs: allowed.iter().map(|last| mac(*last)).collect(),
            ..PortChange::default()
        };
        net.switch.set_port("held", &change)
    };
    assert!(passes(1) && passes(2));
    assert_eq!(net.known(mac(2)).as_deref(), Some("held"));
    set(Some(true), &[]).unwrap();
    assert_eq!(
        net.known(mac(2)),
        None,
        "what it was not allowed to say is forgotten"
    );
    assert!(passes(1) && !passes(2) && !passes(3));
    set(Some(true), &[3]).unwrap();
    assert!(passes(1) && !passes(2) && passes(3));
    assert_eq!(net.port("held").source_macs, [mac(1), mac(3)]);
    // What is refused, and what changes something else, leaves it alone.
    assert!(set(None, &[2]).is_err());
    assert!(set(Some(false), &[2]).is_err());
    set(None, &[]).unwrap();
    assert!(!passes(2));
    assert_eq!(net.drops("held", "spoofed"), 4);
    set(Some(false), &[]).unwrap();
    assert!(passes(1) && passes(2) && passes(3));
}

#[test]
fn the_policy_is_kept_and_shown() {
    let host = Host::new();
    host.ok(&["up", "br0"]);
    let add = ["port", "add", "br0", "a", "--anti-spoof"];
    assert!(host.fails(1, &add).contains("held to 0 addresses"));
    let group = [&add[..], &["--allow-mac", "01:00:5e:00:00:01"]].concat();
    assert!(host.fails(1, &group).contains("not a group"));
    host.fails(
        2,
        &["port", "add", "br0", "a", "--allow-mac", "02:00:00:00:00:02"],
    );
    let rest = [
        "--mac",
        "02:00:00:00:00:01",
        "--allow-mac",
        "02:00:00:00:00:02,02:00:00:00:00:03",
    ];
    host.ok(&[&add[..], &rest].concat());
    host.ok(&["port", "add", "br0", "b", "--mac", "02:00:00:00:00:04"]);
    host.ok(&["port", "add", "br0", "c", "--mac", "02:00:00:00:00:05"]);
    host.ok(&["port", "set", "br0", "c", "--anti-spoof", "on"]);
    host.fails(2, &["port", "set", "br0", "c"]);
    host.fails(
        2,
        &["port", "set", "br0", "c", "--allow-mac", "02:00:00:00:00:06"],
    );
    host.kill("br0");
    host.ok(&["up", "br0"]);
    let show = host.json(&["show", "br0"]);
    let macs = ["02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"];
    assert_eq!(port(&show, "a")["source_macs"], serde_json::json!(macs));
    assert!(port(&show, "b")["source_macs"].is_null());
    assert_eq!(
        port(&show, "c")["source_macs"],
        serde_json::json!(["02:00:00:00:00:05"])
    );
    assert!(
        host.ok(&["port", "show", "br0", "a"])
            .contains("frames from 02:00:00:00:00:01, 02:00:00:00:00:02")
    );
}
