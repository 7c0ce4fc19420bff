//! A learning Ethernet switch for virtual machines.
//!
//! One process is one bridge. Its ports are virtio-net devices behind vhost-user sockets, and interfaces of
//! the host; a frame between two guests is copied once, from the sender's memory to the receiver's. See
//! [`switch::Switch`] for the control plane, [`bridge::Bridge`] for what the workers share, and
//! [`client::Client`] to talk to a running bridge.

#![forbid(unsafe_code)]

pub mod api;
pub mod bridge;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod counters;
pub mod daemon;
pub mod fdb;
pub mod flow;
pub mod frame;
pub mod gate;
pub mod handover;
pub mod mac;
pub mod metrics;
pub mod model;
pub mod port;
pub mod port_id;
pub mod published;
pub mod run_dir;
pub mod switch;
mod sync;
pub mod table;
pub mod worker;

pub use run_dir::run_dir;
