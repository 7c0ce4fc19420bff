//! Ping and iperf3 between two guests: of our monitor on our switch, and of QEMU on taps with vhost-net and a Linux bridge.

use std::process::Command;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use topologies::agent::{Agent, Channels, Exec, Input};
use topologies::measure::{self, End, Ended, Report, Throughput};

use super::guest::{BootFiles, Guest, Monitor, Nic};
use super::median::median;
use crate::bin;
use crate::switch::Switch;

/// How long two guests may take to boot side by side.
const BOOT: Duration = Duration::from_mins(8);
/// How long an agent may take to answer.
const ANSWER: Duration = Duration::from_mins(1);

const ENDS: [(&str, &str, &str); 2] = [
    ("a", "02:00:00:00:00:0a", "10.77.0.1"),
    ("b", "02:00:00:00:00:0b", "10.77.0.2"),
];

/// Medians of what was measured on one network.
#[derive(Debug, Clone, Copy)]
pub struct Network {
    /// Mean round trip of a ping, in milliseconds.
    pub ping_ms: f64,
    /// Bits a second: TCP one way and the other, UDP one way and the other.
    pub bits: [f64; 4],
    /// UDP datagrams lost one way and the other, in percent.
    pub lost: [f64; 2],
}

/// Measures both networks, each `repeats` times with `seconds` for each iperf3 run.
///
/// # Panics
/// When a guest does not boot, or a program fails.
pub fn measure(repeats: usize, seconds: u32) -> [Network; 2] {
    let boot = BootFiles::copy();
    [ours(&boot, repeats, seconds), peer(&boot, repeats, seconds)]
}

fn ours(boot: &BootFiles, repeats: usize, seconds: u32) -> Network {
    let switch = Switch::up("bench", &[]);
    let guests = ENDS.map(|(name, mac, ip)| {
        let nic = Nic::VhostUser(switch.add_port(name, 1));
        Guest::start(Monitor::Vmm, boot, &nic, mac, &format!("{ip}/24"))
    });
    network("vmm and vswitch", &guests, repeats, seconds)
}

fn peer(boot: &BootFiles, repeats: usize, seconds: u32) -> Network {
    let namespace = Namespace::new();
    namespace.ip(&["link", "add", "br0", "type", "bridge"]);
    namespace.ip(&["link", "set", "br0", "up"]);
    let guests = ENDS.map(|(name, mac, ip)| {
        let tap = format!("tap-{name}");
        namespace.ip(&["tuntap", "add", "dev", &tap, "mode", "tap", "vnet_hdr"]);
        namespace.ip(&["link", "set", &tap, "master", "br0", "up"]);
        let nic = Nic::Tap {
            name: tap,
            namespace: namespace.0.clone(),
        };
        Guest::start(Monitor::Q35, boot, &nic, mac, &format!("{ip}/24"))
    });
    network("QEMU, tap, bridge and vhost-net", &guests, repeats, seconds)
}

fn network(what: &str, guests: &[Guest; 2], repeats: usize, seconds: u32) -> Network {
    for guest in guests {
        let time = guest
            .boot_time(BOOT)
            .unwrap_or_else(|| panic!("{what}: a guest did not become ready"));
        eprintln!("{what}: a guest is ready after {:.1} s", time.as_secs_f64());
    }
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut exec = |node: &str, command: &[&str]| {
        let index = usize::from(node != ENDS[0].0);
        run(&runtime, guests[index].channels(), command)
    };
    let end = |index: usize| End {
        node: ENDS[index].0,
        address: ENDS[index].2,
    };
    let reports: Vec<Report> = (0..repeats)
        .map(|_| {
            let report = measure::measure(&mut exec, end(0), end(1), seconds)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            eprintln!("{what}:\n{}", report.table());
            report
        })
        .collect();
    summary(&reports)
}

fn run(runtime: &Runtime, channels: &Channels, command: &[&str]) -> Result<Ended, String> {
    let exec = Exec {
        argv: command.iter().map(|&word| word.to_owned()).collect(),
        ..Exec::default()
    };
    let output = runtime
        .block_on(async {
            let mut agent = Agent::connect(channels, ANSWER).await?;
            agent.output(&exec, Input::Empty).await
        })
        .map_err(|error| error.to_string())?;
    Ok(Ended {
        code: output.code,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn summary(reports: &[Report]) -> Network {
    let of = |value: &dyn Fn(&Report) -> f64| median(&reports.iter().map(value).collect::<Vec<_>>());
    let bits = |end: fn(&Report) -> &Throughput| of(&|report| end(report).bits_per_second);
    let lost = |end: fn(&Report) -> &Throughput| of(&|report| end(report).lost_percent.unwrap_or(0.0));
    Network {
        ping_ms: of(&|report| report.ping.avg_ms),
        bits: [
            bits(|report| &report.tcp),
            bits(|report| &report.tcp_reverse),
            bits(|report| &report.udp),
            bits(|report| &report.udp_reverse),
        ],
        lost: [lost(|report| &report.udp), lost(|report| &report.udp_reverse)],
    }
}

/// Both networks as a Markdown table.
pub fn table([ours, peer]: &[Network; 2]) -> String {
    let mut lines = vec![
        "| between two guests | `vmm`, `vswitch` | QEMU, bridge, vhost-net | ratio |\n|---|---|---|---|\n"
            .to_owned(),
    ];
    lines.push(format!(
        "| ping, mean round trip | {:.2} ms | {:.2} ms | {:.2} |\n",
        ours.ping_ms,
        peer.ping_ms,
        ours.ping_ms / peer.ping_ms
    ));
    for (index, what) in ["TCP, a to b", "TCP, b to a", "UDP, a to b", "UDP, b to a"]
        .into_iter()
        .enumerate()
    {
        let cell = |network: &Network| {
            let rate = format!("{:.1} Mbit/s", network.bits[index] / 1e6);
            match index.checked_sub(2) {
                Some(way) => format!("{rate}, {:.1} % lost", network.lost[way]),
                None => rate,
            }
        };
        lines.push(format!(
            "| {what} | {} | {} | {:.2} |\n",
            cell(ours),
            cell(peer),
            ours.bits[index] / peer.bits[index]
        ));
    }
    lines.concat()
}

/// A network namespace of this measurement's own; everything in it goes with it.
#[derive(Debug)]
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        let name = format!("ny-bench-{}", std::process::id());
        bin::succeed(Command::new("ip").args(["netns", "add", &name]));
        Self(name)
    }

    fn ip(&self, arguments: &[&str]) {
        bin::succeed(Command::new("ip").args(["-n", &self.0]).args(arguments));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // If this fails, an empty namespace stays; there is nothing better to do about it.
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_how_we_compare() {
        let network = |ping_ms, mbit: f64| Network {
            ping_ms,
            bits: [mbit * 1e6; 4],
            lost: [1.0, 2.0],
        };
        let text = table(&[network(3.0, 20.0), network(6.0, 10.0)]);
        let lines: Vec<_> = text.lines().skip(2).collect();
        assert_eq!(lines[0], "| ping, mean round trip | 3.00 ms | 6.00 ms | 0.50 |");
        assert_eq!(lines[1], "| TCP, a to b | 20.0 Mbit/s | 10.0 Mbit/s | 2.00 |");
        assert_eq!(
            lines[4],
            "| UDP, b to a | 20.0 Mbit/s, 2.0 % lost | 10.0 Mbit/s, 2.0 % lost | 2.00 |"
        );
    }
}
