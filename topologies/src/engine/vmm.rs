//! Our own machine monitor, which needs KVM backed by hardware.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{Engine, EngineKind};
use crate::agent::Channels;
use crate::plan::NodePlan;

/// `vmm`.
#[derive(Debug, Clone)]
pub struct Vmm {
    program: PathBuf,
}

impl Vmm {
    /// The machine monitor at `program`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
        }
    }
}

impl Engine for Vmm {
    fn kind(&self) -> EngineKind {
        EngineKind::Vmm
    }

    fn program(&self) -> &Path {
        &self.program
    }

    fn forwards_control_queue(&self) -> bool {
        true
    }

    fn arguments(&self, node: &NodePlan) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["run".into()];
        let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        option("--name", node.title.clone().into());
        option("--kernel", node.boot.kernel.clone().into());
        if let Some(initrd) = &node.boot.initrd {
            option("--initrd", initrd.clone().into());
        }
        option("--cmdline", node.cmdline.clone().into());
        option("--cpus", node.cpus.to_string().into());
        option("--memory", format!("{}M", node.memory_mib).into());
        for nic in &node.nics {
            option(
                "--net",
                format!(
                    "socket={},mac={},queues={}",
                    nic.socket.display(),
                    nic.mac,
                    nic.queues
                )
                .into(),
            );
        }
        for device in &node.devices {
            option("--device", device.into());
        }
        for disk in &node.disks {
            let readonly = if disk.readonly { ",readonly=on" } else { "" };
            option("--disk", format!("path={}{readonly}", disk.path.display()).into());
        }
        let channels = node.dir.channels();
        for channel in 0..channels.count() {
            option(
                "--channel",
                format!(
                    "name={},socket={}",
                    Channels::name(channel),
                    channels.socket(channel).display()
                )
                .into(),
            );
        }
        option(
            "--serial",
            format!(
                "socket={},log={}",
                node.dir.serial_socket().display(),
                node.dir.serial_log().display()
            )
            .into(),
        );
        option("--api-socket", node.dir.api_socket().into());
        arguments
    }
}
