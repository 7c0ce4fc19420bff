//! Frames a second through each peer, by frame size, direction, flows, ports and kind of ring.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::median::median;
use super::peer::{KINDS, Kind, Peer, neighbours};
use crate::pktgen::layout::{Layout, Ring};
use crate::pktgen::run::run;
use crate::pktgen::stream::{Sizes, Stream};

/// Frame sizes with their names, which count the frame check sequence as Ethernet does.
const SIZES: [(&str, Sizes); 8] = [
    ("64", Sizes::Fixed(60)),
    ("128", Sizes::Fixed(124)),
    ("256", Sizes::Fixed(252)),
    ("512", Sizes::Fixed(508)),
    ("1024", Sizes::Fixed(1020)),
    ("1518", Sizes::Fixed(1514)),
    ("IMIX", Sizes::Imix),
    ("64 KiB TSO", Sizes::Super),
];
/// Flows where they are many.
const MANY: u16 = 1000;

/// What is measured in one row.
#[derive(Debug, Clone)]
struct Case {
    name: String,
    sizes: Sizes,
    both: bool,
    flows: u16,
}

/// Cases that share a set-up.
#[derive(Debug)]
struct Group {
    ports: u16,
    ring: Ring,
    super_frames: bool,
    cases: Vec<Case>,
}

/// How it is measured.
#[derive(Debug, Clone)]
pub struct Effort {
    /// How often all peers take their turn.
    pub pairs: usize,
    /// How long each is measured.
    pub trial: Duration,
    /// Only rows whose names hold this text.
    pub rows: Option<String>,
    /// When no further row is begun.
    pub end: Option<Instant>,
}

impl Effort {
    fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }
}

/// Measures all rows and gives a Markdown table.
pub fn measure(effort: &Effort) -> String {
    let mut table =
        "| frames | `vswitch` | Open vSwitch | `testpmd` `io` | to Open vSwitch | to `testpmd` `io` |\n\
                     |---|---|---|---|---|---|\n"
            .to_owned();
    let mut left_out = 0;
    for group in groups(effort) {
        if effort.is_over() {
            left_out += group.cases.len();
            continue;
        }
        let layout = layout(&group);
        let mut peers: Vec<Peer> = KINDS
            .into_iter()
            .filter_map(|kind| match Peer::start(kind, group.ports, &layout) {
                Ok(peer) => Some(peer),
                Err(error) => {
                    eprintln!("{kind} left out: {error}");
                    None
                }
            })
            .collect();
        for case in &group.cases {
            if effort.is_over() {
                left_out += 1;
                continue;
            }
            let row = row(case, &mut peers, effort);
            eprint!("{row}");
            table += &row;
        }
    }
    if left_out > 0 {
        let _ = writeln!(table, "\nThe time was up: {left_out} rows are left out.");
    }
    table
}

fn layout(group: &Group) -> Layout {
    // Ordinary frames all fit the same buffers.
    let sizes = if group.super_frames {
        Sizes::Super
    } else {
        Sizes::Fixed(1514)
    };
    let mut layout = Layout::new(group.ring, sizes);
    if group.super_frames {
        layout.queue_size = 256;
    }
    layout
}

fn row(case: &Case, peers: &mut [Peer], effort: &Effort) -> String {
    let mut rates: Vec<Vec<(f64, f64)>> = vec![Vec::new(); peers.len()];
    for _ in 0..effort.pairs {
        for (peer, rates) in peers.iter_mut().zip(&mut rates) {
            let outcome = peer.measure(|ports| {
                let streams = streams(case, ports.len());
                run(ports, streams, effort.trial)
            });
            if let Ok(outcome) = &outcome {
                // Whether it was the generator that set the pace.
                eprintln!(
                    "{}: {:.3} M/s, generator waited in {:.0} % of its turns, {:.2} % lost",
                    peer.kind,
                    outcome.rate() / 1e6,
                    outcome.waited * 100.0,
                    outcome.loss() * 100.0
                );
            }
            rates.push(outcome.map_or((f64::NAN, f64::NAN), |outcome| (outcome.rate(), outcome.bits())));
        }
    }
    let of = |kind: Kind| {
        let at = peers.iter().position(|peer| peer.kind == kind)?;
        let complete = rates[at].iter().all(|rate| rate.0.is_finite());
        complete.then_some(&rates[at])
    };
    let mut row = format!("| {} ", case.name);
    for kind in KINDS {
        let cell = of(kind).map_or("–".to_owned(), |rates| cell(case, rates));
        let _ = write!(row, "| {cell} ");
    }
    for kind in &KINDS[1..] {
        let ratio = of(Kind::Vswitch).zip(of(*kind)).map(|(ours, theirs)| {
            let ratios: Vec<f64> = ours
                .iter()
                .zip(theirs)
                .map(|(our, their)| our.0 / their.0)
                .collect();
            format!("{:.2}", median(&ratios))
        });
        let _ = write!(row, "| {} ", ratio.unwrap_or_else(|| "–".to_owned()));
    }
    row + "|\n"
}

fn cell(case: &Case, rates: &[(f64, f64)]) -> String {
    if case.sizes == Sizes::Super {
        let bits: Vec<f64> = rates.iter().map(|rate| rate.1).collect();
        format!("{:.1} Gbit/s", median(&bits) / 1e9)
    } else {
        let frames: Vec<f64> = rates.iter().map(|rate| rate.0).collect();
        format!("{:.2} M/s", median(&frames) / 1e6)
    }
}

fn streams(case: &Case, ports: usize) -> Vec<Stream> {
    let stream = |stream| Stream {
        sizes: case.sizes.clone(),
        flows: case.flows,
        ..stream
    };
    neighbours(ports, case.both).into_iter().map(stream).collect()
}

fn groups(effort: &Effort) -> Vec<Group> {
    let mut groups = Vec::new();
    // What matters most first, for when there is not time for all.
    for ports in [2, 8] {
        for super_frames in [false, true] {
            for ring in [Ring::Split, Ring::Packed] {
                let mut cases = cases(ports, ring, super_frames);
                if let Some(text) = &effort.rows {
                    cases.retain(|case| case.name.contains(text));
                }
                if !cases.is_empty() {
                    groups.push(Group {
                        ports,
                        ring,
                        super_frames,
                        cases,
                    });
                }
            }
        }
    }
    groups
}

/// Every size with one flow between two ports on split rings; elsewhere the sizes at the ends and the mixture.
fn cases(ports: u16, ring: Ring, super_frames: bool) -> Vec<Case> {
    let plain = ports == 2 && ring == Ring::Split;
    let mut cases = Vec::new();
    for (size, sizes) in &SIZES {
        if (*sizes == Sizes::Super) != super_frames {
            continue;
        }
        for both in [false, true] {
            for flows in [1, MANY] {
                let everywhere = matches!(size, &("64" | "1518" | "IMIX" | "64 KiB TSO"));
                let wanted = if flows == 1 {
                    plain || everywhere
                } else {
                    everywhere && !super_frames
                };
                if wanted {
                    cases.push(Case {
                        name: name(size, both, flows, ports, ring),
                        sizes: sizes.clone(),
                        both,
                        flows,
                    });
                }
            }
        }
    }
    cases
}

fn name(size: &str, both: bool, flows: u16, ports: u16, ring: Ring) -> String {
    let ways = if both { "both ways" } else { "one way" };
    let ring = match ring {
        Ring::Split => "split",
        Ring::Packed => "packed",
    };
    let flows = if flows == 1 {
        "1 flow".to_owned()
    } else {
        format!("{flows} flows")
    };
    format!("{size}, {ways}, {flows}, {ports} ports, {ring}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(rows: Option<&str>) -> Vec<String> {
        let effort = Effort {
            pairs: 1,
            trial: Duration::ZERO,
            rows: rows.map(str::to_owned),
            end: None,
        };
        groups(&effort)
            .into_iter()
            .flat_map(|group| group.cases)
            .map(|case| case.name)
            .collect()
    }

    #[test]
    fn rows_are_chosen_by_a_part_of_their_name() {
        assert_eq!(
            names(Some("512, one way")),
            ["512, one way, 1 flow, 2 ports, split"]
        );
        assert!(names(None).len() > 50);
        assert!(names(Some("no such row")).is_empty());
    }
}
