//! A bridge whose daemon is replaced while it is in use.

#[path = "support/host.rs"]
mod host;
#[path = "support/net.rs"]
mod net;
#[path = "support/pair.rs"]
mod pair;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use host::{Host, port};
use net::{frame, mac};
use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::{Guest, wait_for};
use pair::Pair;
use serde_json::{Value, json};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use virtio::memory::SharedMemory;

fn socket(host: &Host, name: &str) -> PathBuf {
    host.bridge("br0").join(format!("ports/{name}.sock"))
}

/// A bridge with two guests that know each other, and a port without a guest.
fn start(host: &Host) -> Pair {
    host.ok(&["up", "br0", "--ageing", "1000"]);
    for name in ["a", "b", "idle"] {
        host.ok(&["port", "add", "br0", name]);
    }
    host.ok(&["fdb", "add", "br0", "02:00:00:00:00:09", "idle"]);
    let connect = |name: &str| Guest::connect(&socket(host, name), Options::default());
    let mut pair = Pair::new(connect("a"), connect("b"));
    wait_for("both ports", || {
        let show = host.json(&["show", "br0"]);
        ["a", "b"].iter().all(|name| port(&show, name)["state"] == "up")
    });
    pair.meet();
    pair.run(1000);
    pair
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

#[test]
fn a_new_daemon_goes_on_with_everything_and_no_frame_is_lost() {
    let host = Host::new();
    let mut pair = start(&host);
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
        let old = PathBuf::from(format!("/proc/{pid}"));
        wait_for("the former daemon to end", || !old.exists());
        eprintln!("stood still for {} µs", told["stopped_us"]);
    }
    // The connections are the same, and still understood.
    pair.from.frontend.get_features().unwrap();
    assert_eq!(pair.to.frontend.get_queue_num().unwrap(), 2);
    let extra = SharedMemory::new("extra", 0x9_0000_0000, 2 << 20).unwrap();
    let all = pair.from.memory.iter().chain([&extra]);
    let regions: Vec<_> = all
        .map(|memory| VhostUserMemoryRegionInfo {
            guest_phys_addr: memory.region().guest_addr(),
            memory_size: memory.region().len(),
            userspace_addr: memory.region().user_addr(),
            mmap_offset: 0,
            mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&memory.fd()),
        })
        .collect();
    pair.from.frontend.set_mem_table(&regions).unwrap();
    pair.run(100);
    let mut late = Guest::connect(&socket(&host, "idle"), Options::default());
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
    let mut pair = start(&host);
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
    }
    // It can still be done with one that can.
    assert!(restart(&host, &mut pair, &[]).status.success());
    pair.run(1000);
    let nothing = host.run(&["up", "br1", "--foreground", "--take-over"]);
    assert_eq!(nothing.status.code(), Some(1));
    assert!(host.fails(1, &["restart", "br7"]).contains("not up"));
}
