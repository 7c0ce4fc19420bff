//! A traffic generator on the driver end of our rings, for any vhost-user back-end.
//!
//! Every frame carries the stream that it belongs to, a sequence number and the time at which it was sent, so that loss, duplicates,
//! reordering and latency are seen where it arrives.

mod clock;
pub mod frame;
pub mod layout;
pub mod outcome;
pub mod pin;
pub mod port;
pub mod run;
mod seen;
pub mod sequence;
pub mod stream;
pub mod suite;
