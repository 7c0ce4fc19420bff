//! Ping and iperf3 between two guests, through virtual functions of one NIC and through the switch, on one boot of one lab.

use topologies::measure::{self, End, Ended, Report};

use super::bridge::{Network, summary, table_of};
use crate::bin;
use crate::lab::{Lab, Place, Yard};
use crate::markdown;

/// The lab whose machines are on both, and their addresses on each.
const LAB: &str = "topologies/labs/sriov.lab.yaml";
const ADDRESSES: [[&str; 2]; 2] = [["10.1.0.1", "10.1.0.2"], ["10.0.0.1", "10.0.0.2"]];

/// Measures the virtual functions and the switch in turn, each `repeats` times with `seconds` for each iperf3 run.
///
/// # Panics
/// When the lab does not come up, or a program fails.
pub fn measure(repeats: usize, seconds: u32) -> [Network; 2] {
    let yard = Yard::new(Place::Emulated);
    let lab = yard.up(&markdown::repository().join(LAB));
    let mut reports = [Vec::new(), Vec::new()];
    for _ in 0..repeats {
        for (addresses, reports) in ADDRESSES.iter().zip(&mut reports) {
            reports.push(report(&lab, addresses, seconds));
        }
    }
    reports.map(|reports| summary(&reports))
}

fn report(lab: &Lab<'_>, [from, to]: &[&str; 2], seconds: u32) -> Report {
    let mut exec = |node: &str, command: &[&str]| {
        let output = bin::finish(&mut lab.exec(node, command));
        Ok(Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    };
    let end = |node, address| End { node, address };
    let report = measure::measure(&mut exec, end("a", from), end("b", to), seconds)
        .unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
    eprintln!("{from} to {to}:\n{}", report.table());
    report
}

/// Both as a Markdown table.
pub fn table(networks: &[Network; 2]) -> String {
    table_of("VF", "switch NIC", networks)
}
