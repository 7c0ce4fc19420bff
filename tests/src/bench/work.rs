//! What a frame costs the processor of whoever forwards it, as that counts itself, whatever the generator takes meanwhile.

use std::fs;

use crate::pktgen::outcome::as_f64;
use crate::switch::Switch;

/// What the workers of a switch have done so far.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    frames: u64,
    busy_ns: u64,
}

impl Done {
    /// What those of `switch` have.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn by(switch: &Switch) -> Self {
        let shown = switch.show();
        // An older build does not count.
        let workers = shown["worker_counters"].as_array();
        let sum = |name: &str| {
            let workers = workers.into_iter().flatten();
            workers.filter_map(|worker| worker[name].as_u64()).sum()
        };
        Self {
            frames: sum("frames"),
            busy_ns: sum("busy_ns"),
        }
    }

    /// Nanoseconds a frame since then; none if there were no frames.
    pub fn each_since(self, before: Self) -> Option<f64> {
        let frames = self.frames - before.frames;
        (frames > 0).then(|| as_f64(self.busy_ns - before.busy_ns) / as_f64(frames))
    }
}

/// Nanoseconds a frame from what `ovs-appctl dpif-netdev/pmd-stats-show` prints: the cycles of its polling thread in which there was
/// something to do, as `  avg processing cycles per packet: 93.5 (935/10)`.
pub fn of_open_vswitch(text: &str) -> Option<f64> {
    let polling = text.split("pmd thread").nth(1)?;
    let cycles: f64 = after(polling, "avg processing cycles per packet:")?;
    Some(cycles / megahertz()? * 1e3)
}

/// Nanoseconds a frame from the line in which testpmd's `show fwd stats all` tells its cycles:
/// `  CPU cycles/packet=61.2 (total cycles=612 / total RX packets=10) at 2600 MHz Clock`.
pub fn of_testpmd(line: &str) -> Option<f64> {
    let cycles: f64 = after(line, "CPU cycles/packet=")?;
    let clock: f64 = after(line, ") at ")?;
    Some(cycles / clock * 1e3)
}

/// The number behind `label`.
fn after(text: &str, label: &str) -> Option<f64> {
    let rest = text.split_once(label)?.1;
    rest.split_whitespace().next()?.parse().ok()
}

/// The rate of the time stamp counter, which the kernel gives for the processor's where that has no other, as in a virtual machine.
fn megahertz() -> Option<f64> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("cpu MHz"))?;
    after(line, ":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(value: Option<f64>, wanted: f64) -> bool {
        value.is_some_and(|value| (value - wanted).abs() < 1e-9)
    }

    #[test]
    fn figures_of_peers_are_read() {
        let line = "  CPU cycles/packet=65.00 (total cycles=650 / total RX packets=10) at 2600 MHz Clock";
        assert!(is(of_testpmd(line), 25.0));
        assert_eq!(of_testpmd("testpmd> "), None);
        let text = "main thread:\n  packets received: 0\n  avg processing cycles per packet: 7 (7/1)\n\
                    pmd thread numa_id 0 core_id 1:\n  avg cycles per packet: 900.00 (9000/10)\n  \
                    avg processing cycles per packet: 250.00 (2500/10)\n";
        let clock = megahertz().expect("a clock rate");
        assert!(is(of_open_vswitch(text), 250.0 / clock * 1e3));
        assert_eq!(of_open_vswitch("main thread:\n"), None);
    }

    #[test]
    fn work_is_told_for_each_frame() {
        let [before, after] = [(10, 1000), (30, 1500)].map(|(frames, busy_ns)| Done { frames, busy_ns });
        assert!(is(after.each_since(before), 25.0));
        assert_eq!(after.each_since(after), None);
    }
}
