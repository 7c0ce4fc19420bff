//! How long a guest takes to boot, and what its monitor keeps in memory besides the guest's RAM.

use std::time::Duration;

use super::guest::{BootFiles, Guest, Monitor};
use super::median::median;

const MONITORS: [Monitor; 3] = [Monitor::Vmm, Monitor::Q35, Monitor::Microvm];

/// One row of the table.
#[derive(Debug, Clone)]
pub struct Row {
    /// The monitor.
    pub monitor: Monitor,
    /// Medians, if its guest became ready every time.
    pub measured: Option<Measured>,
}

/// What was measured of one monitor.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// From the start of the process until the guest is ready, in seconds.
    pub boot_s: f64,
    /// Resident memory besides the guest's RAM, in MiB.
    pub overhead_mib: f64,
}

/// Boots a guest under each monitor in turn, `runs` times and once before that for the caches. A monitor whose guest is not ready
/// within `limit` is not started again.
///
/// # Panics
/// When there is no image, or a program is missing.
pub fn measure(runs: usize, limit: Duration) -> Vec<Row> {
    let boot = BootFiles::copy();
    let mut all = MONITORS.map(|monitor| (monitor, Some(Vec::new())));
    for run in 0..=runs {
        for (monitor, measured) in &mut all {
            let Some(values) = measured else { continue };
            let guest = Guest::start_bare(*monitor, &boot);
            let Some(time) = guest.boot_time(limit) else {
                eprintln!("{monitor}: not ready within {} s", limit.as_secs());
                *measured = None;
                continue;
            };
            let kib = guest.overhead_kib();
            let note = if run == 0 { " (not counted)" } else { "" };
            eprintln!("{monitor}: {:.1} s, {kib} KiB{note}", time.as_secs_f64());
            if run > 0 {
                values.push((time.as_secs_f64(), kib));
            }
        }
    }
    all.into_iter()
        .map(|(monitor, values)| Row {
            monitor,
            measured: values
                .filter(|values| !values.is_empty())
                .map(|values| summary(&values)),
        })
        .collect()
}

fn summary(values: &[(f64, u64)]) -> Measured {
    let mib = |kib: u64| u32::try_from(kib).map_or(f64::MAX, f64::from) / 1024.0;
    Measured {
        boot_s: median(&values.iter().map(|value| value.0).collect::<Vec<_>>()),
        overhead_mib: median(&values.iter().map(|value| mib(value.1)).collect::<Vec<_>>()),
    }
}

/// The rows as a Markdown table, each with its ratio to the first.
pub fn table(rows: &[Row]) -> String {
    let mut lines = vec![
        "| monitor | boot | ratio | memory besides guest RAM | ratio |\n|---|---|---|---|---|\n".to_owned(),
    ];
    let first = rows.first().and_then(|row| row.measured);
    for row in rows {
        lines.push(match (row.measured, first) {
            (Some(measured), Some(first)) => format!(
                "| {} | {:.1} s | {:.2} | {:.1} MiB | {:.2} |\n",
                row.monitor,
                measured.boot_s,
                measured.boot_s / first.boot_s,
                measured.overhead_mib,
                measured.overhead_mib / first.overhead_mib
            ),
            (Some(measured), None) => format!(
                "| {} | {:.1} s | | {:.1} MiB | |\n",
                row.monitor, measured.boot_s, measured.overhead_mib
            ),
            (None, _) => format!("| {} | never ready | | | |\n", row.monitor),
        });
    }
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_to_the_first_row() {
        let measured = |boot_s, overhead_mib| Some(Measured { boot_s, overhead_mib });
        let rows = [
            Row {
                monitor: Monitor::Vmm,
                measured: measured(2.0, 4.0),
            },
            Row {
                monitor: Monitor::Q35,
                measured: measured(5.0, 40.0),
            },
            Row {
                monitor: Monitor::Microvm,
                measured: None,
            },
        ];
        let text = table(&rows);
        let lines: Vec<_> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| `vmm` | 2.0 s | 1.00 | 4.0 MiB | 1.00 |",
                "| QEMU `q35` | 5.0 s | 2.50 | 40.0 MiB | 10.00 |",
                "| QEMU `microvm` | never ready | | | |",
            ]
        );
    }
}
