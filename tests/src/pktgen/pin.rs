//! Keeping a thread on one CPU.

use rustix::thread::{CpuSet, sched_setaffinity};

/// Has the calling thread, and those that it starts, run on `cpu` alone.
pub fn this_thread(cpu: usize) -> std::io::Result<()> {
    let mut set = CpuSet::new();
    if cpu >= CpuSet::MAX_CPU {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}
