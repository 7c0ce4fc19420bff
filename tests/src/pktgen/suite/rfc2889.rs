//! RFC 2889, section 5, without the two tests of tables of addresses.

use std::time::{Duration, Instant};

use virtio::net::HEADER_LEN;
use virtio::split::driver::Buffer;

use super::report::Report;
use super::search;
use super::{Setting, SuiteError, at};
use crate::pktgen::frame::{self, Template};
use crate::pktgen::outcome::as_f64;
use crate::pktgen::port::{Port, PortError};
use crate::pktgen::run::{Plan, run};
use crate::pktgen::stream::{Destination, Stream};

/// Frames of each kind that `errored-frames` sends.
const ERRORS: usize = 64;
/// How long the back-end may take for them.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long nothing may arrive before no more is expected.
const QUIET: Duration = Duration::from_millis(50);
/// An address far outside the memory of any port.
const NOWHERE: u64 = 0xffff_0000_0000;

fn count(ports: &[Port]) -> u16 {
    u16::try_from(ports.len()).unwrap_or(u16::MAX)
}

/// Throughput, and what is forwarded flat out.
fn forwarding(
    ports: &mut [Port],
    setting: &Setting,
    streams: &[Stream],
    what: &str,
    report: &mut Report,
) -> Result<f64, PortError> {
    let found = search::throughput(ports, setting, streams)?;
    report.add(format!("{what}, throughput"), found.all, "frames/s");
    report.forwarding(what, &found.flat_out);
    Ok(found.each)
}

pub(super) fn fully_meshed(
    ports: &mut [Port],
    setting: &Setting,
    report: &mut Report,
) -> Result<(), SuiteError> {
    let ports_count = count(ports);
    // Every port begins with its neighbour, so that no receiver is the first of all (5.1.3).
    let pairs = (1..ports_count)
        .flat_map(|offset| (0..ports_count).map(move |from| (from, (from + offset) % ports_count)));
    let streams = setting.streams(pairs.collect::<Vec<_>>());
    forwarding(ports, setting, &streams, "all to all", report)?;
    Ok(())
}

pub(super) fn partially_meshed(
    ports: &mut [Port],
    setting: &Setting,
    report: &mut Report,
) -> Result<(), SuiteError> {
    let count = count(ports);
    let out = setting.streams((1..count).map(|to| (0, to)));
    forwarding(ports, setting, &out, "one to many", report)?;
    let back = setting.streams((1..count).map(|from| (from, 0)));
    forwarding(ports, setting, &back, "many to one", report)?;
    let half = count / 2;
    let across = (0..count - half)
        .flat_map(|offset| (0..half).map(move |from| (from, half + (from + offset) % (count - half))));
    let across = setting.streams(across.collect::<Vec<_>>());
    forwarding(ports, setting, &across, "half to half", report)?;
    Ok(())
}

/// Port 0 sends to ports 2 and 3 in turn, port 1 to port 2 alone. Port 2 takes as much as one sender sends, and is sent half as much
/// again; port 3 is not congested, and should lose nothing.
pub(super) fn congestion_control(
    ports: &mut [Port],
    setting: &Setting,
    report: &mut Report,
) -> Result<(), SuiteError> {
    // Both senders together stay below what the switch can do.
    let rate = search::throughput(ports, setting, &setting.streams([(0, 3)]))?.each * 0.4;
    let mut streams = setting.streams([(0, 2), (0, 3), (1, 2)]);
    for (stream, part) in streams.iter_mut().zip([0.5, 0.5, 1.0]) {
        stream.rate = Some(rate * part);
    }
    let mut plan = Plan::new(streams, setting.trial);
    plan.drains = vec![(2, rate)];
    let outcome = plan.run(ports)?;
    let [first, other, second] = &outcome.streams[..] else {
        unreachable!("three streams were run")
    };
    let intended = rate * 2.0 * outcome.elapsed.as_secs_f64();
    let held_back = (1.0 - as_f64(outcome.sent()) / intended.max(1.0)).max(0.0) * 100.0;
    let lost = as_f64(first.lost + second.lost);
    report.add("each sender, offered", rate, "frames/s");
    report.add("loss at the congested port", lost, "frames");
    report.add(
        "loss at the congested port",
        lost / as_f64((first.sent + second.sent).max(1)) * 100.0,
        "%",
    );
    report.add("loss at the other port", as_f64(other.lost), "frames");
    report.add("back pressure: not sent", held_back, "%");
    report.latency("at the other port", &other.latency);
    Ok(())
}

pub(super) fn maximum_forwarding_rate(
    ports: &mut [Port],
    setting: &Setting,
    report: &mut Report,
) -> Result<(), SuiteError> {
    let found = search::throughput(ports, setting, &setting.one_way(None))?;
    let most = found.flat_out.offered();
    let mut best = (found.flat_out.rate(), most);
    // From the throughput up to the most that can be offered.
    for step in 0..5 {
        let rate = found.each + (most - found.each) * f64::from(step) / 5.0;
        let outcome = run(ports, setting.one_way(Some(rate)), setting.trial)?;
        if outcome.rate() > best.0 {
            best = (outcome.rate(), outcome.offered());
        }
    }
    report.add(
        "forwarded at maximum offered load",
        found.flat_out.rate(),
        "frames/s",
    );
    report.add("maximum forwarding rate", best.0, "frames/s");
    report.add("offered for it", best.1, "frames/s");
    Ok(())
}

pub(super) fn broadcast(
    ports: &mut [Port],
    setting: &Setting,
    report: &mut Report,
) -> Result<(), SuiteError> {
    let stream = |rate| {
        let mut streams = setting.one_way(rate);
        streams[0].to = Destination::Broadcast;
        streams
    };
    let rate = forwarding(ports, setting, &stream(None), "to all", report)?;
    let outcome = run(ports, at(stream(None), Some(rate)), setting.trial)?;
    report.latency("at the throughput", &outcome.latency());
    Ok(())
}

pub(super) fn errored_frames(ports: &mut [Port], report: &mut Report) -> Result<(), SuiteError> {
    let header = u32::try_from(HEADER_LEN).unwrap_or(0);
    let kinds: [(&str, Spoil); 5] = [
        ("runts", |buffer, header| Buffer {
            len: header + 10,
            ..buffer
        }),
        ("oversize frames", |buffer, header| Buffer {
            len: header + 1900,
            ..buffer
        }),
        ("headers without a frame", |buffer, header| Buffer {
            len: header,
            ..buffer
        }),
        ("chains shorter than a header", |buffer, header| Buffer {
            len: header / 2,
            ..buffer
        }),
        ("chains outside of memory", |buffer, _| Buffer {
            addr: NOWHERE,
            ..buffer
        }),
    ];
    for (name, spoil) in kinds {
        let arrived = transmit(ports, &|buffer| spoil(buffer, header))?;
        report.add(format!("{name} forwarded of {ERRORS}"), as_f64(arrived), "frames");
        let good = transmit(ports, &|buffer| Buffer {
            len: header + 60,
            ..buffer
        })?;
        report.add(
            format!("good frames after {name}, of {ERRORS}"),
            as_f64(good),
            "frames",
        );
    }
    Ok(())
}

/// Makes a buffer with a good frame, of a header of so many bytes, into one with an error.
type Spoil = fn(Buffer, u32) -> Buffer;

/// Sends [`ERRORS`] frames from port 0 to port 1, each with its buffer made into what `buffer` says; gives how many arrived.
fn transmit(ports: &mut [Port], buffer: &dyn Fn(Buffer) -> Buffer) -> Result<u64, PortError> {
    let template = Template::new(frame::mac(0), frame::mac(1), 0, 1900);
    let mut slots = ports[0].take_slots(0)?;
    let rest = slots.split_off(ERRORS.min(slots.len()));
    ports[0].return_slots(0, rest);
    let mut under_way = 0;
    for slot in slots {
        if let Some(memory) = ports[0].slot(0, slot) {
            template.place(memory, u16::MAX);
        }
        let chain = buffer(ports[0].buffer(0, slot));
        under_way += usize::from(ports[0].push_raw(0, slot, &[chain]));
    }
    ports[0].publish(0)?;
    let mut free = Vec::new();
    let mut arrived = 0;
    let start = Instant::now();
    let mut last = start;
    while last.elapsed() < QUIET || (free.len() < under_way && start.elapsed() < PATIENCE) {
        ports[0].reclaim(0, |slot, _| free.push(slot))?;
        let taken = ports[1].receive(0, ERRORS, |_, _| ())?;
        if taken > 0 {
            arrived += taken as u64;
            last = Instant::now();
        } else {
            std::thread::yield_now();
        }
    }
    ports[0].return_slots(0, free);
    Ok(arrived)
}
