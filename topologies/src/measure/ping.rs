//! What `ping` prints, that of busybox and that of iputils.

use serde::Serialize;

/// Round-trip times of ICMP echo.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RoundTrip {
    /// Requests sent.
    pub sent: u32,
    /// Answers received.
    pub received: u32,
    /// Shortest, in milliseconds.
    pub min_ms: f64,
    /// Mean, in milliseconds.
    pub avg_ms: f64,
    /// Longest, in milliseconds.
    pub max_ms: f64,
}

/// Reads the two lines of the summary.
pub(super) fn parse(text: &str) -> Option<RoundTrip> {
    let counts = text.lines().find(|line| line.contains("packets transmitted"))?;
    let number = |field: &str| field.split_whitespace().next()?.parse().ok();
    let mut fields = counts.split(',');
    let sent = number(fields.next()?)?;
    let received = number(fields.next()?)?;
    let times = text.lines().find(|line| line.contains("min/avg/max"))?;
    let times = times.split_once('=')?.1.split_whitespace().next()?;
    let mut times = times.split('/').map(str::parse);
    Some(RoundTrip {
        sent,
        received,
        min_ms: times.next()?.ok()?,
        avg_ms: times.next()?.ok()?,
        max_ms: times.next()?.ok()?,
    })
}
