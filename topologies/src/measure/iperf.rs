//! What `iperf3 --json` prints.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// What arrived at the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Throughput {
    /// Bits a second that the receiver got.
    pub bits_per_second: f64,
    /// TCP segments that were sent again.
    pub retransmits: Option<u64>,
    /// UDP datagrams that did not arrive, in percent.
    pub lost_percent: Option<f64>,
}

impl fmt::Display for Throughput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bits_per_second;
        if bits >= 1e9 {
            write!(f, "{:.2} Gbit/s", bits / 1e9)?;
        } else {
            write!(f, "{:.1} Mbit/s", bits / 1e6)?;
        }
        if let Some(lost) = self.lost_percent {
            write!(f, ", {lost:.1} % lost")?;
        }
        if let Some(again) = self.retransmits {
            write!(f, ", {again} sent again")?;
        }
        Ok(())
    }
}

/// Reads the sums at the end of a run.
pub(super) fn parse(text: &str) -> Option<Throughput> {
    let json: Value = serde_json::from_str(text).ok()?;
    let end = json.get("end")?;
    let udp = json["start"]["test_start"]["protocol"] == "UDP";
    if !udp {
        return Some(Throughput {
            bits_per_second: end["sum_received"]["bits_per_second"].as_f64()?,
            retransmits: end["sum_sent"]["retransmits"].as_u64(),
            lost_percent: None,
        });
    }
    // Older versions sum only what was sent, with the share that the receiver missed.
    let sum = &end["sum"];
    let lost = sum["lost_percent"].as_f64()?;
    let received = end["sum_received"]["bits_per_second"]
        .as_f64()
        .filter(|bits| *bits > 0.0);
    let bits_per_second = match received {
        Some(bits) => bits,
        None => sum["bits_per_second"].as_f64()? * (1.0 - lost / 100.0),
    };
    Some(Throughput {
        bits_per_second,
        retransmits: None,
        lost_percent: Some(lost),
    })
}

/// Why a run failed.
pub(super) fn error(text: &str) -> Option<String> {
    let json: Value = serde_json::from_str(text).ok()?;
    json.get("error")?.as_str().map(str::to_owned)
}
