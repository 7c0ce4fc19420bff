//! A bridge whose daemon is replaced while it is in use.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::host::{Host, port};
use crate::support::namespace::{in_namespace, ip};
use crate::support::net::{frame, mac, next_udp, udp_answer};
use crate::support::pair::Pair;
use netyard_testkit::endpoint::{Options, region_info};
use netyard_testkit::guest::{Guest, wait_for};
use serde_json::{Value, json};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use virtio::features as f;
use virtio::memory::SharedMemory;

/// A bridge with two guests that know each other, and a port without a guest.
fn start(host: &Host, options: Options) -> Pair {
    host.ok(&["up", "br0", "--ageing", "1000"]);
    for name in ["a", "b", "idle"] {
        host.ok(&["port", "add", "br0", name]);
    }
    host.ok(&["fdb", "add", "br0", "02:00:00:00:00:09", "idle"]);
    host.pair(options)
}

/// What the bridge knows, without what changes by itself.
fn known(host: &Host) -> Value {
    let fdb = host.json(&["fdb", "show", "br0"]);
    let fdb: Vec<Value> = fdb
        .as_array()
        .unwrap()
        .iter()
        .map(|e| json!([e["mac"], e["port"], e["static"]]))
        .collect();
    let show = host.json(&["show", "br0"]);
    let ports = show["ports"].as_array().unwrap();
    let ports: Vec<Value> = ports
        .iter()
        .map(|p| {
            json!([
                p["name"],
                p["state"],
                p["socket"],
                p["features"],
                p["enabled_queue_pairs"]
            ])
        })
        .collect();
    json!({ "fdb": fdb, "ports": ports, "ageing": show["fdb"]["ageing_s"] })
}

/// Restarts under traffic; returns what the command printed.
fn restart(host: &Host, pair: &mut Pair, args: &[&str]) -> std::process::Output {
    std::thread::scope(|scope| {
        let command = scope.spawn(|| host.run(&[&["restart", "br0", "--format", "json"], args].concat()));
        while !command.is_finished() {
            pair.step();
        }
        command.join().unwrap()
    })
}

/// What the ports counted, once all that was sent was counted.
fn counted(host: &Host, pair: &mut Pair) -> Value {
    let sent = pair.settle();
    let mut show = Value::Null;
    wait_for("all frames to be counted", || {
        show = host.json(&["show", "br0"]);
        port(&show, "b")["counters"]["tx_frames"] == sent
    });
    let ports = show["ports"].as_array().unwrap().iter();
    let ports: Vec<_> = ports.map(|p| json!([p["name"], p["counters"]])).collect();
    json!([ports, show["fdb"]["learned"], show["fdb"]["moved"]])
}

#[test]
fn a_new_daemon_goes_on_with_everything_and_no_frame_is_lost() {
    goes_on(Options::default());
}

#[test]
fn a_new_daemon_goes_on_with_packed_rings() {
    let packed = Options::default().features | f::RING_PACKED;
    goes_on(Options {
        features: packed | f::IN_ORDER,
        ..Options::default()
    });
}

fn goes_on(options: Options) {
    let host = Host::new();
    let mut pair = start(&host, options);
    // The second one is "another version".
    let other = host.folder.path().join("vswitch-next");
    fs::copy(env!("CARGO_BIN_EXE_vswitch"), &other).unwrap();
    let before = known(&host);
    assert_eq!(before["fdb"].as_array().unwrap().len(), 3);
    for args in [&[][..], &["--program", other.to_str().unwrap()], &[]] {
        let pid = host.pid("br0");
        let output = restart(&host, &mut pair, args);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["pid"].to_string(), host.pid("br0"));
        assert_ne!(host.pid("br0"), pid);
        pair.run(1000);
        assert_eq!(known(&host), before);
        // The frames of all daemons, and not only of the last one.
        let counts = counted(&host, &mut pair);
        assert_eq!(
            port(&host.json(&["show", "br0"]), "a")["counters"]["rx_frames"],
            pair.sent()
        );
        assert!(restart(&host, &mut pair, args).status.success());
        let after = counted(&host, &mut pair);
        assert_eq!((&after[1], &after[2]), (&counts[1], &counts[2]));
        let old = PathBuf::from(format!("/proc/{pid}"));
        wait_for("the former daemon to end", || !old.exists());
        eprintln!("stood still for {} µs", told["stopped_us"]);
    }
    // The connections are the same, and still understood.
    pair.from.frontend.get_features().unwrap();
    assert_eq!(pair.to.frontend.get_queue_num().unwrap(), 2);
    let extra = SharedMemory::new("extra", 0x9_0000_0000, 2 << 20).unwrap();
    let all = pair.from.memory.iter().chain([&extra]);
    let regions: Vec<_> = all.map(region_info).collect();
    pair.from.frontend.set_mem_table(&regions).unwrap();
    pair.run(100);
    let mut late = Guest::connect(&host.socket("idle"), Options::default());
    wait_for("the port that had no guest", || {
        port(&host.json(&["show", "br0"]), "idle")["state"] == "up"
    });
    let to_it = frame(mac(9), mac(1), 5, 60);
    pair.from.send(0, &to_it);
    late.expect(&to_it);
    // And the end of a guest is noticed.
    drop(late);
    wait_for("the guest to be gone", || {
        port(&host.json(&["show", "br0"]), "idle")["state"] == "down"
    });
    host.ok(&["down", "br0"]);
    assert!(!host.bridge("br0").exists());
}

fn script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_program_that_cannot_take_the_bridge_costs_nothing() {
    let host = Host::new();
    let mut pair = start(&host, Options::default());
    let before = known(&host);
    let pid = host.pid("br0");
    let program = host.folder.path().join("program");
    // One that is none, one that ends at once, and one that dies with the whole bridge in its hands.
    for (text, why) in [
        ("no program", "nothing was changed"),
        ("#!/bin/sh\nexit 0\n", "nothing was changed"),
        (
            "#!/bin/sh\nprintf R >&0\nhead -c 100 <&0 >/dev/null\n",
            "goes on with the daemon it had",
        ),
    ] {
        script(&program, text);
        let output = restart(&host, &mut pair, &["--program", program.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(why) && said.trim_end().lines().count() == 1,
            "{said}"
        );
        pair.run(1000);
        assert_eq!((host.pid("br0"), known(&host)), (pid.clone(), before.clone()));
        counted(&host, &mut pair);
    }
    // It can still be done with one that can.
    assert!(restart(&host, &mut pair, &[]).status.success());
    pair.run(1000);
    let nothing = host.run(&["up", "br1", "--foreground", "--take-over"]);
    assert_eq!(nothing.status.code(), Some(1));
    assert!(host.fails(1, &["restart", "br7"]).contains("not up"));
}

#[test]
fn a_new_daemon_goes_on_with_an_interface_of_the_host() {
    in_namespace("restart::a_tap_goes_on");
}

#[test]
#[ignore = "run by its namesake"]
fn a_tap_goes_on() {
    let host = Host::new();
    host.ok(&["up", "br0"]);
    host.ok(&["port", "add", "br0", "vm"]);
    host.ok(&["port", "add", "br0", "host", "--tap", "tap0", "--queues", "2"]);
    ip("addr add 10.9.0.1/24 dev tap0");
    ip(&format!("neigh replace 10.9.0.2 lladdr {} dev tap0", mac(2)));
    let interface =
        fs::read_to_string("/sys/class/net/tap0/ifindex").unwrap_or_else(|_| ip("link show tap0"));
    let mut guest = Guest::connect(&host.socket("vm"), Options::default());
    wait_for("the guest's port", || {
        port(&host.json(&["show", "br0"]), "vm")["state"] == "up"
    });
    let socket = UdpSocket::bind("10.9.0.1:7000").unwrap();
    socket.connect("10.9.0.2:7001").unwrap();
    let mut number = 0_u32;
    // One datagram after the other: none is sent before the one before it came.
    let mut step = |guest: &mut Guest| {
        number += 1;
        socket.send(&number.to_be_bytes()).unwrap();
        let got = next_udp(guest);
        assert_eq!(got[42..46], number.to_be_bytes());
        let answer = udp_answer(&got, mac(2));
        guest.send(0, &answer);
        let mut back = [0; 100];
        assert_eq!(socket.recv(&mut back).unwrap(), 4);
        assert_eq!(back[..4], number.to_be_bytes());
    };
    for _ in 0..3 {
        let pid = host.pid("br0");
        std::thread::scope(|scope| {
            let command = scope.spawn(|| host.ok(&["restart", "br0"]));
            while !command.is_finished() {
                step(&mut guest);
            }
            command.join().unwrap();
        });
        (0..100).for_each(|_| step(&mut guest));
        assert_ne!(host.pid("br0"), pid);
    }
    let show = host.json(&["show", "br0"]);
    assert!(port(&show, "host")["counters"]["rx_frames"].as_u64() >= Some(u64::from(number)));
    assert_eq!(port(&show, "host")["state"], "up");
    let now = fs::read_to_string("/sys/class/net/tap0/ifindex").unwrap_or_else(|_| ip("link show tap0"));
    assert_eq!(now, interface, "the interface was made anew");
}
