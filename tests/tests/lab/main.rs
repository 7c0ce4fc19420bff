//! Whole labs: under QEMU on this machine, and under our own `vmm` in the emulated host.

mod control;
mod driver;
mod mixed;
mod traffic;

use netyard_tests::bin;
use netyard_tests::deadline::wait_for;
use netyard_tests::lab::{Lab, Place, Yard, processes_of};
use serde_json::Value;
use traffic::ping;

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

/// Everything that a lab of two nodes has to do. Where both engines run, a third node is under the other one.
fn demo(place: Place, isolate: bool) {
    let yard = Yard::new(place);
    let served = place == Place::Emulated && !isolate;
    let file = if served {
        yard.two_nodes_and("demo", 2, isolate, mixed::NODE)
    } else {
        yard.two_nodes(if isolate { "apart" } else { "demo" }, isolate)
    };
    let lab = yard.up(&file);
    ping(&lab);
    measure(&yard, &lab);
    both_pairs_carry(&lab, place);
    rings_are_packed(&lab);
    if place == Place::Emulated {
        resized_rings(&lab);
    }
    fdb_is_right(&lab);
    if served {
        mixed::both_engines(&lab);
        control::queue_pairs(&lab, place);
        let wishes = control::Wishes::prepare(&lab);
        wishes.take_effect();
        mixed::offloads_switched_off(&lab);
        killed_switch(&lab, place);
        // The next switch knows what its guests want.
        wishes.hold();
        mixed::offloads_stay_off(&lab);
    } else {
        killed_switch(&lab, place);
    }
    guest_reboot(&lab, place);
    lab.down();
    nothing_is_left(&yard);
}

#[test]
fn e2e_lab_qemu() {
    demo(Place::Qemu, false);
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
