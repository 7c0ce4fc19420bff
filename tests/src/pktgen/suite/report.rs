//! What a test found, line by line.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::pktgen::outcome::{Outcome, StreamOutcome, as_f64};

/// One line of a report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// The test.
    pub test: String,
    /// What was measured.
    pub metric: String,
    /// Its value.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
}

/// The lines as a table for people.
pub fn table(lines: &[Line]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["TEST", "METRIC", "VALUE", "UNIT"]);
    for line in lines {
        table.add_row([
            line.test.as_str(),
            line.metric.as_str(),
            &format!("{:.2}", line.value),
            line.unit,
        ]);
    }
    if let Some(column) = table.column_mut(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// The report of one test.
pub(super) struct Report {
    test: String,
    pub(super) lines: Vec<Line>,
}

impl Report {
    pub(super) fn new(test: String) -> Self {
        Self {
            test,
            lines: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, metric: impl Into<String>, value: f64, unit: &'static str) {
        self.lines.push(Line {
            test: self.test.clone(),
            metric: metric.into(),
            value,
            unit,
        });
    }

    /// What became of a run's frames.
    pub(super) fn forwarding(&mut self, what: &str, outcome: &Outcome) {
        self.add(format!("{what}, offered"), outcome.offered(), "frames/s");
        self.add(format!("{what}, forwarded"), outcome.rate(), "frames/s");
        self.add(format!("{what}, forwarded"), outcome.bits() / 1e9, "Gbit/s");
        self.add(format!("{what}, loss"), outcome.loss() * 100.0, "%");
        self.add(format!("{what}, generator waited"), outcome.waited * 100.0, "%");
        let sum = |of: fn(&StreamOutcome) -> u64| as_f64(outcome.streams.iter().map(of).sum());
        self.add(
            format!("{what}, duplicates"),
            sum(|stream| stream.duplicates),
            "frames",
        );
        self.add(
            format!("{what}, reordered"),
            sum(|stream| stream.reordered),
            "frames",
        );
        self.add(
            format!("{what}, at the wrong port"),
            as_f64(outcome.misdelivered),
            "frames",
        );
    }

    /// How long frames took.
    pub(super) fn latency(&mut self, what: &str, histogram: &hdrhistogram::Histogram<u64>) {
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
            let value = as_f64(histogram.value_at_quantile(quantile)) / 1e3;
            self.add(format!("{what}, {name}"), value, "µs");
        }
    }
}
