//! Guests of both engines on one switch.

use netyard_tests::lab::Lab;

use crate::traffic::Stream;

/// A node under QEMU beside those under `vmm`.
pub(crate) const NODE: &str = "  c: {engine: qemu, memory: 256M, nics: [{switch: lan, ip: 10.0.0.3/24}]}\n";

/// More bytes than a frame of a NIC's MTU has.
const SUPER: u64 = 1515;

/// A stream from `a`, under `vmm`, to `c`, under QEMU, or back.
fn stream(lab: &Lab<'_>, reverse: bool) -> [u64; 2] {
    Stream {
        client: "a",
        server: "c",
        address: "10.0.0.3",
        reverse,
        amount: "1M",
    }
    .run(lab)
}

/// Each kind of guest reaches the other, and frames still to be segmented go through both ways as they are.
pub(crate) fn both_engines(lab: &Lab<'_>) {
    for (node, engine) in [("a", "vmm"), ("b", "vmm"), ("c", "qemu")] {
        assert_eq!(lab.node(node)["engine"], engine, "{node}");
    }
    lab.run_until("a", &["ping", "-c", "2", "-W", "5", "10.0.0.3"]);
    lab.run_until("c", &["ping", "-c", "2", "-W", "5", "10.0.0.1"]);
    lab.run("c", &["iperf3", "-s", "-D"]);
    for reverse in [false, true] {
        let [sent, came] = stream(lab, reverse);
        assert!(
            sent >= SUPER && came >= SUPER,
            "reverse {reverse}: {sent} and {came} bytes a frame"
        );
    }
}

/// What QEMU's guest sends is segmented for `a`, which takes no such frames at the moment.
fn is_segmented(lab: &Lab<'_>) {
    let [sent, came] = stream(lab, true);
    assert!(sent >= SUPER && came < SUPER, "{sent} and {came} bytes a frame");
}

/// `a` tells the switch through its control queue that it takes no frames still to be segmented.
pub(crate) fn offloads_switched_off(lab: &Lab<'_>) {
    lab.run("a", &["ethtool", "-K", "eth0", "rx-gro-hw", "off"]);
    is_segmented(lab);
}

/// That holds under the next switch.
pub(crate) fn offloads_stay_off(lab: &Lab<'_>) {
    lab.run_until("a", &["ping", "-c", "2", "-W", "5", "10.0.0.3"]);
    is_segmented(lab);
}
