//! Open vSwitch with DPDK, with a database of its own in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{cpus, work};
use crate::bin;
use crate::deadline::wait_for;

const DAEMON: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const LIMIT: Duration = Duration::from_secs(30);
const BRIDGE: &str = "br0";

/// A running Open vSwitch with one bridge, whose polling thread has one processor; it ends with the value.
#[derive(Debug)]
pub struct Ovs {
    dir: tempfile::TempDir,
    database: Child,
    daemon: Option<Child>,
}

impl Ovs {
    /// Starts it; `tso` switches on its support for super-frames.
    ///
    /// # Panics
    /// When one of its programs fails.
    pub fn start(tso: bool) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("ny-ovs-")
            .tempdir()
            .expect("a folder");
        let path = |name: &str| dir.path().join(name);
        bin::succeed(
            Command::new("ovsdb-tool")
                .arg("create")
                .arg(path("conf.db"))
                .arg(SCHEMA),
        );
        let database = quiet("ovsdb-server", dir.path())
            .arg(path("conf.db"))
            .arg(format!("--remote=punix:{}", path("db.sock").display()))
            .spawn()
            .unwrap_or_else(|error| panic!("ovsdb-server did not start: {error}"));
        let mut ovs = Self {
            dir,
            database,
            daemon: None,
        };
        wait_for("Open vSwitch's database", LIMIT, || {
            ovs.dir.path().join("db.sock").exists().then_some(())
        });
        ovs.vsctl(&["--no-wait", "init"]);
        let mask = 1_u64 << cpus::measured();
        ovs.vsctl(&[
            "--no-wait",
            "set",
            "Open_vSwitch",
            ".",
            "other_config:dpdk-init=true",
            &format!("other_config:pmd-cpu-mask={mask:#x}"),
            "other_config:dpdk-lcore-mask=0x1",
            "other_config:dpdk-socket-mem=512",
            // Otherwise it takes what others were meant to have.
            "other_config:dpdk-socket-limit=512",
            &format!("other_config:userspace-tso-enable={tso}"),
            &format!(
                "other_config:dpdk-extra=--no-pci --no-telemetry --file-prefix=nyo{}",
                std::process::id()
            ),
        ]);
        let daemon = quiet(DAEMON, ovs.dir.path())
            .arg(format!("--unixctl={}", ovs.control().display()))
            .arg(format!("unix:{}", ovs.dir.path().join("db.sock").display()))
            .spawn()
            .unwrap_or_else(|error| panic!("{DAEMON} did not start: {error}"));
        ovs.daemon = Some(daemon);
        ovs.vsctl(&[
            "add-br",
            BRIDGE,
            "--",
            "set",
            "bridge",
            BRIDGE,
            "datapath_type=netdev",
        ]);
        ovs
    }

    /// Where the socket of port `name` has to be listened on.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.sock"))
    }

    /// Adds a port that connects to its socket.
    ///
    /// # Panics
    /// When it is refused.
    pub fn add_port(&self, name: &str) {
        let socket = self.socket(name);
        self.vsctl(&[
            "add-port",
            BRIDGE,
            name,
            "--",
            "set",
            "Interface",
            name,
            "type=dpdkvhostuserclient",
            &format!("options:vhost-server-path={}", socket.display()),
        ]);
    }

    /// The process that forwards.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().map_or(0, Child::id)
    }

    /// Begins to count its work anew.
    ///
    /// # Panics
    /// When it is refused.
    pub fn clear_work(&self) {
        self.appctl("dpif-netdev/pmd-stats-clear");
    }

    /// Nanoseconds that a frame took since then.
    ///
    /// # Panics
    /// When it does not say.
    pub fn work(&self) -> Option<f64> {
        work::of_open_vswitch(&self.appctl("dpif-netdev/pmd-stats-show"))
    }

    /// Where the daemon takes commands.
    fn control(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    fn appctl(&self, command: &str) -> String {
        bin::succeed(
            Command::new("ovs-appctl")
                .arg("--timeout=30")
                .arg("--target")
                .arg(self.control())
                .arg(command),
        )
    }

    fn vsctl(&self, args: &[&str]) {
        let socket = self.dir.path().join("db.sock");
        bin::succeed(
            Command::new("ovs-vsctl")
                .arg(format!("--db=unix:{}", socket.display()))
                .arg("--timeout=30")
                .args(args),
        );
    }
}

fn quiet(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    for name in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"] {
        command.env(name, dir);
    }
    command
        .args(["--no-chdir", "-vconsole:off", "-vsyslog:off"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

impl Drop for Ovs {
    fn drop(&mut self) {
        // Only peers; nothing of them is kept.
        for child in self.daemon.iter_mut().chain([&mut self.database]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
