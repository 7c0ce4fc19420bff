//! How long a frame takes: loaded, and after a rest.

use std::fmt::Write as _;
use std::time::Duration;

use super::median::median;
use super::peer::{Peer, neighbours};
use super::throughput::Effort;
use super::{cpus, wakeup};
use crate::pktgen::layout::{Layout, Ring};
use crate::pktgen::outcome::{Outcome, as_f64};
use crate::pktgen::port::{Port, PortError};
use crate::pktgen::run::run;
use crate::pktgen::stream::Sizes;

/// Parts of the maximum rate, in percent.
const LOADS: [f64; 3] = [10.0, 50.0, 90.0];
/// Frames a second that let a switch fall asleep between them.
const SPARSE: f64 = 200.0;
/// How long single frames are sent.
const REST: Duration = Duration::from_secs(2);

/// Wake-ups of a thread that does nothing else, with such a pause before each: as many as there are single frames.
const WAKE_UPS: u64 = 400;
const PAUSE: Duration = Duration::from_millis(5);

/// p50, p99 and p99.9 in microseconds.
type Quantiles = [f64; 3];

/// Measures all peers and gives a Markdown table: frames of 64 octets, one way, one flow, two ports, split rings.
pub fn measure(effort: &Effort) -> String {
    let layout = Layout::new(Ring::Split, Sizes::Fixed(1514));
    let mut peers: Vec<Peer> = effort
        .kinds
        .iter()
        .filter_map(|kind| {
            Peer::start(kind.clone(), 2, &layout)
                .map_err(|error| eprintln!("{kind} left out: {error}"))
                .ok()
        })
        .collect();
    let mut all: Vec<Vec<Vec<Quantiles>>> = vec![Vec::new(); peers.len()];
    let mut floor = Vec::new();
    for _ in 0..effort.pairs {
        // All peers are stopped, so that the processor is free for it.
        match cpus::on_generator(|| wakeup::measure(WAKE_UPS, PAUSE)) {
            Ok(times) if !times.is_empty() => floor.push(quantiles(times)),
            Ok(_) => eprintln!("bare eventfd: nobody woke up"),
            Err(error) => eprintln!("bare eventfd: {error}"),
        }
        for (peer, rounds) in peers.iter_mut().zip(&mut all) {
            match peer.measure(|ports| round(ports, effort.trial)) {
                Ok(round) => rounds.push(round),
                Err(error) => eprintln!("{}: {error}", peer.kind),
            }
        }
    }
    let mut table = "| switch | load | p50 | p99 | p99.9 |\n|---|---|---|---|---|\n".to_owned();
    for (peer, rounds) in peers.iter().zip(&all) {
        if rounds.is_empty() {
            continue;
        }
        let loads = LOADS.map(|load| format!("{load:.0} %"));
        let loads = loads.iter().map(String::as_str).chain(["idle to first frame"]);
        for (at, load) in loads.enumerate() {
            let of = |quantile: usize| {
                let values: Vec<f64> = rounds.iter().map(|round| round[at][quantile]).collect();
                format!("{:.1} µs", median(&values))
            };
            let _ = writeln!(
                table,
                "| {} | {load} | {} | {} | {} |",
                peer.kind,
                of(0),
                of(1),
                of(2)
            );
        }
    }
    if !floor.is_empty() {
        let of = |quantile: usize| {
            let values: Vec<f64> = floor.iter().map(|round: &Quantiles| round[quantile]).collect();
            format!("{:.1} µs", median(&values))
        };
        let _ = writeln!(
            table,
            "| bare `eventfd` | wake-up alone | {} | {} | {} |",
            of(0),
            of(1),
            of(2)
        );
    }
    eprint!("{table}");
    table
}

/// One peer's turn: its maximum, the loads, and single frames.
fn round(ports: &mut [Port], trial: Duration) -> Result<Vec<Quantiles>, PortError> {
    let streams = |rate| {
        let streams = neighbours(2, false);
        streams.into_iter().map(|stream| stream.at(rate)).collect()
    };
    let maximum = run(ports, streams(None), trial)?.rate();
    let mut quantiles = Vec::new();
    for load in LOADS {
        let outcome = run(ports, streams(Some(maximum * load / 100.0)), trial * 2)?;
        quantiles.push(of(&outcome));
    }
    quantiles.push(of(&run(ports, streams(Some(SPARSE)), REST)?));
    Ok(quantiles)
}

fn quantiles(mut times: Vec<f64>) -> Quantiles {
    times.sort_by(f64::total_cmp);
    [500, 990, 999].map(|thousandths| times[(times.len() * thousandths / 1000).min(times.len() - 1)])
}

fn of(outcome: &Outcome) -> Quantiles {
    let latency = outcome.latency();
    [0.5, 0.99, 0.999].map(|quantile| as_f64(latency.value_at_quantile(quantile)) / 1e3)
}
