//! What a bridge costs while nothing happens.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use crate::support::host::{Host, port};
use crate::support::net::{BROADCAST, frame, mac};
use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::{Guest, wait_for};

const PORTS: usize = 64;

/// Without a wake-up for as long, a switch is idle: longer than anything that happens again and again for one port.
const QUIET: Duration = Duration::from_secs(4);
/// By when it has to be.
const LIMIT: Duration = Duration::from_mins(1);

/// How often each thread of a process went to sleep: each wake-up ends in that.
fn sleeps(pid: &str) -> BTreeMap<String, u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let read = |thread: fs::DirEntry| {
        // One that has just ended is none any more.
        let name = fs::read_to_string(thread.path().join("comm")).ok()?;
        let status = fs::read_to_string(thread.path().join("status")).ok()?;
        let line = status
            .lines()
            .find(|line| line.starts_with("voluntary_ctxt_switches"))?;
        let count = line.split_whitespace().nth(1)?.parse().ok()?;
        Some((
            format!("{} {}", thread.file_name().to_string_lossy(), name.trim()),
            count,
        ))
    };
    threads.filter_map(read).collect()
}

#[test]
fn sixty_four_idle_ports_wake_nobody() {
    let host = Host::new();
    host.ok(&["up", "br0", "--workers", "2"]);
    let name = |number: usize| format!("p{number}");
    for number in 0..PORTS {
        host.ok(&["port", "add", "br0", &name(number)]);
    }
    let options = Options {
        queue_size: 64,
        ..Options::default()
    };
    let mut guests: Vec<Guest> = (0..PORTS)
        .map(|number| {
            let socket = host.bridge("br0").join(format!("ports/{}.sock", name(number)));
            Guest::connect(&socket, options)
        })
        .collect();
    wait_for("all ports", || {
        let show = host.json(&["show", "br0"]);
        (0..PORTS).all(|number| port(&show, &name(number))["state"] == "up")
    });
    let hello = frame(BROADCAST, mac(1), 1, 60);
    guests[0].send(0, &hello);
    for guest in &mut guests[1..] {
        guest.expect(&hello);
    }
    let pid = host.pid("br0");
    // The polling after the last frame ends, and threads that served the command line do. From then on nobody wakes.
    let deadline = Instant::now() + LIMIT;
    let mut since = (Instant::now(), sleeps(&pid));
    while since.0.elapsed() < QUIET {
        std::thread::sleep(Duration::from_millis(50));
        let now = sleeps(&pid);
        if since.1 != now {
            assert!(
                Instant::now() < deadline,
                "still waking up: {:?}, then {now:?}",
                since.1
            );
            since = (Instant::now(), now);
        }
    }
    let answer = frame(mac(1), mac(2), 1, 60);
    guests[PORTS - 1].send(0, &answer);
    guests[0].expect(&answer);
}
