//! Whole labs: under QEMU on this machine, and under our own `vmm` in the emulated host.

use netyard_tests::bin;
use netyard_tests::deadline::wait_for;
use netyard_tests::lab::{Lab, Place, Yard, processes_of};
use serde_json::Value;

fn ping(lab: &Lab<'_>) {
    lab.run_until("a", &["ping", "-c", "2", "-W", "5", "10.0.0.2"]);
}

/// Ping, TCP and UDP in both directions.
fn measure(yard: &Yard, lab: &Lab<'_>) -> Value {
    let mut command = yard.command();
    command.args([
        "measure",
        "--lab",
        lab.name(),
        "a",
        "b",
        "--seconds",
        "2",
        "--format",
        "json",
    ]);
    let text = bin::succeed(&mut command);
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
    assert!(report["ping"]["received"].as_u64() > Some(0), "{report}");
    for direction in ["tcp", "tcp_reverse", "udp", "udp_reverse"] {
        assert!(
            report[direction]["bits_per_second"].as_f64() > Some(0.0),
            "{direction}: {report}"
        );
    }
    report
}

/// Both guests use both queue pairs: the switch has frames of each, in both directions.
fn both_pairs_carry(lab: &Lab<'_>, place: Place) {
    // Flows are spread over the pairs by the guest's CPUs, so it may take a few of them.
    wait_for(
        "both queue pairs of both ports to carry frames",
        place.patience(),
        || {
            lab.run(
                "a",
                &[
                    "sh",
                    "-c",
                    "for cpu in 1 2; do taskset $cpu ping -c 2 -i 0.2 10.0.0.2; done",
                ],
            );
            lab.run(
                "b",
                &[
                    "sh",
                    "-c",
                    "for cpu in 1 2; do taskset $cpu ping -c 2 -i 0.2 10.0.0.1; done",
                ],
            );
            let carried = ["a-0", "b-0"].iter().all(|port| {
                let port = lab.port(port);
                assert_eq!(port["enabled_queue_pairs"], 2, "{port}");
                let queues = port["queues"].as_array().expect("a list of queue pairs").clone();
                queues.iter().all(|queue| {
                    queue["rx_frames"].as_u64() > Some(0) && queue["tx_frames"].as_u64() > Some(0)
                })
            });
            carried.then_some(())
        },
    );
}

fn fdb_is_right(lab: &Lab<'_>) {
    let bridge = format!("{}.lan", lab.name());
    let text = bin::succeed(&mut lab.on_host(&["vswitch", "fdb", "show", &bridge, "--format", "json"]));
    let fdb: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
    for (node, port) in [("a", "a-0"), ("b", "b-0")] {
        let mac = lab.node(node)["nics"][0]["mac"].clone();
        let learned = fdb
            .as_array()
            .expect("a list")
            .iter()
            .find(|entry| entry["mac"] == mac);
        assert_eq!(
            learned.map(|entry| &entry["port"]),
            Some(&Value::from(port)),
            "{fdb}"
        );
    }
}

/// The switch is killed while iperf3 runs, and started again: the machines run on and so does the stream.
fn killed_switch(lab: &Lab<'_>, place: Place) {
    let pids = |lab: &Lab<'_>| ["a", "b"].map(|node| lab.node(node)["pid"].clone());
    let boots =
        |lab: &Lab<'_>| ["a", "b"].map(|node| lab.run(node, &["cat", "/proc/sys/kernel/random/boot_id"]));
    let (machines, lives) = (pids(lab), boots(lab));
    lab.run("b", &["iperf3", "-s", "-D", "-p", "5300"]);
    ping(lab);
    let before = lab.port("b-0")["counters"]["tx_bytes"].as_u64().unwrap_or(0);
    let stream = lab.start("a", &["iperf3", "-c", "10.0.0.2", "-p", "5300", "-t", "20"]);
    wait_for("iperf3 to send", place.patience(), || {
        (lab.port("b-0")["counters"]["tx_bytes"].as_u64() > Some(before + 1_000_000)).then_some(())
    });
    let pid = lab.switch()["pid"].to_string();
    bin::succeed(&mut lab.on_host(&["kill", "-9", &pid]));
    wait_for("the switch to be gone", place.patience(), || {
        (lab.switch()["state"] != "up").then_some(())
    });
    let bridge = format!("{}.lan", lab.name());
    bin::succeed(&mut lab.on_host(&["vswitch", "up", &bridge]));
    wait_for(
        "the stream to flow through the new switch",
        place.patience(),
        || (lab.port("b-0")["counters"]["tx_bytes"].as_u64() > Some(1_000_000)).then_some(()),
    );
    let ended = stream.finish();
    assert!(
        ended.status.success(),
        "iperf3: {}{}",
        String::from_utf8_lossy(&ended.stdout),
        String::from_utf8_lossy(&ended.stderr)
    );
    assert_eq!(pids(lab), machines, "a machine was started anew");
    assert_eq!(boots(lab), lives, "a machine booted anew");
}

/// Machines have packed rings (feature bit 34), in which no index says where a switch that died had got to.
fn rings_are_packed(lab: &Lab<'_>) {
    for node in ["a", "b"] {
        let features = lab.run(node, &["cat", "/sys/class/net/eth0/device/features"]);
        assert_eq!(features.get(34..35), Some("1"), "{node}: {features}");
    }
}

/// Whether a frame to an address that nobody has comes to `b`, whose switch serves its control queue.
fn stray_frame_comes(lab: &Lab<'_>, place: Place) -> bool {
    let counts = || {
        let port = lab.port("b-0");
        let filtered = port["counters"]["drops"]["filtered"].as_u64().unwrap_or(0);
        (filtered, port["counters"]["tx_frames"].as_u64().unwrap_or(0))
    };
    let before = counts();
    let script =
        "ip neigh replace 10.0.0.99 lladdr 02:00:00:00:00:99 dev eth0; ping -c 1 -W 1 10.0.0.99; true";
    wait_for("a frame to nobody to be seen", place.patience(), || {
        lab.run("a", &["sh", "-c", script]);
        let now = counts();
        match (now.0 > before.0, now.1 > before.1) {
            (true, _) => Some(false),
            (false, true) => Some(true),
            (false, false) => None,
        }
    })
}

/// What a guest asks for through its control queue has its effect on frames.
fn control_queue(lab: &Lab<'_>, place: Place) {
    assert!(!stray_frame_comes(lab, place), "filtered by address");
    lab.run("b", &["ip", "link", "set", "eth0", "promisc", "on"]);
    assert!(stray_frame_comes(lab, place));
    lab.run("b", &["ip", "link", "set", "eth0", "promisc", "off"]);
    for pairs in [1, 2] {
        lab.run("b", &["ethtool", "-L", "eth0", "combined", &pairs.to_string()]);
        wait_for("the switch to know of the queue pairs", place.patience(), || {
            (lab.port("b-0")["enabled_queue_pairs"] == pairs).then_some(())
        });
    }
    // All that it receives comes on the second pair.
    lab.run("b", &["ethtool", "-X", "eth0", "weight", "0", "1"]);
    let received = || {
        ["0", "1"].map(|at| {
            let queues = lab.port("b-0")["queues"].clone();
            let at: usize = at.parse().unwrap_or(0);
            queues[at]["tx_frames"].as_u64().unwrap_or(0)
        })
    };
    let before = received();
    ping(lab);
    let after = received();
    assert!(
        after[0] == before[0] && after[1] > before[1],
        "{before:?} {after:?}"
    );
    lab.run("b", &["ethtool", "-X", "eth0", "default"]);
}

/// A guest gives its NIC rings of another size while it runs.
fn resized_rings(lab: &Lab<'_>) {
    lab.run("a", &["ethtool", "-G", "eth0", "rx", "128", "tx", "256"]);
    ping(lab);
}

/// A guest reboots, comes back with its address, and reaches the other.
fn guest_reboot(lab: &Lab<'_>, place: Place) {
    let boot = || {
        let output = bin::finish(&mut lab.exec("b", &["cat", "/proc/sys/kernel/random/boot_id"]));
        output.status.success().then_some(output.stdout)
    };
    let before = boot();
    lab.run("b", &["sh", "-c", "(sleep 1; reboot) >/dev/null 2>&1 &"]);
    wait_for("the guest to be back from its reboot", place.patience(), || {
        let now = boot();
        (now.is_some() && now != before).then_some(())
    });
    ping(lab);
}

fn nothing_is_left(yard: &Yard) {
    if yard.place() == Place::Emulated {
        bin::succeed(yard.command().args(["host", "down"]));
    }
    assert_eq!(processes_of(yard.dir()), Vec::<String>::new());
    let mut pending = vec![yard.dir().to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).expect("the run folder is readable") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let name = path.display().to_string();
                assert!(
                    name.ends_with(".lab.yaml") || name.ends_with("lock"),
                    "{name} was left behind"
                );
            }
        }
    }
}

/// Everything that a lab of two nodes has to do.
fn demo(place: Place, isolate: bool) {
    let yard = Yard::new(place);
    let file = yard.two_nodes(if isolate { "apart" } else { "demo" }, isolate);
    let lab = yard.up(&file);
    ping(&lab);
    measure(&yard, &lab);
    both_pairs_carry(&lab, place);
    rings_are_packed(&lab);
    if place == Place::Emulated {
        resized_rings(&lab);
    }
    fdb_is_right(&lab);
    let served = place == Place::Emulated && !isolate;
    if served {
        control_queue(&lab, place);
    }
    killed_switch(&lab, place);
    if served {
        assert!(
            !stray_frame_comes(&lab, place),
            "the next switch knows what its guest wants"
        );
    }
    guest_reboot(&lab, place);
    lab.down();
    nothing_is_left(&yard);
}

#[test]
fn e2e_lab_qemu() {
    demo(Place::Qemu, false);
}

/// A stream in either direction. Returns the bytes of a frame that `a` and that `b` sent, on the average.
fn streams(lab: &Lab<'_>) -> [u64; 2] {
    ["a", "b"].map(|from| {
        let sent = || {
            let port = lab.port(&format!("{from}-0"));
            ["rx_bytes", "rx_frames"].map(|name| port["counters"][name].as_u64().unwrap_or(0))
        };
        let before = sent();
        let mut stream = vec!["iperf3", "-c", "10.0.0.2", "-n", "8M"];
        stream.extend((from == "b").then_some("-R"));
        lab.run("a", &stream);
        let after = sent();
        (after[0] - before[0]) / (after[1] - before[1]).max(1)
    })
}

/// What a driver may do to its NIC: other numbers of queue pairs, offloads on and off at either end, and letting go of it.
#[test]
fn e2e_qemu_queue_pairs_offloads_and_a_driver_that_comes_back() {
    let yard = Yard::new(Place::Qemu);
    let lab = yard.up(&yard.two_nodes_with("driver", 4, false));
    ping(&lab);
    lab.run("b", &["iperf3", "-s", "-D"]);
    for pairs in [1, 3, 4, 2] {
        for node in ["a", "b"] {
            lab.run(node, &["ethtool", "-L", "eth0", "combined", &pairs.to_string()]);
            wait_for(
                "the switch to know of the queue pairs",
                Place::Qemu.patience(),
                || (lab.port(&format!("{node}-0"))["enabled_queue_pairs"] == pairs).then_some(()),
            );
        }
        streams(&lab);
    }
    for offloads in [["off", "on"], ["off", "off"], ["on", "off"], ["on", "on"]] {
        for (node, on) in ["a", "b"].into_iter().zip(offloads) {
            lab.run(
                node,
                &["ethtool", "-K", "eth0", "tx", on, "sg", on, "tso", on, "gso", on],
            );
        }
        // Acknowledgements count as well: segments of a stream are what makes the average large.
        for ((node, on), bytes) in ["a", "b"].into_iter().zip(offloads).zip(streams(&lab)) {
            assert_eq!(bytes > 1514, on == "on", "{node}, {on}: {bytes} bytes a frame");
        }
    }
    lab.run(
        "a",
        &[
            "sh",
            "-ec",
            "device=$(basename $(readlink /sys/class/net/eth0/device))
             cd /sys/bus/virtio/drivers/virtio_net
             for round in 1 2 3; do
                 echo $device > unbind
                 test ! -e /sys/class/net/eth0
                 echo $device > bind
             done
             ip link set eth0 up
             ip addr add 10.0.0.1/24 dev eth0",
        ],
    );
    ping(&lab);
    streams(&lab);
    guest_reboot(&lab, Place::Qemu);
    lab.run("b", &["iperf3", "-s", "-D"]);
    streams(&lab);
    lab.down();
    nothing_is_left(&yard);
}

#[test]
fn e2e_lab_qemu_isolated() {
    demo(Place::Qemu, true);
}

#[test]
fn e2e_lab_emulated() {
    demo(Place::Emulated, false);
}

#[test]
fn e2e_lab_emulated_isolated() {
    demo(Place::Emulated, true);
}

#[test]
fn e2e_two_labs_side_by_side_and_again() {
    let yard = Yard::new(Place::Qemu);
    let files = [yard.two_nodes("one", false), yard.two_nodes("two", false)];
    for _ in 0..2 {
        let labs = files.each_ref().map(|file| yard.up(file));
        for lab in &labs {
            ping(lab);
        }
        for lab in labs {
            lab.down();
        }
    }
    nothing_is_left(&yard);
}
