//! DPDK's virtio driver through the switch: split and packed rings, with and without mergeable buffers, in order and not,
//! and across a restart of the switch.

use std::time::Duration;

use netyard_tests::deadline::wait_for;
use netyard_tests::switch::Switch;
use netyard_tests::testpmd::{self, Testpmd};

const LIMIT: Duration = Duration::from_secs(30);
/// Enough for the frames to have gone round the loop many times, so that nothing was merely in flight.
const FRAMES: u64 = 20_000;

/// Frames circulate while the driver takes these paths to transmit and to receive.
fn loop_through_the_switch(options: &str, paths: [&str; 2]) {
    assert!(
        testpmd::is_installed(),
        "dpdk-testpmd is missing: run scripts/deps.sh test"
    );
    let switch = Switch::up("br0", &[]);
    let sockets = [switch.add_port("p0", 1), switch.add_port("p1", 1)];
    let mut testpmd = Testpmd::start(
        switch.run_dir(),
        &sockets,
        &format!(",queues=1,queue_size=256{options}"),
        &["--forward-mode=mac"],
    );
    assert_eq!(testpmd.paths(), paths);
    testpmd.enter("start tx_first 4");
    testpmd.expect("nb forwarding cores", LIMIT);
    let stats = wait_for("frames to circulate", LIMIT, || {
        let stats = testpmd.stats(2);
        stats.iter().all(|port| port.rx_packets > FRAMES).then_some(stats)
    });
    testpmd.enter("stop");
    testpmd.expect("Done.", LIMIT);
    let end = testpmd.stats(2);
    for port in 0..2 {
        assert!(end[port].rx_packets >= stats[port].rx_packets);
    }

    // Each port's address was learned where it is, so the frames were switched and not flooded.
    let fdb = switch.fdb();
    let entries = fdb.as_array().expect("a list of entries");
    assert_eq!(entries.len(), 2, "{fdb}");
    for (index, name) in ["p0", "p1"].into_iter().enumerate() {
        let counters = switch.port(name)["counters"].clone();
        assert_eq!(
            counters["rx_frames"], end[index].tx_packets,
            "{name} in: {counters}"
        );
        assert!(
            counters["tx_frames"].as_u64() >= Some(end[index].rx_packets),
            "{name} out: {counters}"
        );
        assert!(entries.iter().any(|entry| entry["port"] == name), "{fdb}");
    }
    testpmd.quit();
}

#[test]
fn e2e_testpmd_mergeable() {
    loop_through_the_switch(",mrg_rxbuf=1,in_order=0", ["standard", "mergeable buffer"]);
}

#[test]
fn e2e_testpmd_not_mergeable() {
    loop_through_the_switch(",mrg_rxbuf=0,in_order=0", ["standard", "standard"]);
}

#[test]
fn e2e_testpmd_in_order() {
    loop_through_the_switch(",mrg_rxbuf=1,in_order=1", ["inorder", "inorder"]);
}

#[test]
fn e2e_testpmd_in_order_not_mergeable() {
    loop_through_the_switch(",mrg_rxbuf=0,in_order=1", ["inorder", "inorder"]);
}

#[test]
fn e2e_testpmd_vectorised() {
    loop_through_the_switch(",mrg_rxbuf=0,in_order=0,vectorized=1", ["standard", "vectorized"]);
}

#[test]
fn e2e_testpmd_packed() {
    loop_through_the_switch(
        ",packed_vq=1,mrg_rxbuf=1,in_order=0",
        ["packed ring standard", "packed ring mergeable buffer"],
    );
}

#[test]
fn e2e_testpmd_packed_not_mergeable() {
    loop_through_the_switch(",packed_vq=1,mrg_rxbuf=0,in_order=0", ["packed ring standard"; 2]);
}

#[test]
fn e2e_testpmd_packed_in_order() {
    loop_through_the_switch(
        ",packed_vq=1,mrg_rxbuf=1,in_order=1",
        ["packed ring standard", "packed ring mergeable buffer"],
    );
}

#[test]
fn e2e_testpmd_packed_in_order_not_mergeable() {
    loop_through_the_switch(",packed_vq=1,mrg_rxbuf=0,in_order=1", ["packed ring standard"; 2]);
}

#[test]
fn e2e_testpmd_packed_vectorised() {
    // The driver has it for processors with AVX-512 only.
    let path = if std::arch::is_x86_feature_detected!("avx512f") {
        "packed ring vectorized"
    } else {
        "packed ring standard"
    };
    loop_through_the_switch(",packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1", [path; 2]);
}

/// The driver listens, the switch dies and another one takes its place: frames circulate again.
fn outlives_the_switch(options: &str) {
    let switch = Switch::up("br0", &[]);
    let sockets = [switch.add_client_port("p0"), switch.add_client_port("p1")];
    let mut testpmd = Testpmd::start(
        switch.run_dir(),
        &sockets,
        &format!(",server=1,queues=1,queue_size=256{options}"),
        &["--forward-mode=mac"],
    );
    for life in 0..2 {
        if life > 0 {
            switch.kill();
            switch.again(&[]);
        }
        wait_for("both ports to be up", LIMIT, || {
            // Asked for the link's state, the driver notices a lost connection and takes a new one.
            for port in 0..2 {
                testpmd.enter(&format!("show port info {port}"));
                testpmd.expect("Link status:", LIMIT);
            }
            ["p0", "p1"]
                .iter()
                .all(|port| switch.port(port)["enabled_queue_pairs"] == 1)
                .then_some(())
        });
        testpmd.enter("clear port stats all");
        testpmd.enter("start tx_first 4");
        testpmd.expect("nb forwarding cores", LIMIT);
        wait_for("frames to circulate", LIMIT, || {
            let stats = testpmd.stats(2);
            stats.iter().all(|port| port.rx_packets > FRAMES).then_some(stats)
        });
        testpmd.enter("stop");
        testpmd.expect("Done.", LIMIT);
    }
    testpmd.quit();
}

#[test]
fn e2e_testpmd_split_outlives_the_switch() {
    outlives_the_switch(",mrg_rxbuf=1,in_order=1");
}

#[test]
fn e2e_testpmd_packed_outlives_the_switch() {
    outlives_the_switch(",packed_vq=1,mrg_rxbuf=1,in_order=1");
}
