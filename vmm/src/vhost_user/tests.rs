//! The NIC between a hand-made guest driver and back-ends that behave, misbehave and die.

mod control;
mod guest;
mod lifecycle;
mod reconnect;
mod reference;
mod script;

use std::time::Duration;

/// How long anything that has to happen may take before a test gives up on it.
const SOON: Duration = Duration::from_secs(20);
