//! Traffic between a lab's guests, and what of it the switch counted.

use netyard_tests::lab::Lab;
use serde_json::Value;

/// The first node reaches the second.
pub(crate) fn ping(lab: &Lab<'_>) {
    lab.run_until("a", &["ping", "-c", "2", "-W", "5", "10.0.0.2"]);
}

/// A TCP stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream<'a> {
    /// Runs iperf3's client.
    pub(crate) client: &'a str,
    /// Runs iperf3's server already.
    pub(crate) server: &'a str,
    /// The server's address.
    pub(crate) address: &'a str,
    /// Whether the server sends.
    pub(crate) reverse: bool,
    /// Bytes to send, as iperf3 reads them.
    pub(crate) amount: &'a str,
}

impl Stream<'_> {
    /// Runs it. Returns the bytes of a frame, on the average, that the switch took from its sender, and that it gave its receiver.
    /// Segments of a stream are what makes an average large.
    pub(crate) fn run(self, lab: &Lab<'_>) -> [u64; 2] {
        let (from, to) = if self.reverse {
            (self.server, self.client)
        } else {
            (self.client, self.server)
        };
        let counted = || {
            let ports = lab.switch()["ports"].clone();
            [(from, "rx_bytes", "rx_frames"), (to, "tx_bytes", "tx_frames")].map(|(node, bytes, frames)| {
                let counters = &port(&ports, &format!("{node}-0"))["counters"];
                [bytes, frames].map(|name| counters[name].as_u64().unwrap_or(0))
            })
        };
        let before = counted();
        let mut argv = vec!["iperf3", "-c", self.address, "-n", self.amount];
        argv.extend(self.reverse.then_some("-R"));
        lab.run(self.client, &argv);
        let after = counted();
        [0, 1].map(|end| (after[end][0] - before[end][0]) / (after[end][1] - before[end][1]).max(1))
    }
}

fn port<'v>(ports: &'v Value, name: &str) -> &'v Value {
    let mut all = ports.as_array().into_iter().flatten();
    all.find(|port| port["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {ports}"))
}
