//! The traffic generator on a real switch: what has to hold whatever the machine's speed.

use netyard_tests::bin;
use netyard_tests::switch::Switch;
use serde_json::Value;

fn report(tests: &[&str], ports: usize) -> Vec<Value> {
    let switch = Switch::up("br0", &[]);
    let mut command = bin::command("pktgen", switch.run_dir());
    for index in 0..ports {
        command
            .arg("--socket")
            .arg(switch.add_port(&format!("p{index}"), 1));
    }
    for test in tests {
        command.args(["--test", test]);
    }
    command.args(["--seconds", "0.2", "--format", "json"]);
    let text = bin::succeed(&mut command);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

fn value(report: &[Value], metric: &str) -> f64 {
    let line = report.iter().find(|line| line["metric"] == metric);
    line.and_then(|line| line["value"].as_f64())
        .unwrap_or_else(|| panic!("no {metric} in {report:?}"))
}

#[test]
fn every_port_to_every_other_loses_its_way_nowhere() {
    let report = report(&["fully-meshed"], 4);
    assert!(value(&report, "all to all, forwarded") > 0.0);
    for metric in ["duplicates", "reordered", "at the wrong port"] {
        let count = value(&report, &format!("all to all, {metric}"));
        assert!(count < 1.0, "{metric}: {count}");
    }
}

#[test]
fn frames_with_errors_are_not_forwarded() {
    let report = report(&["errored-frames"], 2);
    for metric in ["runts forwarded of 64", "oversize forwarded of 64"] {
        assert!(value(&report, metric) < 1.0, "{report:?}");
    }
}

#[test]
fn broadcasts_reach_every_other_port_once() {
    let report = report(&["broadcast"], 3);
    assert!(value(&report, "flat out, forwarded") > 0.0);
    assert!(value(&report, "flat out, duplicates") < 1.0, "{report:?}");
}
