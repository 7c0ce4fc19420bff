//! Frames a second through each peer, by frame size, direction, flows, ports and kind of ring.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::median::median;
use super::peer::{Kind, Peer, neighbours};
use crate::pktgen::layout::{Layout, Ring};
use crate::pktgen::outcome::Outcome;
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

/// The table's head. All ratios are above 1 where the first is faster.
fn head(kinds: &[Kind]) -> String {
    let names: Vec<String> = kinds.iter().map(ToString::to_string).collect();
    let ratios: Vec<String> = names.iter().skip(1).map(|name| format!("to {name}")).collect();
    let (first, work) = (["frames".to_owned()], ["work alone, ns a frame".to_owned()]);
    let cells = [&first, &names[..], &ratios, &work, &ratios].concat();
    format!("| {} |\n{}|\n", cells.join(" | "), "|---".repeat(cells.len()))
}

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
    /// What is compared, ours first.
    pub kinds: Vec<Kind>,
    /// When no further row is begun. As it comes nearer, all take fewer turns in each row, so that none need be left out.
    pub end: Option<Instant>,
}

impl Effort {
    fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }
}

/// How long what was done so far took, to tell how much more there is time for.
#[derive(Debug, Default)]
struct Pace {
    set_ups: u32,
    setting_up: Duration,
    turns: u32,
    turning: Duration,
}

impl Pace {
    /// How often all peers take their turn in each of `rows` rows that are left, with so many set-ups between them, where there are
    /// `left` to the end: as often as wanted, but not so often that rows at the end have to be left out.
    fn turns(&self, wanted: usize, left: Duration, rows: usize, set_ups: usize) -> usize {
        let each = |time: Duration, count: u32| time.as_secs_f64() / f64::from(count.max(1));
        let count = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let setting_up = each(self.setting_up, self.set_ups) * count(set_ups);
        let turning = each(self.turning, self.turns) * count(rows);
        let fits = |turns: &usize| setting_up + turning * count(*turns) <= left.as_secs_f64();
        (1..=wanted).rev().find(fits).unwrap_or(1)
    }
}

/// Measures all rows and gives a Markdown table.
pub fn measure(effort: &Effort) -> String {
    let mut table = head(&effort.kinds);
    let mut left_out = 0;
    let groups = groups(effort);
    let mut rows_left: usize = groups.iter().map(|group| group.cases.len()).sum();
    let mut pace = Pace::default();
    for (number, group) in groups.iter().enumerate() {
        if effort.is_over() {
            left_out += group.cases.len();
            continue;
        }
        let layout = layout(group);
        let start = Instant::now();
        let mut peers: Vec<Peer> = effort
            .kinds
            .iter()
            .filter_map(|kind| match Peer::start(kind.clone(), group.ports, &layout) {
                Ok(peer) => Some(peer),
                Err(error) => {
                    eprintln!("{kind} left out: {error}");
                    None
                }
            })
            .collect();
        pace.setting_up += start.elapsed();
        pace.set_ups += 1;
        for case in &group.cases {
            if effort.is_over() {
                left_out += 1;
                continue;
            }
            let turns = effort.end.map_or(effort.pairs, |end| {
                let left = end.saturating_duration_since(Instant::now());
                pace.turns(effort.pairs, left, rows_left, groups.len() - number - 1)
            });
            let start = Instant::now();
            let row = row(case, &effort.kinds, &mut peers, turns, effort.trial);
            pace.turning += start.elapsed();
            pace.turns += u32::try_from(turns).unwrap_or(u32::MAX);
            rows_left -= 1;
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

/// What one peer did in one turn.
#[derive(Debug, Clone, Copy)]
struct Turn {
    rate: f64,
    bits: f64,
    /// Nanoseconds of its processor that a frame took.
    each: f64,
}

fn row(case: &Case, kinds: &[Kind], peers: &mut [Peer], turns: usize, trial: Duration) -> String {
    let mut all: Vec<Vec<Turn>> = vec![Vec::new(); peers.len()];
    for _ in 0..turns {
        for (peer, all) in peers.iter_mut().zip(&mut all) {
            let (outcome, each) = peer.measure_work(|ports| {
                let streams = streams(case, ports.len());
                let outcome = run(ports, streams, trial);
                let received = outcome.as_ref().map_or(0, Outcome::received);
                (outcome, received)
            });
            let each = each.unwrap_or(f64::NAN);
            if let Ok(outcome) = &outcome {
                // Whether it was the generator that set the pace.
                eprintln!(
                    "{}: {:.3} M/s, {each:.1} ns a frame, generator waited {:.0} % of the time, {:.2} % lost",
                    peer.kind,
                    outcome.rate() / 1e6,
                    outcome.waited * 100.0,
                    outcome.loss() * 100.0
                );
            }
            let (rate, bits) =
                outcome.map_or((f64::NAN, f64::NAN), |outcome| (outcome.rate(), outcome.bits()));
            all.push(Turn { rate, bits, each });
        }
    }
    let of = |kind: &Kind| {
        let at = peers.iter().position(|peer| peer.kind == *kind)?;
        Some(&all[at])
    };
    let rate = |turn: &Turn| turn.rate;
    let each = |turn: &Turn| turn.each;
    let rates = kinds.iter().map(|kind| {
        of(kind)
            .and_then(|turns| cell(case, turns))
            .unwrap_or_else(nothing)
    });
    let costs = kinds.iter().map(|kind| {
        let cost = of(kind).and_then(|turns| middle(turns.iter().map(each)));
        cost.map_or_else(nothing, |cost| format!("{cost:.1}"))
    });
    let ratios = |figure: &dyn Fn(&Turn) -> f64, of_costs: bool| {
        let others = kinds.iter().skip(1).map(|kind| {
            let both = kinds.first().and_then(of).zip(of(kind));
            let ratio = both.and_then(|(ours, theirs)| {
                let pairs = ours.iter().zip(theirs);
                middle(pairs.map(|(our, their)| {
                    let ratio = figure(our) / figure(their);
                    if of_costs { ratio.recip() } else { ratio }
                }))
            });
            ratio.map_or_else(nothing, |ratio| format!("{ratio:.2}"))
        });
        others.collect::<Vec<_>>()
    };
    let cells = [
        vec![case.name.clone()],
        rates.collect(),
        ratios(&rate, false),
        vec![costs.collect::<Vec<_>>().join(" : ")],
        ratios(&each, true),
    ];
    format!("| {} |\n", cells.concat().join(" | "))
}

fn nothing() -> String {
    "–".to_owned()
}

/// The median; none if a turn failed.
fn middle(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    let complete = !values.is_empty() && values.iter().all(|value| value.is_finite());
    complete.then(|| median(&values))
}

fn cell(case: &Case, turns: &[Turn]) -> Option<String> {
    if case.sizes == Sizes::Super {
        let bits = middle(turns.iter().map(|turn| turn.bits))?;
        Some(format!("{:.1} Gbit/s", bits / 1e9))
    } else {
        let frames = middle(turns.iter().map(|turn| turn.rate))?;
        Some(format!("{:.2} M/s", frames / 1e6))
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
            kinds: Vec::new(),
            end: None,
        };
        groups(&effort)
            .into_iter()
            .flat_map(|group| group.cases)
            .map(|case| case.name)
            .collect()
    }

    #[test]
    fn fewer_turns_are_taken_so_that_all_rows_fit() {
        let seconds = Duration::from_secs;
        let pace = Pace {
            set_ups: 2,
            setting_up: seconds(20),
            turns: 10,
            turning: seconds(20),
        };
        assert_eq!(pace.turns(5, seconds(1000), 10, 3), 5);
        assert_eq!(pace.turns(5, seconds(30 + 2 * 10 * 3), 10, 3), 3);
        assert_eq!(pace.turns(5, seconds(1), 10, 3), 1);
        assert_eq!(Pace::default().turns(5, seconds(1), 50, 8), 5);
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
