//! What a bridge costs while nothing happens.

#[path = "support/host.rs"]
mod host;
#[path = "support/net.rs"]
mod net;

use std::fs;
use std::time::{Duration, Instant};

use host::{Host, port};
use net::{BROADCAST, frame, mac};
use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::{Guest, wait_for};

const PORTS: usize = 64;

/// How often the threads of a process went to sleep, those that move frames and all others: each wake-up ends in that.
fn sleeps(pid: &str) -> (u64, u64) {
    let (mut workers, mut others) = (0, 0);
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let name = fs::read_to_string(thread.path().join("comm")).unwrap();
        let status = fs::read_to_string(thread.path().join("status")).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("voluntary_ctxt_switches"))
            .unwrap();
        let count: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        if name.starts_with("worker-") {
            workers += count;
        } else {
            others += count;
        }
    }
    (workers, others)
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
    // Until the polling after the last frame is over.
    let mut before = sleeps(&pid);
    wait_for("the workers to sleep", || {
        std::thread::sleep(Duration::from_millis(50));
        let now = sleeps(&pid);
        std::mem::replace(&mut before, now).0 == now.0
    });
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(2));
    let after = sleeps(&pid);
    assert_eq!(after.0 - before.0, 0, "wake-ups of workers while idle");
    // A session looks once a second whether its guest's memory is still there.
    let seconds = start.elapsed().as_secs() + 2;
    let limit = PORTS as u64 * seconds + 20;
    assert!(
        after.1 - before.1 <= limit,
        "{} wake-ups while idle",
        after.1 - before.1
    );
    let answer = frame(mac(1), mac(2), 1, 60);
    guests[PORTS - 1].send(0, &answer);
    guests[0].expect(&answer);
}
