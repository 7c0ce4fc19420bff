//! The device driven as a VMM would drive it: a vhost-user front-end and the driver end of its rings.

mod carrier;
mod guest;
mod hostile;
mod link;
mod process;
mod session;
mod tap;
mod wires;

use std::time::{Duration, Instant};

/// How long anything may take before a test gives up on it.
const LIMIT: Duration = Duration::from_secs(10);

/// Wait until `done` says so, or fail with `what`.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::yield_now();
    }
}
