//! How the cost of a frame grows with ports, addresses, queue pairs and memory regions.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use super::cpus;
use super::graph::{Graph, Line};
use super::median::median;
use super::peer::neighbours;
use super::work::Done;
use crate::pktgen::layout::{Layout, Ring};
use crate::pktgen::port::{Port, Reach};
use crate::pktgen::run::{run, teach};
use crate::pktgen::stream::{Addresses, Sizes, Stream};
use crate::switch::Switch;

const LIMIT: Duration = Duration::from_secs(10);
const PORTS: [u16; 6] = [2, 4, 8, 16, 32, 64];
const ADDRESSES: [u32; 6] = [1, 10, 100, 1000, 10_000, 100_000];
const UP_TO_EIGHT: [u16; 4] = [1, 2, 4, 8];
/// Frames a second at which addresses are taught.
const LESSON: f64 = 1e6;

/// Measures everything `pairs` times for `trial` each, writes a graph of each to `images`, and gives a Markdown table.
///
/// # Panics
/// When the switch or a file fails.
pub fn measure(pairs: usize, trial: Duration, images: &Path) -> String {
    let bench = Growth { pairs, trial };
    let graphs = [
        ("ports", bench.ports()),
        ("addresses", bench.addresses()),
        ("queue-pairs", bench.queue_pairs()),
        ("memory-regions", bench.regions()),
    ];
    let mut table = "| cost of a frame of 64 octets | nanoseconds |\n|---|---|\n".to_owned();
    for (name, graph) in graphs {
        let path = images.join(format!("growth-{name}.svg"));
        graph
            .write(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for line in &graph.lines {
            let points = line.points.iter().map(|(x, y)| format!("{x:.0}: {y:.0}"));
            let points = points.collect::<Vec<_>>().join(", ");
            let _ = writeln!(table, "| {}: {} | {points} |", graph.x, line.name);
        }
    }
    eprint!("{table}");
    table
}

struct Growth {
    pairs: usize,
    trial: Duration,
}

impl Growth {
    fn ports(&self) -> Graph {
        let mut all = Vec::new();
        let mut two = Vec::new();
        let switch = up(&[]);
        let mut layout = Layout::new(Ring::Split, Sizes::Fixed(60));
        layout.queue_size = 256;
        let mut ports = Vec::new();
        for count in PORTS {
            while ports.len() < usize::from(count) {
                ports.push(attach(&switch, ports.len(), &layout));
            }
            let streams = neighbours(ports.len(), true);
            all.push((f64::from(count), self.cost(&switch, &mut ports, &streams)));
            two.push((
                f64::from(count),
                self.cost(&switch, &mut ports, &neighbours(2, true)),
            ));
        }
        graph(
            "ports",
            vec![("all ports busy", all), ("two ports busy, the others idle", two)],
        )
    }

    fn addresses(&self) -> Graph {
        let switch = up(&["--fdb-size", "262144"]);
        let layout = Layout::new(Ring::Split, Sizes::Fixed(60));
        let mut ports = [0, 1].map(|index| attach(&switch, index, &layout));
        let points = ADDRESSES.map(|count| {
            // Both ways, each frame from the next address of its side to the next of the other.
            let sides = [0, 1 << 24];
            let streams: Vec<Stream> = (0_u16..2)
                .map(|from| {
                    let mut stream = Stream::between(from, from ^ 1, 60);
                    stream.addresses = Some(Addresses {
                        sources: Some(sides[usize::from(from)]),
                        destinations: Some(sides[usize::from(from ^ 1)]),
                        count,
                    });
                    stream
                })
                .collect();
            let lesson: Vec<Stream> = streams
                .iter()
                .map(|stream| {
                    let mut lesson = stream.clone().at(Some(LESSON));
                    lesson.limit = Some(u64::from(count));
                    lesson
                })
                .collect();
            cpus::on_generator(|| run(&mut ports, lesson, LIMIT)).expect("frames to learn from");
            (f64::from(count), self.cost(&switch, &mut ports, &streams))
        });
        graph(
            "addresses a side",
            vec![("each frame between the next two", points.to_vec())],
        )
    }

    fn queue_pairs(&self) -> Graph {
        let points = UP_TO_EIGHT.map(|count| {
            let switch = up(&[]);
            let mut layout = Layout::new(Ring::Split, Sizes::Fixed(60));
            (layout.pairs, layout.queue_size) = (count, 256);
            let mut ports = [0, 1].map(|index| attach(&switch, index, &layout));
            let streams: Vec<Stream> = (0..count).flat_map(|_| neighbours(2, true)).collect();
            (f64::from(count), self.cost(&switch, &mut ports, &streams))
        });
        graph(
            "queue pairs of each of two ports",
            vec![("all busy, both ways", points.to_vec())],
        )
    }

    fn regions(&self) -> Graph {
        let points = UP_TO_EIGHT.map(|count| {
            let switch = up(&[]);
            let mut layout = Layout::new(Ring::Split, Sizes::Fixed(60));
            layout.regions = count;
            let mut ports = [0, 1].map(|index| attach(&switch, index, &layout));
            (
                f64::from(count),
                self.cost(&switch, &mut ports, &neighbours(2, true)),
            )
        });
        graph(
            "memory regions of each of two ports",
            vec![("each buffer in the next region", points.to_vec())],
        )
    }

    /// Nanoseconds of its processor that a frame takes of the switch, with everything flat out.
    fn cost(&self, switch: &Switch, ports: &mut [Port], streams: &[Stream]) -> f64 {
        cpus::on_generator(|| teach(ports)).unwrap_or_else(|error| panic!("{error}"));
        let costs: Vec<f64> = (0..self.pairs)
            .map(|_| {
                let before = Done::by(switch);
                cpus::on_generator(|| run(ports, streams.to_vec(), self.trial))
                    .unwrap_or_else(|error| panic!("{error}"));
                let each = Done::by(switch).each_since(before);
                each.unwrap_or_else(|| panic!("no frame passed"))
            })
            .collect();
        median(&costs)
    }
}

fn up(args: &[&str]) -> Switch {
    let cpu = cpus::measured().to_string();
    Switch::up("bench", &[&["--cpus", &cpu], args].concat())
}

fn attach(switch: &Switch, index: usize, layout: &Layout) -> Port {
    let socket = switch.add_port(&format!("p{index}"), layout.pairs);
    Port::open(
        Reach::Connect(socket),
        layout.options(),
        layout.sizes.longest(),
        LIMIT,
    )
    .unwrap_or_else(|error| panic!("{error}"))
}

fn graph(x: &'static str, lines: Vec<(&str, Vec<(f64, f64)>)>) -> Graph {
    let line = |(name, points): (&str, _)| Line {
        name: name.to_owned(),
        points,
    };
    Graph {
        title: "Cost of a frame of 64 octets on one processor",
        x,
        y: "nanoseconds",
        lines: lines.into_iter().map(line).collect(),
    }
}
