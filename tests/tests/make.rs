//! What the README and `make help` promise of `make`: the demo, and an installation that works where it was put.

use std::path::Path;
use std::process::Command;

use netyard_tests::bin;
use netyard_tests::lab::processes_of;
use serde_json::Value;

/// `make` in the source folder, with the programs that are built already.
fn make(target: &str) -> Command {
    let mut command = Command::new("make");
    command.args([target, "PROFILE=debug"]);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    command
}

#[test]
fn e2e_demo_shows_two_guests_that_reach_each_other() {
    let run = tempfile::Builder::new()
        .prefix("ny-")
        .tempdir()
        .expect("a folder");
    let mut demo = make("demo");
    demo.env("NETYARD_RUN_DIR", run.path()).env("DEMO_SECONDS", "1");
    let text = bin::succeed(&mut demo);
    // Without virtualization hardware the lab runs under QEMU, and on our VMM in the emulated host.
    for (engine, title) in [("vmm", "on our VMM"), ("qemu", "on QEMU")] {
        if !text.contains(title) {
            assert_eq!(engine, "qemu", "{text}");
            continue;
        }
        assert!(text.contains(&format!("running  {engine}")), "{text}");
    }
    for row in [
        "ping, min/avg/max",
        "5 of 5 answered",
        "TCP, iperf3",
        "UDP, iperf3",
    ] {
        assert!(text.contains(row), "no {row:?} in {text}");
    }
    assert_eq!(
        processes_of(run.path()),
        [""; 0],
        "the demo left something running"
    );
    let labs = bin::succeed(bin::command("lab", run.path()).args(["list", "--format", "json"]));
    let labs: Value = serde_json::from_str(&labs).unwrap_or_else(|error| panic!("{error} in {labs}"));
    assert_eq!(labs.as_array().map(Vec::len), Some(0), "the demo left {labs}");
}

#[test]
fn e2e_installed_programs_run_and_find_their_parts() {
    let root = tempfile::tempdir().expect("a folder");
    bin::succeed(
        make("install")
            .env("DESTDIR", root.path())
            .env("PREFIX", "/opt/netyard"),
    );
    let prefix = root.path().join("opt/netyard");
    for command in ["vswitch-port-add", "vmm-run", "lab-image-list", "sriov-create"] {
        let page = std::fs::read_to_string(prefix.join(format!("share/man/man1/{command}.1")));
        assert!(
            page.is_ok_and(|page| page.contains(&command.replace('-', " "))),
            "no manual page of {command}"
        );
    }
    for program in ["vswitch", "vhost-net-backend", "vmm", "lab", "sriov"] {
        let version = bin::succeed(Command::new(prefix.join("bin").join(program)).arg("--version"));
        assert!(version.starts_with(program), "{version}");
        let page = std::fs::read_to_string(prefix.join(format!("share/man/man1/{program}.1")));
        assert!(
            page.is_ok_and(|page| page.contains(".TH")),
            "no manual page of {program}"
        );
        for completions in [
            format!("bash-completion/completions/{program}"),
            format!("zsh/site-functions/_{program}"),
            format!("fish/vendor_completions.d/{program}.fish"),
        ] {
            let script = std::fs::read_to_string(prefix.join("share").join(&completions));
            assert!(
                script.is_ok_and(|script| script.contains(program)),
                "no {completions}"
            );
        }
    }
    // A lab of the installation comes up with the installed programs alone: the switch, the back-ends and the agent are found.
    let run = tempfile::Builder::new()
        .prefix("ny-")
        .tempdir()
        .expect("a folder");
    let lab = |args: &[&str]| {
        let mut command = Command::new(prefix.join("bin/lab"));
        command.args(args).env("NETYARD_RUN_DIR", run.path());
        bin::succeed(&mut command)
    };
    let file = prefix.join("share/netyard/labs/iperf.lab.yaml");
    let file = file.to_str().expect("a plain path");
    lab(&["up", file, "--engine", "qemu"]);
    let status = lab(&["status", file]);
    lab(&["down", file]);
    assert_eq!(status.matches("running  qemu").count(), 2, "{status}");
}
