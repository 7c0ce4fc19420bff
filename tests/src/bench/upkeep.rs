//! What a switch costs besides forwarding: idle processor time, memory, attaching a port, a restart; and how near large frames come to
//! a plain copy.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::median::median;
use super::peer::{Kind, Peer, neighbours};
use super::throughput::Effort;
use super::{cpus, process};
use crate::bin;
use crate::pktgen::layout::{Layout, Ring};
use crate::pktgen::outcome::as_f64;
use crate::pktgen::port::{Port, PortError, Reach};
use crate::pktgen::run::{Plan, run, teach};
use crate::pktgen::stream::{Addresses, Sizes, Stream};
use crate::switch::Switch;

const LIMIT: Duration = Duration::from_secs(10);
/// How long an idle switch is watched.
const WATCH: Duration = Duration::from_secs(10);
const PORTS: u16 = 64;
const ADDRESSES: u32 = 100_000;
/// Frames a second while the switch is restarted.
const STEADY: f64 = 200_000.0;

/// Measures all of it and gives a Markdown table.
///
/// # Panics
/// When the switch fails.
pub fn measure(effort: &Effort) -> String {
    let mut table = "| | |\n|---|---|\n".to_owned();
    for part in [idle, addresses, restarts, large_frames] {
        let rows = part(effort);
        eprint!("{rows}");
        table += &rows;
    }
    table
}

fn up(args: &[&str]) -> Switch {
    let cpu = cpus::measured().to_string();
    Switch::up("bench", &[&["--cpus", &cpu], args].concat())
}

fn open(socket: std::path::PathBuf) -> Port {
    let mut layout = Layout::new(Ring::Split, Sizes::Fixed(60));
    layout.queue_size = 256;
    Port::open(Reach::Connect(socket), layout.options(), 60, LIMIT).unwrap_or_else(|error| panic!("{error}"))
}

/// Attaching ports one after another, their memory, and what they cost when nothing happens.
fn idle(_: &Effort) -> String {
    let switch = up(&[]);
    let pid = process::daemon(&switch);
    let mut ports = Vec::new();
    let (mut added, mut connected) = (Vec::new(), Vec::new());
    let mut before = 0;
    for index in 0..PORTS {
        let start = Instant::now();
        let socket = switch.add_port(&format!("p{index}"), 1);
        added.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        ports.push(open(socket));
        connected.push(start.elapsed().as_secs_f64() * 1e3);
        if index == 0 {
            before = process::own_memory_kib(pid);
        }
    }
    cpus::on_generator(|| teach(&mut ports)).unwrap_or_else(|error| panic!("{error}"));
    let per_port = as_f64(process::own_memory_kib(pid).saturating_sub(before)) / f64::from(PORTS - 1);
    // What follows the last frame is not idleness.
    std::thread::sleep(Duration::from_secs(1));
    let busy = process::processor_time(pid);
    std::thread::sleep(WATCH);
    let busy = process::processor_time(pid).saturating_sub(busy);
    let mut rows = String::new();
    let _ = writeln!(
        rows,
        "| processor time of an idle switch with {PORTS} ports attached | {:.4} % of one |",
        busy.as_secs_f64() / WATCH.as_secs_f64() * 100.0
    );
    let _ = writeln!(rows, "| memory of a port | {per_port:.0} KiB |");
    let _ = writeln!(
        rows,
        "| `vswitch port add`, from start to end of the command | {:.1} ms |",
        median(&added)
    );
    let _ = writeln!(
        rows,
        "| attaching to a port, from connecting until its rings run | {:.1} ms |",
        median(&connected)
    );
    rows
}

/// Memory of learned addresses.
fn addresses(_: &Effort) -> String {
    let [small, size] = [1024, 2 * ADDRESSES];
    let started = |size: u32| {
        let switch = up(&["--fdb-size", &size.to_string()]);
        let ports = [0, 1].map(|index| open(switch.add_port(&format!("p{index}"), 1)));
        (switch, ports)
    };
    let (switch, _ports) = started(small);
    let before = process::own_memory_kib(process::daemon(&switch));
    drop(switch);
    let (switch, mut ports) = started(size);
    let mut lesson = Stream::between(0, 1, 60).at(Some(STEADY));
    lesson.addresses = Some(Addresses {
        sources: Some(0),
        destinations: None,
        count: ADDRESSES,
    });
    lesson.limit = Some(u64::from(ADDRESSES));
    cpus::on_generator(|| {
        teach(&mut ports)?;
        run(&mut ports, vec![lesson], LIMIT)
    })
    .unwrap_or_else(|error| panic!("{error}"));
    let learned = switch.show()["fdb"]["entries"].as_u64().unwrap_or(0);
    let memory = process::own_memory_kib(process::daemon(&switch));
    let grown = as_f64(memory.saturating_sub(before));
    format!(
        "| memory of a table for 1000 addresses, from one for {size} with {learned} learned | {:.1} KiB |\n",
        grown / f64::from(size - small) * 1000.0
    )
}

/// The longest time without a frame when the switch is restarted and when it is killed and started again.
fn restarts(effort: &Effort) -> String {
    let vswitch = bin::path("vswitch").display().to_string();
    let mut rows = String::new();
    let planned = bin::finish(std::process::Command::new(&vswitch).args(["help", "restart"]));
    let ways = [
        ("`vswitch restart`", false),
        ("`kill -9`, then `vswitch up`", true),
    ];
    for (what, killed) in ways
        .into_iter()
        .filter(|(_, killed)| *killed || planned.status.success())
    {
        let silences: Vec<f64> = (0..effort.pairs)
            .map(|_| {
                let switch = up(&[]);
                let mut ports = [0, 1].map(|index| open(switch.add_port(&format!("p{index}"), 1)));
                let pid = process::daemon(&switch).as_raw_nonzero();
                let again = format!("{vswitch} up bench --cpus {}", cpus::measured());
                let command = if killed {
                    format!("kill -9 {pid}; {again}")
                } else {
                    format!("{vswitch} restart bench")
                };
                let silence = silence(&mut ports, &switch, &command);
                silence.unwrap_or_else(|error| panic!("{error}")) * 1e3
            })
            .collect();
        let _ = writeln!(rows, "| no frame at {what} | {:.1} ms |", median(&silences));
    }
    rows
}

fn silence(ports: &mut [Port], switch: &Switch, command: &str) -> Result<f64, PortError> {
    cpus::on_generator(|| teach(ports))?;
    let streams = neighbours(2, false);
    let streams = streams.into_iter().map(|stream| stream.at(Some(STEADY)));
    let mut plan = Plan::new(streams.collect(), LIMIT);
    plan.revive = true;
    let mut child = None;
    let mut back = None;
    let outcome = cpus::on_generator(|| {
        plan.run_with(ports, &mut |elapsed, up| {
            if elapsed < Duration::from_millis(300) {
                return false;
            }
            let running = child.get_or_insert_with(|| {
                std::process::Command::new("sh")
                    .args(["-c", command])
                    .env("NETYARD_RUN_DIR", switch.run_dir())
                    .stdout(std::process::Stdio::null())
                    .spawn()
                    .unwrap_or_else(|error| panic!("{command}: {error}"))
            });
            if back.is_none() && up && matches!(running.try_wait(), Ok(Some(_))) {
                back = Some(elapsed);
            }
            back.is_some_and(|back| elapsed > back + Duration::from_millis(300))
        })
    })?;
    Ok(outcome.streams[0].longest_silence.as_secs_f64())
}

/// Super-frames through the switch against `memcpy` between the same number of buffers.
fn large_frames(effort: &Effort) -> String {
    let mut layout = Layout::new(Ring::Split, Sizes::Super);
    layout.queue_size = 256;
    let mut peer = Peer::start(Kind::Vswitch, 2, &layout).unwrap_or_else(|error| panic!("{error}"));
    let mut streams = neighbours(2, false);
    streams[0].sizes = Sizes::Super;
    let runs: Vec<(f64, f64)> = (0..effort.pairs)
        .map(|_| {
            let outcome = peer.measure(|ports| run(ports, streams.clone(), effort.trial));
            let forwarded = outcome.unwrap_or_else(|error| panic!("{error}")).bits() / 8.0;
            let copied = peer.measure(|ports| copy(ports, effort.trial));
            (forwarded, copied.unwrap_or_else(|error| panic!("{error}")))
        })
        .collect();
    let of = |value: fn(&(f64, f64)) -> f64| median(&runs.iter().map(value).collect::<Vec<_>>());
    let mut rows = String::new();
    let _ = writeln!(
        rows,
        "| frames of 64 KiB through the switch, one way | {:.2} GB/s |",
        of(|run| run.0) / 1e9
    );
    let _ = writeln!(
        rows,
        "| `memcpy` of 64 KiB between as many buffers | {:.2} GB/s |",
        of(|run| run.1) / 1e9
    );
    let _ = writeln!(
        rows,
        "| the first as a part of the second | {:.0} % |",
        of(|run| run.0 / run.1) * 100.0
    );
    rows
}

/// Bytes a second that a processor copies from the transmit slots of one port to those of another, one after another.
fn copy(ports: &mut [Port], trial: Duration) -> Result<f64, PortError> {
    let slots = [ports[0].take_slots(0)?, ports[1].take_slots(0)?];
    let mut copied = 0_u64;
    let mut once = || {
        for (from, to) in slots[0].iter().zip(&slots[1]) {
            if let Some(from) = ports[0].slot(0, *from)
                && let Some(to) = ports[1].slot(0, *to)
            {
                copied += from.copy_to(to, from.len()) as u64;
            }
        }
    };
    // The first time, some of the memory is still to be had from the kernel.
    once();
    let start = Instant::now();
    while start.elapsed() < trial {
        once();
    }
    let rate = as_f64(copied) / start.elapsed().as_secs_f64();
    let [first, second] = slots;
    ports[0].return_slots(0, first);
    ports[1].return_slots(0, second);
    Ok(rate)
}
