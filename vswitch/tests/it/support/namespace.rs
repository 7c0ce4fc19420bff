//! Tests that need interfaces of the host: in a network namespace of their own.

use std::process::Command;

use netyard_testkit::command::succeed;

/// Runs `ip`, which has to succeed; returns what it prints.
pub(crate) fn ip(arguments: &str) -> String {
    succeed(Command::new("ip").args(arguments.split_whitespace()))
}

/// Runs a test that is left out otherwise in a namespace, as another process; says so where there are none to be had.
pub(crate) fn in_namespace(name: &str) {
    let probe = Command::new("unshare")
        .args(["-rn", "test", "-w", "/dev/net/tun"])
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("left out: no network namespaces or no /dev/net/tun here");
        return;
    }
    let told = succeed(
        Command::new("unshare")
            .arg("-rn")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--ignored", "--nocapture"]),
    );
    print!("{told}");
}
