//! Refusals of the control plane.

use std::io;
use std::path::PathBuf;

use vhost_net_backend::session::SessionError;

use crate::config::ConfigError;
use crate::fdb::FdbError;
use crate::mac::MacAddr;
use crate::port::TapPortError;
use crate::port_id::MAX_PORTS;
use crate::run_dir::RunDirError;

/// A change was refused; nothing of it was done.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// There is no such port.
    #[error("bridge {bridge} has no port {port}: `vswitch port list {bridge}` lists its ports")]
    NoPort {
        /// The bridge.
        bridge: String,
        /// The name asked for.
        port: String,
    },
    /// The name is taken.
    #[error("bridge {bridge} has a port {port} already: choose another name, or delete that port first")]
    PortExists {
        /// The bridge.
        bridge: String,
        /// The name.
        port: String,
    },
    /// The socket is another port's.
    #[error("the socket {socket} belongs to port {port}: choose another path")]
    SocketTaken {
        /// The path.
        socket: PathBuf,
        /// Its owner.
        port: String,
    },
    /// The interface is another port's.
    #[error("the interface {interface} belongs to port {port}: choose another one")]
    TapTaken {
        /// The interface.
        interface: String,
        /// Its owner.
        port: String,
    },
    /// There is no such entry.
    #[error("the forwarding database has no entry {0}: `vswitch fdb show` lists its entries")]
    NoFdbEntry(MacAddr),
    /// The port's settings make no sense.
    #[error("{0}")]
    Settings(String),
    /// The bridge has as many ports as it can have.
    #[error("the bridge has {MAX_PORTS} ports, the most it can have: delete one, or use another bridge")]
    TooManyPorts,
    /// The host's interface could not be had.
    #[error(transparent)]
    Tap(#[from] TapPortError),
    /// The port's socket could not be opened.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// There are no threads to forward frames.
    #[error("the workers could not be started: {0}")]
    Workers(#[source] io::Error),
    /// A name or path that cannot be used.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The configuration could not be kept.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The forwarding database refused.
    #[error(transparent)]
    Fdb(#[from] FdbError),
}
