//! The traffic generator on a real switch: what has to hold whatever the machine's speed.

use std::process::Command;

use netyard_tests::bin;
use netyard_tests::switch::Switch;
use serde_json::Value;

/// Runs `test` on `ports` ports of `switch` in short trials.
fn pktgen(switch: &Switch, test: &str, ports: usize, args: &[&str]) -> Command {
    let mut command = bin::command("pktgen", switch.run_dir());
    for index in 0..ports {
        command
            .arg("--socket")
            .arg(switch.add_port(&format!("p{index}"), 2));
    }
    command
        .args(["--test", test, "--format", "json"])
        // Machines that run tests have other work, too.
        .args(["--repeats", "1", "--tolerate", "990000"])
        .args(args);
    if !args.contains(&"--seconds") {
        command.args(["--seconds", "0.02"]);
    }
    command
}

fn report(test: &str, ports: usize, args: &[&str]) -> Vec<Value> {
    let switch = Switch::up("br0", &[]);
    run(pktgen(&switch, test, ports, args))
}

fn run(mut command: Command) -> Vec<Value> {
    let text = bin::succeed(&mut command);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

fn value(report: &[Value], metric: &str) -> f64 {
    let line = report.iter().find(|line| line["metric"] == metric);
    line.and_then(|line| line["value"].as_f64())
        .unwrap_or_else(|| panic!("no {metric} in {report:?}"))
}

#[track_caller]
fn nothing_went_astray(report: &[Value], what: &str) {
    assert!(value(report, &format!("{what}, throughput")) > 0.0);
    assert!(value(report, &format!("{what}, forwarded")) > 0.0);
    for metric in ["duplicates", "reordered", "at the wrong port"] {
        let count = value(report, &format!("{what}, {metric}"));
        assert!(count < 1.0, "{what}, {metric}: {count}");
    }
}

#[test]
fn throughput_is_found_with_frames_buffers_and_queues_of_every_kind() {
    for args in [
        &["--size", "imix", "--flows", "100"][..],
        &["--ring", "packed", "--size", "1514"],
        &["--size", "super", "--queue-size", "64"],
        &["--size", "super", "--queue-size", "256", "--buffer-size", "4096"],
        &["--regions", "8", "--pairs", "2"],
    ] {
        let report = report("throughput", 2, args);
        assert!(value(&report, "highest rate without loss") > 0.0, "{args:?}");
    }
}

#[test]
fn latency_is_seen_at_every_load() {
    let report = report("latency", 2, &[]);
    for load in [10, 50, 90, 100] {
        let quantile = |name| value(&report, &format!("at {load} %, {name}"));
        assert!(quantile("p50") > 0.0 && quantile("p50") <= quantile("p99.9"));
    }
}

#[test]
fn frame_loss_is_a_share_of_what_was_offered() {
    let report = report("frame-loss", 2, &[]);
    assert!((0.0..=100.0).contains(&value(&report, "loss at 100 %")));
}

#[test]
fn a_long_burst_gets_through() {
    let report = report("back-to-back", 2, &[]);
    assert!(value(&report, "longest burst without loss") > 0.0);
}

#[test]
fn recovery_from_overload_ends() {
    let report = report("system-recovery", 2, &[]);
    assert!(value(&report, "recovery from overload") >= 0.0);
}

#[test]
fn frames_come_again_after_a_reset() {
    let switch = Switch::up("br0", &[]);
    let vswitch = bin::path("vswitch");
    let again = format!("{0} down br0 && {0} up br0", vswitch.display());
    let ports = ["p0", "p1"].map(|name| {
        format!(
            "{} port add br0 {name} --socket {}/{name}.sock",
            vswitch.display(),
            switch.run_dir().display()
        )
    });
    let command = format!("{again} && {}", ports.join(" && "));
    let report = run(pktgen(&switch, "reset", 2, &["--reset-command", &command]));
    assert!(value(&report, "longest time without a frame") > 0.0);
    assert!(value(&report, "frames lost") > 0.0);
}

#[test]
fn a_reset_needs_its_command() {
    let switch = Switch::up("br0", &[]);
    let output = bin::finish(&mut pktgen(&switch, "reset", 2, &[]));
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--reset-command"));
}

#[test]
fn a_sleeping_switch_is_woken_by_a_frame() {
    let report = report("wake-up", 2, &["--seconds", "0.1"]);
    assert!(value(&report, "frames") > 0.0);
    assert!(value(&report, "idle to first frame, p50") > 0.0);
}

#[test]
fn every_port_to_every_other_loses_its_way_nowhere() {
    nothing_went_astray(&report("fully-meshed", 4, &[]), "all to all");
}

#[test]
fn one_to_many_and_back_lose_their_way_nowhere() {
    let report = report("partially-meshed", 4, &[]);
    for what in ["one to many", "many to one", "half to half"] {
        nothing_went_astray(&report, what);
    }
}

#[test]
fn a_congested_port_costs_its_own_frames_only() {
    let report = report("congestion-control", 4, &["--seconds", "0.2"]);
    assert!(value(&report, "each sender, offered") > 0.0);
    assert!(value(&report, "loss at the congested port") > 0.0, "{report:?}");
    assert!(value(&report, "loss at the other port") < 1.0, "{report:?}");
}

#[test]
fn the_maximum_is_no_less_than_what_is_forwarded_flat_out() {
    let report = report("maximum-forwarding-rate", 2, &[]);
    let flat_out = value(&report, "forwarded at maximum offered load");
    assert!(flat_out > 0.0 && value(&report, "maximum forwarding rate") >= flat_out);
}

#[test]
fn the_table_holds_as_many_addresses_as_it_was_given_room_for() {
    let switch = Switch::up("br0", &["--fdb-size", "512", "--on-full", "flood"]);
    let flush = format!("{} fdb flush br0", bin::path("vswitch").display());
    let report = run(pktgen(
        &switch,
        "address-caching-capacity",
        3,
        &["--flush-command", &flush],
    ));
    let held = value(&report, "addresses held");
    assert!((1.0..=512.0).contains(&held), "{held} addresses");
}

#[test]
fn addresses_are_learned() {
    let report = report("address-learning-rate", 3, &[]);
    assert!(value(&report, "addresses learned") > 0.0);
}

#[test]
fn frames_with_errors_are_not_forwarded() {
    let report = report("errored-frames", 2, &[]);
    for what in [
        "runts",
        "oversize frames",
        "headers without a frame",
        "chains shorter than a header",
        "chains outside of memory",
    ] {
        let count = value(&report, &format!("{what} forwarded of 64"));
        assert!(count < 1.0, "{what}: {report:?}");
        let good = value(&report, &format!("good frames after {what}, of 64"));
        assert!(good > 63.0, "{what}: {report:?}");
    }
}

#[test]
fn broadcasts_reach_every_other_port_once() {
    nothing_went_astray(&report("broadcast", 3, &[]), "to all");
}

#[test]
fn a_back_end_that_connects_is_waited_for() {
    let switch = Switch::up("br0", &[]);
    let mut command = bin::command("pktgen", switch.run_dir());
    for name in ["p0", "p1"] {
        let socket = switch.run_dir().join(format!("{name}.sock"));
        bin::succeed(
            switch
                .command()
                .args(["port", "add", "br0", name, "--client", "--socket"])
                .arg(&socket),
        );
        command.arg("--listen").arg(&socket);
    }
    command.args(["--test", "wake-up", "--seconds", "0.1", "--format", "json"]);
    assert!(value(&run(command), "frames") > 0.0);
}
