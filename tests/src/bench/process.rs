//! What the kernel says of a process.

use std::fs;
use std::time::Duration;

use rustix::process::Pid;

use crate::switch::Switch;

/// A process number as the kernel's calls take it.
///
/// # Panics
/// When it is none.
pub fn pid(number: u32) -> Pid {
    i32::try_from(number)
        .ok()
        .and_then(Pid::from_raw)
        .unwrap_or_else(|| panic!("{number} is not a process"))
}

/// The daemon of a bridge.
///
/// # Panics
/// When it does not say.
pub fn daemon(switch: &Switch) -> Pid {
    let shown = switch.show();
    let number = shown["pid"]
        .as_u64()
        .and_then(|number| u32::try_from(number).ok());
    pid(number.unwrap_or_else(|| panic!("no process in {shown}")))
}

/// The time that all threads of a process have had on a processor.
///
/// # Panics
/// When the process is gone.
pub fn processor_time(pid: Pid) -> Duration {
    let folder = format!("/proc/{}/task", pid.as_raw_nonzero());
    let threads = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse().ok())
        .map(Duration::from_nanos)
        .sum()
}

/// Resident memory of the process's own, in KiB: without what it shares with guests, and without files.
///
/// # Panics
/// When the process is gone.
pub fn own_memory_kib(pid: Pid) -> u64 {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or_else(|| panic!("no RssAnon in {path}"))
}
