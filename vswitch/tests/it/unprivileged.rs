//! A switch that nobody special runs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use crate::support::host::Host;
use netyard_testkit::endpoint::Options;

/// The user and group `nobody`.
const NOBODY: u32 = 65534;

/// The program as an unprivileged user runs it: as `nobody` if this test is root's.
fn unprivileged(host: &Host, args: &[&str]) -> std::process::Output {
    let folder = host.folder.path();
    let program = folder.join("vswitch-copy");
    let mut command = if rustix::process::geteuid().is_root() {
        if !program.exists() {
            // Where the build is may be out of reach for others.
            fs::copy(env!("CARGO_BIN_EXE_vswitch"), &program).unwrap();
            chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut command = Command::new("setpriv");
        let user = NOBODY.to_string();
        command.args([
            "--reuid",
            &user,
            "--regid",
            &user,
            "--clear-groups",
            "--no-new-privs",
        ]);
        command.arg(&program);
        command
    } else {
        Command::new(env!("CARGO_BIN_EXE_vswitch"))
    };
    command
        .args(args)
        .current_dir("/")
        .env("NETYARD_RUN_DIR", folder)
        .output()
        .unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_switch_with_vm_ports_needs_no_privilege_and_lets_nobody_else_in() {
    let host = Host::new();
    let ok = |args: &[&str]| {
        let output = unprivileged(&host, args);
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    ok(&["up", "br0"]);
    for name in ["a", "b"] {
        ok(&["port", "add", "br0", name]);
    }
    let dir = host.bridge("br0");
    if rustix::process::geteuid().is_root() {
        let process = fs::metadata(format!("/proc/{}", host.pid("br0"))).unwrap();
        assert_eq!(process.uid(), NOBODY);
    }
    for folder in [dir.as_path(), &dir.join("ports"), dir.parent().unwrap()] {
        assert_eq!(mode(folder), 0o700, "{}", folder.display());
    }
    for socket in ["api.sock", "ports/a.sock", "ports/b.sock"] {
        assert_eq!(mode(&dir.join(socket)), 0o600, "{socket}");
    }
    let mut pair = host.pair(Options::default());

    // An interface of the host is another matter: refused, with the exit code for that, and nothing is left of it.
    let refused = unprivileged(&host, &["port", "add", "br0", "host", "--tap", "netyard-none"]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(3), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    assert_eq!(host.json(&["show", "br0"])["ports"].as_array().unwrap().len(), 2);

    ok(&["restart", "br0"]);
    pair.run(1000);
    ok(&["down", "br0"]);
}
