//! The other end of our back-ends, for tests and measurements: a vhost-user front-end and the driver end of its rings.
//!
//! - [`command`]: programs that have to succeed.
//! - [`endpoint`]: a connected front-end with its memory and queue pairs; returns errors, and is fast enough to generate load.
//! - [`guest`]: the same for tests: it waits, with a deadline, and panics where a test has failed.
//! - [`message`]: vhost-user messages byte by byte, for front-ends that break the rules.
//! - [`tcp`]: segments with checksums and segmentation left to do.
#![forbid(unsafe_code)]

pub mod command;
pub mod endpoint;
pub mod guest;
pub mod message;
pub mod tcp;
