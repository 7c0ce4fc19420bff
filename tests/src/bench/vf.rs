//! Ping and iperf3 between two guests, through virtual functions of one NIC and through the switch, on one boot of one lab.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use topologies::measure::{self, End, Ended};

use super::median::median;
use crate::lab::{Lab, Place, Yard};
use crate::markdown;

/// The lab whose machines are on both networks, what these are called, and the machines' addresses on each.
const LAB: &str = "topologies/labs/sriov.lab.yaml";
const NETWORKS: [(&str, [&str; 2]); 2] = [
    ("VF", ["10.1.0.1", "10.1.0.2"]),
    ("switch NIC", ["10.0.0.1", "10.0.0.2"]),
];
/// What one round measures of one network.
const WHAT: [(&str, &str); 3] = [
    ("ping, mean round trip", "ms"),
    ("TCP, a to b", "Mbit/s"),
    ("TCP, b to a", "Mbit/s"),
];
/// What a command may take beyond the time that it is told to take.
const SLACK: Duration = Duration::from_secs(40);

/// How much is measured, and how long everything may take together.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Rounds, each of both networks.
    pub repeats: usize,
    /// Seconds of one iperf3 run.
    pub seconds: u32,
    /// Limit for all of it, the boot included.
    pub limit: Duration,
}

/// The rounds that came to their end, each with the figures of [`WHAT`] for both networks.
#[derive(Debug, Clone, Default)]
pub struct Rounds {
    figures: Vec<[[f64; 3]; 2]>,
    wanted: usize,
}

/// Measures the virtual functions and the switch in turn, and stops early when the time is over.
///
/// # Panics
/// When the lab does not come up.
pub fn measure(effort: Effort) -> Rounds {
    let end = Instant::now() + effort.limit;
    let yard = Yard::new(Place::Emulated);
    let mut up = yard.command();
    up.args(["up", "--host", "emulated", "--engine", "vmm", "--timeout"])
        .arg(effort.limit.as_secs().to_string())
        .arg(markdown::repository().join(LAB));
    let started = bounded(&mut up, effort.limit);
    let lab = yard.adopt("sriov");
    match started {
        Ok(ended) if ended.code == 0 => {}
        Ok(ended) => panic!("the lab does not come up: {}", ended.stderr),
        Err(why) => panic!("the lab does not come up: {why}"),
    }
    eprintln!("the lab is up with {} s left", left(end).as_secs());
    let mut rounds = Rounds {
        figures: Vec::new(),
        wanted: effort.repeats,
    };
    for round in 0..effort.repeats {
        let mut figures = [[0.0; 3]; 2];
        // Whoever is first in one round is last in the next.
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        let measured = order.into_iter().try_for_each(|index| {
            let (name, addresses) = NETWORKS[index];
            figures[index] =
                one(&lab, addresses, effort.seconds, end).map_err(|why| format!("{name}: {why}"))?;
            eprintln!("round {round}, {name}: {:?}", figures[index]);
            Ok::<(), String>(())
        });
        match measured {
            Ok(()) => rounds.figures.push(figures),
            Err(why) => eprintln!("round {round} does not count: {why}"),
        }
        if left(end).is_zero() {
            eprintln!("the time is over");
            break;
        }
    }
    rounds
}

fn left(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now())
}

fn one(lab: &Lab<'_>, [from, to]: [&str; 2], seconds: u32, end: Instant) -> Result<[f64; 3], String> {
    let longest = Duration::from_secs(seconds.into()) + SLACK;
    let mut exec =
        |node: &str, command: &[&str]| bounded(&mut lab.exec(node, command), longest.min(left(end)));
    let (from, to) = (
        End {
            node: "a",
            address: from,
        },
        End {
            node: "b",
            address: to,
        },
    );
    let ping = measure::round_trip(&mut exec, from, to).map_err(|error| error.to_string())?;
    let tcp = measure::tcp(&mut exec, from, to, seconds).map_err(|error| error.to_string())?;
    let [there, back] = tcp.map(|way| way.bits_per_second / 1e6);
    Ok([ping.avg_ms, there, back])
}

/// Runs a command for at most `limit`.
fn bounded(command: &mut Command, limit: Duration) -> Result<Ended, String> {
    let refused = |error: std::io::Error| error.to_string();
    let mut output = [
        tempfile::tempfile().map_err(refused)?,
        tempfile::tempfile().map_err(refused)?,
    ];
    let [stdout, stderr] = [output[0].try_clone(), output[1].try_clone()];
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.map_err(refused)?)
        .stderr(stderr.map_err(refused)?)
        .spawn()
        .map_err(refused)?;
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(refused)? {
            break status;
        }
        if left(end).is_zero() {
            // It may have ended at this moment; it is waited for all the same.
            let _ = child.kill();
            child.wait().map_err(refused)?;
            return Err(format!("it took longer than {} s", limit.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let [stdout, stderr] = &mut output;
    Ok(Ended {
        code: status.code().unwrap_or(-1),
        stdout: text(stdout).map_err(refused)?,
        stderr: text(stderr).map_err(refused)?,
    })
}

fn text(file: &mut File) -> std::io::Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Rounds {
    /// Whether there is anything to show.
    pub fn is_empty(&self) -> bool {
        self.figures.is_empty()
    }

    fn of(&self, network: usize, what: usize) -> Vec<f64> {
        self.figures.iter().map(|round| round[network][what]).collect()
    }

    /// Medians and ranges as a Markdown table.
    pub fn table(&self) -> String {
        let mut lines = vec![format!(
            "| between two guests, medians of {} rounds (and extremes) | {} | {} | ratio |\n|---|---|---|---|\n",
            self.figures.len(),
            NETWORKS[0].0,
            NETWORKS[1].0
        )];
        for (index, (what, unit)) in WHAT.into_iter().enumerate() {
            let [one, other] = [self.of(0, index), self.of(1, index)];
            let cell = |values: &[f64]| {
                let least = values.iter().copied().fold(f64::INFINITY, f64::min);
                let most = values.iter().copied().fold(0.0, f64::max);
                format!("{:.1} {unit} ({least:.1} to {most:.1})", median(values))
            };
            lines.push(format!(
                "| {what} | {} | {} | {:.2} |\n",
                cell(&one),
                cell(&other),
                median(&one) / median(&other)
            ));
        }
        lines.concat()
    }

    /// Every round, and the medians' ratios, for programs.
    pub fn json(&self) -> Value {
        let rows = WHAT.into_iter().enumerate().map(|(index, (what, unit))| {
            let [one, other] = [self.of(0, index), self.of(1, index)];
            json!({"what": what, "unit": unit, "ratio": median(&one) / median(&other), "vf": one, "switch": other})
        });
        json!({"rounds": self.figures.len(), "wanted": self.wanted, "rows": rows.collect::<Vec<_>>()})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_and_json_show_medians_and_their_ratio() {
        let round = |ping| [[ping, 4.0, 6.0], [2.0 * ping, 8.0, 3.0]];
        let rounds = Rounds {
            figures: vec![round(5.0), round(7.0), round(6.0)],
            wanted: 4,
        };
        let table = rounds.table();
        let lines: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            lines[0],
            "| ping, mean round trip | 6.0 ms (5.0 to 7.0) | 12.0 ms (10.0 to 14.0) | 0.50 |"
        );
        assert!(lines[2].ends_with("| 2.00 |"), "{table}");
        let json = rounds.json();
        assert_eq!((&json["rounds"], &json["wanted"]), (&json!(3), &json!(4)));
        assert_eq!(json["rows"][1]["ratio"], 0.5);
        assert!(Rounds::default().is_empty());
    }

    #[test]
    fn a_command_that_hangs_is_ended() {
        let mut hangs = Command::new("sleep");
        let why = bounded(hangs.arg("600"), Duration::from_millis(10)).unwrap_err();
        assert!(why.contains("longer"), "{why}");
        let said = bounded(Command::new("echo").arg("x"), Duration::from_mins(10)).expect("it ends");
        assert_eq!((said.code, said.stdout.as_str()), (0, "x\n"));
    }
}
