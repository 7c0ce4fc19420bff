//! Searching for the highest rate without loss (RFC 2544 26.1).

use super::{Setting, at};
use crate::pktgen::outcome::{Outcome, as_f64};
use crate::pktgen::port::{Port, PortError};
use crate::pktgen::run;
use crate::pktgen::stream::Stream;

/// How close the search comes to the rate.
const RESOLUTION: f64 = 0.01;

/// What a search found.
#[derive(Debug)]
pub(super) struct Found {
    /// Frames a second of each stream.
    pub(super) each: f64,
    /// Frames a second received of all streams together, at that rate.
    pub(super) all: f64,
    /// What became of the frames when every stream was sent as fast as it went.
    pub(super) flat_out: Outcome,
}

/// The highest rate at which `streams`, all alike, lose nothing: halving the range between a rate that was held and one that was not.
pub(super) fn throughput(
    ports: &mut [Port],
    setting: &Setting,
    streams: &[Stream],
) -> Result<Found, PortError> {
    let flat_out = run::run(ports, at(streams.to_vec(), None), setting.trial)?;
    let count = as_f64(streams.len() as u64);
    let copies = as_f64(flat_out.received() + flat_out.lost()) / as_f64(flat_out.sent().max(1));
    let mut refused = flat_out.rate() / count / copies.max(1.0) * 1.05;
    let enough = 1.0 - setting.tolerance.max(0.02);
    let (mut held, mut all) = (0.0, 0.0);
    while refused - held > refused * RESOLUTION {
        let rate = f64::midpoint(held, refused);
        let outcome = run::run(ports, at(streams.to_vec(), Some(rate)), setting.trial)?;
        // A generator that cannot offer the rate has not shown that the switch can take it.
        if outcome.loss() <= setting.tolerance && outcome.offered() > rate * count * enough {
            (held, all) = (rate, outcome.rate());
        } else {
            refused = rate;
        }
        if refused < 1.0 {
            break;
        }
    }
    Ok(Found {
        each: held,
        all,
        flat_out,
    })
}
