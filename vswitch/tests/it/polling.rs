//! How a worker waits for the next frame.

use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Instant;

use crate::support::net::{Net, frame, mac};
use netyard_testkit::guest::{DEADLINE, wait_for};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use vswitch::config::{BridgeSettings, PollMode};

/// Frames sent one after the other, each as soon as the last has arrived.
const FRAMES: u64 = 100;

/// The worker's folder in `/proc`. A list of threads may lack one when another ends meanwhile, so it is looked for until it is found.
fn worker() -> PathBuf {
    let mut found = None;
    wait_for("a worker", || {
        let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        found = threads.map(|thread| thread.path()).find(|thread| {
            std::fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim() == "worker-0")
        });
        found.is_some()
    });
    found.expect("it was waited for")
}

/// How often the worker went to sleep.
fn sleeps(worker: &Path) -> u64 {
    let status = std::fs::read_to_string(worker.join("status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("voluntary_ctxt_switches"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .expect("a number of switches")
}

#[test]
fn a_worker_counts_what_it_does_with_its_time() {
    let net = Net::with(BridgeSettings {
        poll: PollMode::Never,
        ..BridgeSettings::default()
    });
    let [mut a, mut b] = ["a", "b"].map(|name| net.guest(name));
    let sent = frame(mac(2), mac(1), 0, 60);
    let counters = || net.switch.view().worker_counters[0].clone();
    let before = counters();
    for _ in 0..FRAMES {
        a.send(0, &sent);
        b.expect(&sent);
    }
    let mut after = counters();
    // A frame is there before it is counted.
    wait_for("the last frame to be counted", || {
        after = counters();
        after.frames == before.frames + FRAMES
    });
    assert!(after.bursts > before.bursts && after.bursts <= before.bursts + FRAMES);
    assert!(after.busy_ns > before.busy_ns);
    assert!(after.wakeups > before.wakeups && after.empty_looks > before.empty_looks);
    let mut last = after;
    wait_for("a worker that sleeps", || {
        let now = counters();
        std::mem::replace(&mut last, now.clone()) == now
    });
    // Nothing is left to be done, so that nothing is counted.
    let _asked_again = net.port("a");
    assert_eq!(counters(), last);
}

#[test]
fn a_worker_that_is_pinned_to_a_cpu_polls_before_it_sleeps() {
    let ours = sched_getaffinity(None).unwrap();
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| ours.is_set(*cpu));
    let (Some(first), Some(second), 2..) = (cpus.next(), cpus.next(), available_parallelism().unwrap().get())
    else {
        println!("skipped: on one CPU nothing comes while it is polled for");
        return;
    };
    let net = Net::with(BridgeSettings {
        cpus: vec![u16::try_from(second).unwrap()],
        ..BridgeSettings::default()
    });
    let [mut a, mut b] = ["a", "b"].map(|name| net.guest(name));
    let mut only = CpuSet::new();
    only.set(first);
    sched_setaffinity(None, &only).unwrap();
    let worker = worker();
    let sent = frame(mac(2), mac(1), 0, 60);
    // Where others have one of the CPUs for a while, the pause is longer than a worker polls.
    wait_for("frames that came while the worker polled", || {
        let before = sleeps(&worker);
        for _ in 0..FRAMES {
            a.send(0, &sent);
            let end = Instant::now() + DEADLINE;
            // Without giving way to anyone: that may take long.
            while b.try_receive(0).is_none() {
                assert!(Instant::now() < end, "no frame came");
                std::hint::spin_loop();
            }
        }
        sleeps(&worker) - before < FRAMES / 4
    });
}
