//! The virtio-net device behind a vhost-user socket.
//!
//! - [`session`]: the socket: one front-end after another, for ever; the protocol; the life of the rings.
//! - [`plane`]: [`DevicePlane`], what a data plane implements to be driven by a session.
//! - [`config`]: what a port offers to its front-end.
//! - [`eventfd`]: kicks and calls that cannot be turned against us.

pub mod config;
pub mod eventfd;
pub mod plane;
pub mod session;

pub use config::PortConfig;
pub use plane::{DevicePlane, Ring};
pub use session::{Session, SessionHandle, SessionStatus, SocketConfig, SocketMode};
