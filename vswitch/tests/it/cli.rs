//! The real binary in a run folder of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::host::{Host, port};
use crate::support::net::{BROADCAST, frame, mac};
use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::{Guest, wait_for};
use serde_json::Value;

#[test]
fn a_bridge_lives_from_up_to_down() {
    let host = Host::new();
    let up = host.ok(&["up", "br0"]);
    assert!(up.starts_with("bridge br0 is up (pid "), "{up}");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&host.bridge("br0")), 0o700);
    assert_eq!(mode(&host.bridge("br0").join("api.sock")), 0o600);

    let again = host.fails(1, &["up", "br0"]);
    assert!(again.contains("already up (pid "), "{again}");

    let added = host.json(&[
        "port",
        "add",
        "br0",
        "vm1",
        "--queues",
        "2",
        "--mac",
        "52:54:00:00:00:01",
    ]);
    assert_eq!(
        added["socket"],
        host.bridge("br0").join("ports/vm1.sock").to_str().unwrap()
    );
    assert_eq!(
        (&added["state"], &added["queue_pairs"], &added["mtu"]),
        (&"down".into(), &2.into(), &1500.into())
    );
    let socket = host.folder.path().join("own.sock");
    host.ok(&[
        "port",
        "add",
        "br0",
        "vm2",
        "--socket",
        socket.to_str().unwrap(),
        "--mtu",
        "9000",
    ]);

    let show = host.json(&["show", "br0"]);
    assert_eq!(show["name"], "br0");
    assert_eq!(show["pid"].to_string(), host.pid("br0"));
    assert_eq!(port(&show, "vm2")["mtu"], 9000);
    assert_eq!(port(&show, "vm1")["counters"]["drops"], serde_json::json!({}));
    let table = host.ok(&["show", "br0"]);
    assert!(
        table.contains("vm1") && table.contains("PORT") && !table.contains('│'),
        "{table}"
    );
    assert!(host.ok(&["show"]).contains("br0"));
    assert!(host.ok(&["port", "list", "br0"]).contains("vm2"));
    assert!(
        host.ok(&["port", "show", "br0", "vm1"])
            .contains("52:54:00:00:00:01")
    );

    host.ok(&["port", "del", "br0", "vm2"]);
    assert!(!socket.exists());
    assert_eq!(host.ok(&["down", "br0"]), "bridge br0 is down\n");
    assert!(!host.bridge("br0").exists());
    assert!(host.fails(1, &["down", "br0"]).contains("not up"));
    assert!(host.ok(&["show"]).contains("no bridge is up"));
}

#[test]
fn refusals_say_what_and_why_with_the_right_exit_code() {
    let host = Host::new();
    assert!(host.fails(1, &["show", "br0"]).contains("`vswitch up br0`"));
    assert!(host.fails(1, &["up", "a/b"]).contains("cannot name a bridge"));
    host.ok(&["up", "br0"]);
    host.ok(&["port", "add", "br0", "vm1"]);
    assert!(host.fails(1, &["port", "add", "br0", "vm1"]).contains("already"));
    assert!(
        host.fails(1, &["port", "add", "br0", "a/b"])
            .contains("cannot name a port")
    );
    assert!(
        host.fails(1, &["port", "del", "br0", "vm9"])
            .contains("`vswitch port list br0`")
    );
    assert!(
        host.fails(1, &["port", "add", "br0", "m", "--mac", "01:00:00:00:00:00"])
            .contains("group")
    );
    let socket = host.bridge("br0").join("ports/vm1.sock");
    let taken = host.fails(
        1,
        &["port", "add", "br0", "vm2", "--socket", socket.to_str().unwrap()],
    );
    assert!(taken.contains("belongs to port vm1"), "{taken}");
    let long = format!("/{}", "x".repeat(107));
    assert!(
        host.fails(1, &["port", "add", "br0", "vm2", "--socket", &long])
            .contains("NETYARD_RUN_DIR")
    );
    let file = host.folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    host.fails(
        1,
        &["port", "add", "br0", "vm3", "--socket", file.to_str().unwrap()],
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert!(
        host.fails(1, &["fdb", "del", "br0", "02:00:00:00:00:01"])
            .contains("no entry")
    );
    assert!(
        host.fails(1, &["fdb", "add", "br0", "02:00:00:00:00:01", "vm9"])
            .contains("no port vm9")
    );
    assert!(
        host.fails(1, &["fdb", "flush", "br0", "--port", "vm9"])
            .contains("no port vm9")
    );
    for usage in [
        &["port", "add", "br0", "vm4", "--queues", "17"][..],
        &["port", "add", "br0", "vm4", "--queues", "0"],
        &["port", "add", "br0", "vm4", "--mtu", "67"],
        &["port", "add", "br0", "vm4", "--mtu", "9217"],
        &["port", "add", "br0", "vm4", "--mac", "nonsense"],
        &["port", "add", "br0", "vm4", "--tap", "t", "--socket", "/s"],
        &["up", "br1", "--workers", "0"],
        &["up", "br1", "--on-full", "panic"],
        &["port", "set", "br0", "vm1"],
        &["port", "set", "br0", "vm1", "--link", "sideways"],
        &["frobnicate"],
    ] {
        host.fails(2, usage);
    }
    assert_eq!(port(&host.json(&["show", "br0"]), "vm1")["name"], "vm1");
    assert_eq!(
        host.json(&["show", "br0"])["ports"].as_array().unwrap().len(),
        1,
        "nothing was half added"
    );
}

#[test]
fn two_bridges_are_two_networks() {
    let host = Host::new();
    host.ok(&["up", "br0", "--workers", "2"]);
    host.ok(&[
        "up",
        "br1",
        "--fdb-size",
        "16",
        "--ageing",
        "60",
        "--on-full",
        "flood",
        "--poll",
        "never",
    ]);
    for bridge in ["br0", "br1"] {
        for name in ["a", "b"] {
            host.ok(&["port", "add", bridge, name]);
        }
    }
    let connect = |bridge: &str, port: &str| {
        Guest::connect(
            &host.bridge(bridge).join(format!("ports/{port}.sock")),
            Options::default(),
        )
    };
    let (mut a0, mut b0) = (connect("br0", "a"), connect("br0", "b"));
    let (mut a1, mut b1) = (connect("br1", "a"), connect("br1", "b"));
    for bridge in ["br0", "br1"] {
        wait_for("both ports", || {
            let show = host.json(&["show", bridge]);
            ["a", "b"].iter().all(|name| port(&show, name)["state"] == "up")
        });
    }
    let hello = frame(BROADCAST, mac(1), 1, 60);
    a0.send(0, &hello);
    b0.expect(&hello);
    let other = frame(BROADCAST, mac(1), 2, 60);
    a1.send(0, &other);
    b1.expect(&other);
    a0.expect_nothing();
    let fdb = host.json(&["fdb", "show", "br1"]);
    assert_eq!(fdb.as_array().unwrap().len(), 1);
    assert_eq!(
        (&fdb[0]["mac"], &fdb[0]["port"], &fdb[0]["static"]),
        (&"02:00:00:00:00:01".into(), &"a".into(), &false.into())
    );
    let view = host.json(&["show", "br1"]);
    assert_eq!(
        (&view["fdb"]["size"], &view["fdb"]["on_full"]),
        (&16.into(), &"flood".into())
    );
    assert_eq!(host.json(&["show"]).as_array().unwrap().len(), 2);
    let metrics = host.ok(&["metrics", "br1"]);
    assert!(
        metrics.contains("vswitch_queue_rx_frames_total{bridge=\"br1\",port=\"a\",queue=\"0\"} 1"),
        "{metrics}"
    );
    let counted = &view["worker_counters"][0]["frames"];
    assert!(counted.as_u64() > Some(0), "{view}");
    assert!(
        metrics.contains(&format!(
            "vswitch_worker_frames_total{{bridge=\"br1\",worker=\"0\"}} {counted}\n"
        )),
        "{metrics}"
    );
    assert!(metrics.contains("vswitch_worker_busy_seconds_total{bridge=\"br1\",worker=\"0\"} 0.0"));
    let shown = host.ok(&["show", "br1"]);
    assert!(shown.contains("NS/FRAME"), "{shown}");
    assert!(metrics.ends_with("# EOF\n"));
    host.ok(&["down", "br0"]);
    a1.send(0, &other);
    b1.expect(&other);
}

#[test]
fn static_entries_and_flushes_on_the_command_line() {
    let host = Host::new();
    host.ok(&["up", "br0"]);
    host.ok(&["port", "add", "br0", "vm1"]);
    host.ok(&["fdb", "add", "br0", "52:54:00:00:00:07", "vm1"]);
    let table = host.ok(&["fdb", "show", "br0"]);
    assert!(
        table.contains("52:54:00:00:00:07") && table.contains("static"),
        "{table}"
    );
    assert_eq!(host.json(&["fdb", "flush", "br0"])["entries"], 0);
    assert_eq!(host.json(&["fdb", "show", "br0"])[0]["static"], true);
    host.ok(&["fdb", "del", "br0", "52:54:00:00:00:07"]);
    assert_eq!(host.json(&["fdb", "show", "br0"]), serde_json::json!([]));
}

#[test]
fn a_killed_daemon_is_replaced_and_its_ports_come_back() {
    let host = Host::new();
    host.ok(&["up", "br0", "--ageing", "77"]);
    host.ok(&["port", "add", "br0", "a", "--queues", "2"]);
    host.ok(&["port", "add", "br0", "b", "--mtu", "2000"]);
    host.ok(&["fdb", "add", "br0", "02:00:00:00:00:09", "b"]);
    host.ok(&["port", "add", "br0", "c"]);
    assert_eq!(
        host.ok(&["port", "set", "br0", "c", "--link", "down"]),
        "port c of br0 is set down\n"
    );
    host.kill("br0");
    assert!(host.fails(1, &["port", "list", "br0"]).contains("not up"));
    host.ok(&["up", "br0"]);
    let show = host.json(&["show", "br0"]);
    assert_eq!(show["fdb"]["ageing_s"], 77);
    assert_eq!(port(&show, "c")["link"], "down");
    assert_eq!(
        host.json(&["port", "set", "br0", "c", "--link", "up"])["link"],
        "up"
    );
    assert_eq!(
        (&port(&show, "a")["queue_pairs"], &port(&show, "b")["mtu"]),
        (&2.into(), &2000.into())
    );
    assert_eq!(host.json(&["fdb", "show", "br0"])[0]["port"], "b");
    let connect = |name: &str| {
        Guest::connect(
            &host.bridge("br0").join(format!("ports/{name}.sock")),
            Options::default(),
        )
    };
    let (mut a, mut b) = (connect("a"), connect("b"));
    wait_for("both ports", || {
        let show = host.json(&["show", "br0"]);
        ["a", "b"].iter().all(|name| port(&show, name)["state"] == "up")
    });
    let hello = frame(BROADCAST, mac(1), 1, 60);
    a.send(0, &hello);
    b.expect(&hello);
    // Dead again, and taken down instead of up: nothing stays.
    host.kill("br0");
    host.ok(&["down", "br0"]);
    assert!(!host.bridge("br0").exists());
}

#[test]
fn a_terminated_daemon_keeps_its_settings() {
    let host = Host::new();
    host.ok(&["up", "br0"]);
    host.ok(&["port", "add", "br0", "a"]);
    let pid = host.pid("br0");
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    wait_for("the daemon to end", || {
        !host.bridge("br0").join("api.sock").exists()
    });
    wait_for("the bridge to be free", || {
        host.run(&["up", "br0"]).status.success()
    });
    assert_eq!(port(&host.json(&["show", "br0"]), "a")["state"], "down");
}

#[test]
fn a_damaged_configuration_is_refused_not_lost() {
    let host = Host::new();
    host.ok(&["up", "br0"]);
    host.kill("br0");
    let config = host.bridge("br0").join("config.json");
    fs::write(&config, "{").unwrap();
    let text = host.fails(1, &["up", "br0"]);
    assert!(
        text.contains("is damaged") && text.contains("config.json"),
        "{text}"
    );
    assert_eq!(fs::read_to_string(&config).unwrap(), "{");
}

#[test]
fn the_api_is_described() {
    let host = Host::new();
    let document: Value = serde_json::from_str(&host.ok(&["openapi"])).unwrap();
    for path in [
        "/v1/bridge",
        "/v1/ports",
        "/v1/ports/{name}",
        "/v1/fdb",
        "/v1/fdb/flush",
        "/v1/shutdown",
        "/metrics",
    ] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
    assert!(host.ok(&["completions", "bash"]).contains("vswitch"));
    assert!(host.ok(&["man"]).contains(".TH vswitch"));
    assert!(host.ok(&["--help"]).contains("Examples:"));
}
