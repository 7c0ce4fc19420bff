//! The virtio-net device behind a vhost-user socket.
//!
//! - [`session`]: the socket: one front-end after another, for ever; the protocol; the life of the rings.
//! - [`plane`]: [`DevicePlane`], what a data plane implements to be driven by a session.
//! - [`control`]: what a driver sets through the control queue, where the device serves that itself.
//! - [`config`]: what a port offers to its front-end.
//! - [`nic`]: the data plane of the stand-alone process, between the rings and a [`wire`]: [`tap`] or `virtio-user`.
//! - [`netlink`]: link state and MTU of the host's interfaces.
//! - [`eventfd`]: kicks and calls that cannot be turned against us.

pub mod config;
pub mod control;
pub mod eventfd;
pub mod netlink;
pub mod nic;
pub mod plane;
pub mod session;
pub mod tap;
pub mod wire;

pub use config::PortConfig;
pub use plane::{DevicePlane, Ring};
pub use session::{Session, SessionHandle, SessionStatus, SocketConfig, SocketMode};
