//! What a network between two nodes does: ping, and iperf3 over TCP and UDP, in both directions.

mod iperf;
mod ping;

use std::time::{Duration, Instant};

use comfy_table::{Table, presets};
use serde::Serialize;

pub use iperf::Throughput;
pub use ping::RoundTrip;

/// The port that the servers listen on, away from the one of a person's own `iperf3 -s`.
const PORT: &str = "5299";
const PID_FILE: &str = "/tmp/netyard-iperf3.pid";
/// How long a server gets from its start until it accepts a connection.
const SERVER_START: Duration = Duration::from_secs(20);
/// How often a run is tried that ends without a result.
const ATTEMPTS: u32 = 3;

/// A command's end in a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ended {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// How a command is run in a node; the error is one line.
pub type Exec<'a> = dyn FnMut(&str, &[&str]) -> Result<Ended, String> + 'a;

/// One end of what is measured.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// The node.
    pub node: &'a str,
    /// Its address on the network that is measured, without a prefix length.
    pub address: &'a str,
}

/// What is not measured and why.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The command could not be run in the node.
    #[error("{node}: {command} could not be run: {reason}")]
    Exec {
        /// The node.
        node: String,
        /// The command.
        command: String,
        /// Why, in one line.
        reason: String,
    },
    /// The command failed.
    #[error("{node}: {command} ended with {code}: {text}")]
    Failed {
        /// The node.
        node: String,
        /// The command.
        command: String,
        /// Its exit code.
        code: i32,
        /// The last line that it printed.
        text: String,
    },
    /// The command printed something else than expected.
    #[error("{node}: {command} printed no result that can be read")]
    Unreadable {
        /// The node.
        node: String,
        /// The command.
        command: String,
    },
}

/// Everything that was measured between two nodes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// One node.
    pub from: String,
    /// The other.
    pub to: String,
    /// Ping from the first to the second.
    pub ping: RoundTrip,
    /// TCP from the first to the second.
    pub tcp: Throughput,
    /// TCP the other way.
    pub tcp_reverse: Throughput,
    /// UDP from the first to the second, as fast as it sends.
    pub udp: Throughput,
    /// UDP the other way.
    pub udp_reverse: Throughput,
}

impl Report {
    /// The report as a table for people.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header([
            "TEST".to_owned(),
            format!("{} → {}", self.from, self.to),
            format!("{} → {}", self.to, self.from),
        ]);
        let ping = &self.ping;
        table.add_row([
            "ping, min/avg/max".to_owned(),
            format!("{:.2} / {:.2} / {:.2} ms", ping.min_ms, ping.avg_ms, ping.max_ms),
            format!("{} of {} answered", ping.received, ping.sent),
        ]);
        table.add_row([
            "TCP, iperf3".to_owned(),
            self.tcp.to_string(),
            self.tcp_reverse.to_string(),
        ]);
        table.add_row([
            "UDP, iperf3".to_owned(),
            self.udp.to_string(),
            self.udp_reverse.to_string(),
        ]);
        table.to_string()
    }
}

/// What iperf3 does in one run, by its arguments: TCP, TCP the other way, UDP as fast as it sends, and that the other way.
const RUNS: [&[&str]; 4] = [&[], &["-R"], &["-u", "-b", "0"], &["-u", "-b", "0", "-R"]];

/// Measures the network between two nodes, each iperf3 run for `seconds`.
pub fn measure(
    exec: &mut Exec<'_>,
    from: End<'_>,
    to: End<'_>,
    seconds: u32,
) -> Result<Report, MeasureError> {
    let ping = round_trip(exec, from, to)?;
    let [tcp, tcp_reverse, udp, udp_reverse] = throughputs(exec, from, to, seconds, &RUNS)?;
    Ok(Report {
        from: from.node.to_owned(),
        to: to.node.to_owned(),
        ping,
        tcp,
        tcp_reverse,
        udp,
        udp_reverse,
    })
}

/// Pings one node from another.
pub fn round_trip(exec: &mut Exec<'_>, from: End<'_>, to: End<'_>) -> Result<RoundTrip, MeasureError> {
    let command = ["ping", "-c", "5", "-W", "5", to.address];
    let printed = succeed(exec, from.node, &command)?;
    ping::parse(&printed).ok_or_else(|| unreadable(from.node, &command))
}

/// TCP from one node to the other, and the other way.
pub fn tcp(
    exec: &mut Exec<'_>,
    from: End<'_>,
    to: End<'_>,
    seconds: u32,
) -> Result<[Throughput; 2], MeasureError> {
    throughputs(exec, from, to, seconds, &[RUNS[0], RUNS[1]])
}

/// Runs iperf3 once for each list of further arguments, with a server of its own.
fn throughputs<const N: usize>(
    exec: &mut Exec<'_>,
    from: End<'_>,
    to: End<'_>,
    seconds: u32,
    runs: &[&[&str]; N],
) -> Result<[Throughput; N], MeasureError> {
    succeed(exec, to.node, &["iperf3", "-s", "-D", "-p", PORT, "-I", PID_FILE])?;
    let mut runs = runs.iter();
    let measured: Result<Vec<Throughput>, _> = runs.try_fold(Vec::new(), |mut all, extra| {
        all.push(throughput(exec, from, to, seconds, extra)?);
        Ok(all)
    });
    // The server goes whether or not the measurement came to its end.
    let stopped = succeed(
        exec,
        to.node,
        &["sh", "-c", &format!("kill $(tr -d '\\0' < {PID_FILE})")],
    );
    let all = measured?;
    stopped?;
    all.try_into().map_err(|_| unreadable(from.node, &["iperf3"]))
}

fn throughput(
    exec: &mut Exec<'_>,
    from: End<'_>,
    to: End<'_>,
    seconds: u32,
    extra: &[&str],
) -> Result<Throughput, MeasureError> {
    let seconds = seconds.to_string();
    let base = ["iperf3", "-c", to.address, "-p", PORT, "-J", "-t", &seconds];
    let command = [&base, extra].concat();
    let end = Instant::now() + SERVER_START;
    let mut attempts = 0;
    loop {
        let ended = run_in(exec, from.node, &command)?;
        // The server detaches before it listens.
        let too_early = ended.stdout.contains("Connection refused") && Instant::now() < end;
        if too_early {
            std::thread::sleep(Duration::from_millis(200));
            continue;
        }
        // A flood of datagrams can drown the connection on which the two ends exchange their results.
        attempts += 1;
        match ok(from.node, &command, ended).map(|printed| iperf::parse(&printed)) {
            Ok(Some(throughput)) => return Ok(throughput),
            _ if attempts < ATTEMPTS => {}
            Ok(None) => return Err(unreadable(from.node, &command)),
            Err(error) => return Err(error),
        }
    }
}

fn run_in(exec: &mut Exec<'_>, node: &str, command: &[&str]) -> Result<Ended, MeasureError> {
    exec(node, command).map_err(|reason| MeasureError::Exec {
        node: node.to_owned(),
        command: command.join(" "),
        reason,
    })
}

fn succeed(exec: &mut Exec<'_>, node: &str, command: &[&str]) -> Result<String, MeasureError> {
    let ended = run_in(exec, node, command)?;
    ok(node, command, ended)
}

fn ok(node: &str, command: &[&str], ended: Ended) -> Result<String, MeasureError> {
    if ended.code == 0 {
        return Ok(ended.stdout);
    }
    let text = iperf::error(&ended.stdout).unwrap_or_else(|| {
        let printed = if ended.stderr.trim().is_empty() {
            &ended.stdout
        } else {
            &ended.stderr
        };
        printed
            .trim()
            .lines()
            .last()
            .unwrap_or("it printed nothing")
            .to_owned()
    });
    Err(MeasureError::Failed {
        node: node.to_owned(),
        command: command.join(" "),
        code: ended.code,
        text,
    })
}

fn unreadable(node: &str, command: &[&str]) -> MeasureError {
    MeasureError::Unreadable {
        node: node.to_owned(),
        command: command.join(" "),
    }
}

#[cfg(test)]
mod tests;
