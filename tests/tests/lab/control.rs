//! What guests ask for through their control queues, and what comes of it.

use netyard_tests::deadline::wait_for;
use netyard_tests::lab::{Lab, Place};

use crate::traffic::ping;

/// The guest `b` chooses how many queue pairs it uses, and on which of them it receives.
pub(crate) fn queue_pairs(lab: &Lab<'_>, place: Place) {
    for pairs in [1, 2] {
        lab.run("b", &["ethtool", "-L", "eth0", "combined", &pairs.to_string()]);
        wait_for("the switch to know of the queue pairs", place.patience(), || {
            (lab.port("b-0")["enabled_queue_pairs"] == pairs).then_some(())
        });
    }
    // All that it receives comes on the second pair.
    lab.run("b", &["ethtool", "-X", "eth0", "weight", "0", "1"]);
    let table = lab.run("b", &["ethtool", "-x", "eth0"]);
    assert!(table.contains("RX flow hash indirection table"), "{table}");
    let received = || {
        let queues = lab.port("b-0")["queues"].clone();
        [0, 1].map(|at: usize| queues[at]["tx_frames"].as_u64().unwrap_or(0))
    };
    let before = received();
    ping(lab);
    let after = received();
    assert!(
        after[0] == before[0] && after[1] > before[1],
        "{before:?} {after:?}"
    );
    lab.run("b", &["ethtool", "-X", "eth0", "default"]);
}

/// Frames of `a` that a NIC leaves out unless it is asked for them: to another station, to a group, of a VLAN. By the address that
/// they are sent to.
const FRAMES: [&str; 3] = ["10.0.0.99", "239.1.2.3", "10.5.0.2"];

/// What the guest `b` asks for.
pub(crate) struct Wishes<'a> {
    lab: &'a Lab<'a>,
}

impl<'a> Wishes<'a> {
    /// Prepares `a` to send all of the frames.
    pub(crate) fn prepare(lab: &'a Lab<'a>) -> Self {
        let mac = lab.node("b")["nics"][0]["mac"].clone();
        let script = format!(
            "ip neigh replace 10.0.0.99 lladdr 02:00:00:00:00:99 dev eth0
             ip route add 239.0.0.0/8 dev eth0
             ip link add link eth0 name vlan5 type vlan id 5
             ip addr add 10.5.0.1/24 dev vlan5
             ip link set vlan5 up
             ip neigh replace 10.5.0.2 lladdr {} dev vlan5",
            mac.as_str().unwrap_or_default()
        );
        lab.run("a", &["sh", "-ec", &script]);
        Self { lab }
    }

    /// Which of the frames come to the guest, whose own tcpdump asks for no more of them.
    fn come(&self) -> [bool; 3] {
        let capture = "tcpdump -Z root -p -n -l -i eth0 'icmp or vlan' </dev/null >/tmp/seen 2>/tmp/said &
                       echo $! >/tmp/tcpdump
                       until grep -q listening /tmp/said; do sleep 0.1; done";
        self.lab.run("b", &["sh", "-c", capture]);
        // A last frame, which comes in any case.
        let send = format!(
            "for to in {}; do ping -c 1 -W 1 $to & done; wait; until ping -c 1 -W 5 10.0.0.2; do :; done",
            FRAMES.join(" ")
        );
        self.lab.run("a", &["sh", "-c", &send]);
        let end = "until grep -q ' > 10.0.0.2: ICMP echo request' /tmp/seen; do sleep 0.1; done
                   kill $(cat /tmp/tcpdump)
                   while kill -0 $(cat /tmp/tcpdump) 2>/dev/null; do sleep 0.1; done
                   cat /tmp/seen";
        let seen = self.lab.run("b", &["sh", "-c", end]);
        FRAMES.map(|to| seen.contains(&format!(" > {to}: ICMP echo request")))
    }

    fn ask(&self, script: &str) {
        self.lab.run("b", &["sh", "-ec", script]);
    }

    /// The guest gets what it asks for, and the rest is counted.
    pub(crate) fn take_effect(&self) {
        let filtered = || {
            self.lab.port("b-0")["counters"]["drops"]["filtered"]
                .as_u64()
                .unwrap_or(0)
        };
        let before = filtered();
        assert_eq!(self.come(), [false; 3]);
        let after = filtered();
        assert!(after >= before + 3, "{before} {after}");
        self.ask("ip link set eth0 promisc on");
        assert!(self.come()[..2] == [true; 2]);
        self.ask(
            "ip link set eth0 promisc off
             ip link set eth0 allmulticast on
             ip link add link eth0 name vlan5 type vlan id 5",
        );
        assert_eq!(self.come(), [false, true, true]);
    }

    /// Under another switch it still does.
    pub(crate) fn hold(&self) {
        assert_eq!(self.come(), [false, true, true]);
    }
}
