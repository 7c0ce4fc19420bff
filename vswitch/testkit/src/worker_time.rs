//! What the workers of this process's switch have cost.

use std::time::Duration;

/// CPU time of the switch's workers so far.
pub fn worker_time() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc is mounted");
    tasks
        .flatten()
        .filter(|task| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("worker-"))
        })
        .filter_map(|task| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split_whitespace()
                .next()?
                .parse()
                .ok()
                .map(Duration::from_nanos)
        })
        .sum()
}
