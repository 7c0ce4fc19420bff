//! What a bridge is made of, kept on disk so that a new daemon finds it after any end of the old one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fdb::OnFull;
use crate::mac::MacAddr;
use crate::run_dir::BridgeDir;

/// The most queue pairs of one port.
pub const MAX_QUEUE_PAIRS: u16 = 16;
/// The most addresses that a port may be held to.
pub const MAX_SOURCE_MACS: usize = 16;
/// The smallest MTU a port may have.
pub const MIN_MTU: u16 = 68;
/// The largest MTU a port may have; longer frames pass as super-frames only.
pub const MAX_MTU: u16 = 9216;
/// The MTU of a port that was given none.
pub const DEFAULT_MTU: u16 = 1500;

/// The settings could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file system refused.
    #[error("cannot {0} {1}: {2}")]
    Io(&'static str, PathBuf, #[source] io::Error),
    /// The file is no configuration.
    #[error("{0} is damaged ({1}): delete it to start with an empty bridge, or `vswitch down` the bridge")]
    Damaged(PathBuf, #[source] serde_json::Error),
}

/// How workers wait for frames.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum, utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum PollMode {
    /// Poll while there is traffic, then sleep until a guest kicks.
    #[default]
    Adaptive,
    /// Poll without end: lowest latency, one busy CPU per worker.
    Always,
    /// Sleep after each burst.
    Never,
}

/// Settings of a bridge's daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeSettings {
    /// Number of worker threads.
    pub workers: u16,
    /// CPUs the workers are pinned to, in turn; empty for no pinning.
    pub cpus: Vec<u16>,
    /// How workers wait.
    pub poll: PollMode,
    /// The most addresses in the forwarding database.
    pub fdb_size: usize,
    /// Seconds until a silent address is forgotten.
    pub ageing: u32,
    /// What a full forwarding database does.
    pub on_full: OnFull,
}

impl Default for BridgeSettings {
    fn default() -> Self {
        Self {
            workers: 1,
            cpus: Vec::new(),
            poll: PollMode::Adaptive,
            fdb_size: 8192,
            ageing: 300,
            on_full: OnFull::EvictFair,
        }
    }
}

/// What a port is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum PortKind {
    /// A front-end (a VM) on a vhost-user socket.
    VhostUser {
        /// Path of the socket.
        #[schema(value_type = String)]
        socket: PathBuf,
        /// The switch connects to a socket that the front-end listens on, instead of listening.
        #[serde(default)]
        client: bool,
    },
    /// An interface of this host.
    Tap {
        /// Name of the interface, made if it does not exist.
        interface: String,
    },
}

/// What a port's link was set to.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum, utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum LinkSetting {
    /// Frames may pass.
    #[default]
    Up,
    /// None may, and the guest sees its link down.
    Down,
}

/// One port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSettings {
    /// The port's name.
    pub name: String,
    /// What it is connected to.
    pub kind: PortKind,
    /// The most queue pairs.
    pub queue_pairs: u16,
    /// The address offered to the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// The MTU, offered to the guest and enforced. Without one nothing is offered and [`DEFAULT_MTU`] is
    /// enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// What its link was set to.
    #[serde(default)]
    pub link: LinkSetting,
    /// The switch serves the guest's control queue, which the front-end has to forward.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub control_queue: bool,
    /// The only addresses that frames from the port may come from; empty for any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_macs: Vec<MacAddr>,
}

/// A static entry of the forwarding database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticEntry {
    /// The address.
    pub mac: MacAddr,
    /// The VLAN; 0 without VLANs.
    pub vlan: u16,
    /// Name of the port.
    pub port: String,
}

/// Everything about a bridge that outlives its daemon.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeConfig {
    /// The daemon's settings.
    pub settings: BridgeSettings,
    /// The ports.
    #[serde(default)]
    pub ports: Vec<PortSettings>,
    /// Static entries of the forwarding database.
    #[serde(default)]
    pub fdb: Vec<StaticEntry>,
}

impl BridgeConfig {
    /// Reads the configuration a former daemon left, if any.
    pub fn load(dir: &BridgeDir) -> Result<Option<Self>, ConfigError> {
        let path = dir.config();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ConfigError::Io("read", path, error)),
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| ConfigError::Damaged(path, error))
    }

    /// Replaces the stored configuration as a whole: a reader, or a daemon after a crash, sees the old one
    /// or the new one.
    pub fn store(&self, dir: &BridgeDir) -> Result<(), ConfigError> {
        let path = dir.config();
        let temporary = path.with_extension("json.new");
        let write = |file: &Path| -> io::Result<()> {
            let mut handle = File::create(file)?;
            serde_json::to_writer_pretty(&mut handle, self)?;
            handle.write_all(b"\n")?;
            fs::rename(file, &path)
        };
        write(&temporary).map_err(|error| ConfigError::Io("write", dir.config(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_survives_the_round_trip() {
        let config = BridgeConfig {
            settings: BridgeSettings {
                workers: 2,
                ..BridgeSettings::default()
            },
            ports: vec![
                PortSettings {
                    name: "a".into(),
                    kind: PortKind::VhostUser {
                        socket: "/run/a.sock".into(),
                        client: false,
                    },
                    queue_pairs: 2,
                    mac: Some(MacAddr::new([2, 0, 0, 0, 0, 1])),
                    mtu: Some(9000),
                    link: LinkSetting::Down,
                    control_queue: true,
                    source_macs: vec![MacAddr::new([2, 0, 0, 0, 0, 1])],
                },
                PortSettings {
                    name: "host".into(),
                    kind: PortKind::Tap {
                        interface: "tap0".into(),
                    },
                    queue_pairs: 1,
                    mac: None,
                    mtu: None,
                    link: LinkSetting::Up,
                    control_queue: false,
                    source_macs: Vec::new(),
                },
            ],
            fdb: vec![StaticEntry {
                mac: MacAddr::new([2, 0, 0, 0, 0, 9]),
                vlan: 0,
                port: "a".into(),
            }],
        };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<BridgeConfig>(&text).unwrap(), config);
    }
}
