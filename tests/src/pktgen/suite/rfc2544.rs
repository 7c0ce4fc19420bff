//! RFC 2544, section 26.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::report::Report;
use super::search;
use super::{Setting, SuiteError, failed};
use crate::pktgen::outcome::{as_f64, histogram};
use crate::pktgen::port::{Port, PortError};
use crate::pktgen::run::{Change, Plan, run};

/// The longest burst that is tried.
const LONGEST_BURST: u64 = 1 << 20;
/// Frames a second that are far enough apart for a switch to fall asleep between them.
const SPARSE: f64 = 200.0;
/// How long a reset may take.
const REBOOT: Duration = Duration::from_secs(20);

fn one_way(ports: &mut [Port], setting: &Setting) -> Result<search::Found, PortError> {
    search::throughput(ports, setting, &setting.one_way(None))
}

pub(super) fn throughput(
    ports: &mut [Port],
    setting: &Setting,
    report: &mut Report,
) -> Result<(), SuiteError> {
    let found = one_way(ports, setting)?;
    report.add("highest rate without loss", found.all, "frames/s");
    Ok(())
}

pub(super) fn latency(ports: &mut [Port], setting: &Setting, report: &mut Report) -> Result<(), SuiteError> {
    let rate = one_way(ports, setting)?.each;
    report.add("throughput", rate, "frames/s");
    for percent in [10.0, 50.0, 90.0, 100.0] {
        let mut all = histogram();
        for _ in 0..setting.repeats {
            let streams = setting.one_way(Some(rate * percent / 100.0));
            // All have the same bounds, so adding cannot fail.
            let _ = all.add(run(ports, streams, setting.trial)?.latency());
        }
        report.latency(&format!("at {percent:.0} %"), &all);
    }
    Ok(())
}

pub(super) fn frame_loss(
    ports: &mut [Port],
    setting: &Setting,
    report: &mut Report,
) -> Result<(), SuiteError> {
    let offered = run(ports, setting.one_way(None), setting.trial)?.offered();
    // Until two trials in a row lose nothing.
    let mut clean = 0;
    for percent in (1..=10).rev().map(|tenth| f64::from(tenth) * 10.0) {
        let streams = setting.one_way(Some(offered * percent / 100.0));
        let outcome = run(ports, streams, setting.trial)?;
        report.add(format!("loss at {percent:.0} %"), outcome.loss() * 100.0, "%");
        clean = if outcome.lost() == 0 { clean + 1 } else { 0 };
        if clean == 2 {
            break;
        }
    }
    Ok(())
}

pub(super) fn back_to_back(
    ports: &mut [Port],
    setting: &Setting,
    report: &mut Report,
) -> Result<(), SuiteError> {
    let mut sum = 0;
    for _ in 0..setting.repeats {
        let (mut held, mut refused) = (0, LONGEST_BURST + 1);
        let mut length = LONGEST_BURST;
        while refused - held > held / 50 + 16 {
            let mut streams = setting.one_way(None);
            streams[0].limit = Some(length);
            let outcome = run(ports, streams, Duration::from_secs(10))?;
            if outcome.loss() <= setting.tolerance && outcome.sent() == length {
                held = length;
            } else {
                refused = length;
            }
            length = u64::midpoint(held, refused);
        }
        sum += held;
    }
    let average = as_f64(sum) / f64::from(setting.repeats);
    report.add("longest burst tried", as_f64(LONGEST_BURST), "frames");
    report.add("longest burst without loss", average, "frames");
    Ok(())
}

pub(super) fn system_recovery(
    ports: &mut [Port],
    setting: &Setting,
    report: &mut Report,
) -> Result<(), SuiteError> {
    let rate = one_way(ports, setting)?.each;
    let mut sum = Duration::ZERO;
    for _ in 0..setting.repeats {
        // Overload, and half of the throughput from one moment on.
        let mut plan = Plan::new(setting.one_way(Some(rate * 1.1)), setting.trial * 2);
        plan.change = Some(Change {
            at: setting.trial,
            factor: 0.5 / 1.1,
        });
        let outcome = plan.run(ports)?;
        let last_gap = outcome.streams.iter().filter_map(|stream| stream.last_gap).max();
        sum += last_gap.map_or(Duration::ZERO, |gap| gap.saturating_sub(setting.trial));
    }
    let average = sum / setting.repeats;
    report.add("recovery from overload", average.as_secs_f64() * 1e3, "ms");
    Ok(())
}

pub(super) fn reset(ports: &mut [Port], setting: &Setting, report: &mut Report) -> Result<(), SuiteError> {
    let command = setting.reset.as_deref().ok_or(SuiteError::NoReset)?;
    let rate = one_way(ports, setting)?.each;
    let mut plan = Plan::new(setting.one_way(Some(rate)), setting.trial + REBOOT);
    plan.revive = true;
    let mut resetting: Option<Resetting> = None;
    let mut failed = None;
    let outcome = plan.run_with(ports, &mut |elapsed, up| match &mut resetting {
        None if elapsed < setting.trial => false,
        None => match Resetting::start(command) {
            Ok(started) => {
                resetting = Some(started);
                false
            }
            Err(error) => {
                failed = Some(error);
                true
            }
        },
        Some(resetting) => resetting.is_over(elapsed, up, setting.trial),
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    if let Some(resetting) = resetting {
        resetting.finish(command)?;
    }
    let silence = outcome.streams.iter().map(|stream| stream.longest_silence).max();
    let silence = silence.unwrap_or_default().as_secs_f64();
    report.add("rate", rate, "frames/s");
    report.add("longest time without a frame", silence * 1e3, "ms");
    report.add("frames lost", as_f64(outcome.lost()), "frames");
    Ok(())
}

/// The user's command on its way.
struct Resetting {
    child: Child,
    /// When it had ended and all ports were connected again.
    back: Option<Duration>,
}

impl Resetting {
    fn start(command: &str) -> Result<Self, SuiteError> {
        let child = Command::new("sh")
            .args(["-c", command])
            .stdout(Stdio::null())
            .spawn();
        let child = child.map_err(|error| failed(command, &format!("did not start: {error}")))?;
        Ok(Self { child, back: None })
    }

    /// Whether frames have had `time` to flow again.
    fn is_over(&mut self, elapsed: Duration, up: bool, time: Duration) -> bool {
        if self.back.is_none() && up && matches!(self.child.try_wait(), Ok(Some(_))) {
            self.back = Some(elapsed);
        }
        self.back.is_some_and(|back| elapsed > back + time)
    }

    fn finish(mut self, command: &str) -> Result<(), SuiteError> {
        let status = self
            .child
            .wait()
            .map_err(|error| failed(command, &error.to_string()))?;
        if status.success() {
            Ok(())
        } else {
            Err(failed(command, &format!("ended with {status}")))
        }
    }
}

pub(super) fn wake_up(ports: &mut [Port], setting: &Setting, report: &mut Report) -> Result<(), SuiteError> {
    let outcome = run(ports, setting.one_way(Some(SPARSE)), setting.trial)?;
    report.add("frames", as_f64(outcome.received()), "frames");
    report.latency("idle to first frame", &outcome.latency());
    Ok(())
}
