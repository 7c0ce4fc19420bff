//! RFC 2889 5.7 and 5.8: how many addresses are held, and how fast they are learned.
//!
//! Port 1 teaches addresses, port 0 sends to each of them, and port 2 sees what is flooded because its address is not known.

use super::report::Report;
use super::{Setting, SuiteError, shell};
use crate::pktgen::frame;
use crate::pktgen::port::Port;
use crate::pktgen::run::{self, run};
use crate::pktgen::stream::{Addresses, Stream};
use std::time::Duration;

/// The most addresses that are tried.
const MOST: u32 = 1 << 18;
/// How many are tried first.
const FIRST: u32 = 1024;
/// Frames a second where the rate is not what is measured.
const EASY_RATE: f64 = 200_000.0;
/// Addresses that are taught at once where the rate is measured.
const LESSON: u32 = 512;
/// The highest rate that is tried.
const FASTEST: f64 = 4e6;
const LIMIT: Duration = Duration::from_secs(30);

/// Teaches `count` addresses from `first` on at `rate`, then sends to each; gives the frames that were flooded.
fn flooded(
    ports: &mut [Port],
    setting: &Setting,
    first: u32,
    count: u32,
    rate: f64,
) -> Result<u64, SuiteError> {
    if let Some(command) = &setting.flush {
        shell(command)?;
    }
    // The ports' own addresses may have had to give way.
    run::teach(ports)?;
    let mut lesson = Stream::between(1, 0, frame::SHORTEST).at(Some(rate));
    lesson.addresses = Some(Addresses {
        sources: Some(first),
        destinations: None,
        count,
    });
    lesson.limit = Some(u64::from(count));
    run(ports, vec![lesson], LIMIT)?;
    let mut probe = Stream::between(0, 1, frame::SHORTEST).at(Some(EASY_RATE));
    probe.addresses = Some(Addresses {
        sources: None,
        destinations: Some(first),
        count,
    });
    probe.limit = Some(u64::from(count));
    Ok(run(ports, vec![probe], LIMIT)?.misdelivered)
}

pub(super) fn caching_capacity(
    ports: &mut [Port],
    setting: &Setting,
    report: &mut Report,
) -> Result<(), SuiteError> {
    let (mut held, mut refused) = (0, MOST);
    let mut first = 0;
    let mut count = FIRST;
    while refused - held > held / 50 + 1 {
        // Addresses are new each time, so that none is remembered from the trial before.
        let flooded = flooded(ports, setting, first, count, EASY_RATE)?;
        first += count;
        if flooded == 0 {
            held = count;
        } else {
            refused = count;
        }
        // Large tables take long to fill, so small ones are tried before.
        count = u32::midpoint(held, refused).min(held.saturating_mul(2).max(FIRST));
        if held < FIRST {
            count = u32::midpoint(held, refused);
        }
    }
    report.add("addresses held", f64::from(held), "addresses");
    Ok(())
}

pub(super) fn learning_rate(
    ports: &mut [Port],
    setting: &Setting,
    report: &mut Report,
) -> Result<(), SuiteError> {
    let (mut held, mut refused) = (0.0, FASTEST);
    let mut first = 1 << 24;
    while refused - held > refused * 0.05 {
        let rate = f64::midpoint(held, refused);
        let flooded = flooded(ports, setting, first, LESSON, rate)?;
        first += LESSON;
        if flooded == 0 {
            held = rate;
        } else {
            refused = rate;
        }
        if refused < 1.0 {
            break;
        }
    }
    report.add("addresses learned", held, "addresses/s");
    Ok(())
}
