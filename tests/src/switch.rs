//! A switch daemon of the test's own, driven by its command line.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::bin;

/// A bridge that is up for as long as the value lives, in a run folder that goes with it.
#[derive(Debug)]
pub struct Switch {
    run: TempDir,
    bridge: String,
    program: PathBuf,
}

impl Switch {
    /// Brings up `bridge` in a fresh run folder, with further `vswitch up` arguments.
    ///
    /// # Panics
    /// When the switch does not come up.
    pub fn up(bridge: &str, args: &[&str]) -> Self {
        Self::of(bin::path("vswitch"), bridge, args)
    }

    /// The same of another `vswitch` program.
    ///
    /// # Panics
    /// When the switch does not come up.
    pub fn of(program: PathBuf, bridge: &str, args: &[&str]) -> Self {
        let run = tempfile::Builder::new()
            .prefix("ny-")
            .tempdir()
            .expect("a folder for the test");
        let switch = Self {
            run,
            bridge: bridge.to_owned(),
            program,
        };
        switch.again(args);
        switch
    }

    /// Brings the same bridge up once more, as after the daemon was killed.
    ///
    /// # Panics
    /// When the switch does not come up.
    pub fn again(&self, args: &[&str]) {
        bin::succeed(self.command().args(["up", &self.bridge]).args(args));
    }

    /// The run folder.
    pub fn run_dir(&self) -> &Path {
        self.run.path()
    }

    /// A `vswitch` command in this run folder.
    pub fn command(&self) -> std::process::Command {
        bin::command_of(&self.program, self.run.path())
    }

    /// Adds a vhost-user port whose socket the switch listens on, and gives back the socket.
    ///
    /// # Panics
    /// When the port is refused.
    pub fn add_port(&self, name: &str, queue_pairs: u16) -> PathBuf {
        let socket = self.run.path().join(format!("{name}.sock"));
        bin::succeed(
            self.command()
                .args(["port", "add", &self.bridge, name])
                .args(["--queues", &queue_pairs.to_string()])
                .arg("--socket")
                .arg(&socket),
        );
        socket
    }

    /// Adds a vhost-user port that connects to a socket which its front-end listens on, and gives back the socket.
    ///
    /// # Panics
    /// When the port is refused.
    pub fn add_client_port(&self, name: &str) -> PathBuf {
        let socket = self.run.path().join(format!("{name}.sock"));
        bin::succeed(
            self.command()
                .args(["port", "add", &self.bridge, name, "--client"])
                .arg("--socket")
                .arg(&socket),
        );
        socket
    }

    /// Kills the daemon with SIGKILL; [`Switch::again`] starts another.
    ///
    /// # Panics
    /// When there is no daemon.
    pub fn kill(&self) {
        let pid = self.show()["pid"].as_u64().expect("the daemon's pid");
        let pid = pid.to_string();
        let killed = std::process::Command::new("kill").args(["-9", &pid]).status();
        assert!(killed.is_ok_and(|status| status.success()), "kill -9 {pid}");
        crate::deadline::wait_for(
            "the daemon to be gone",
            std::time::Duration::from_secs(10),
            || {
                let shown = self.command().args(["show", &self.bridge]).output().ok()?;
                (!shown.status.success()).then_some(())
            },
        );
    }

    /// `vswitch show`, parsed.
    ///
    /// # Panics
    /// When the switch does not answer with JSON.
    pub fn show(&self) -> Value {
        self.json(&["show", &self.bridge])
    }

    /// The entry of one port in `vswitch show`.
    ///
    /// # Panics
    /// When there is no such port.
    pub fn port(&self, name: &str) -> Value {
        let shown = self.show();
        let ports = shown["ports"].as_array().expect("a list of ports");
        ports
            .iter()
            .find(|port| port["name"] == name)
            .unwrap_or_else(|| panic!("no port {name} in {shown}"))
            .clone()
    }

    /// The forwarding database, parsed.
    ///
    /// # Panics
    /// When the switch does not answer with JSON.
    pub fn fdb(&self) -> Value {
        self.json(&["fdb", "show", &self.bridge])
    }

    fn json(&self, args: &[&str]) -> Value {
        let text = bin::succeed(self.command().args(args).args(["--format", "json"]));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error} in {text}"))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // A test that killed the daemon itself leaves nothing to take down, so the outcome does not matter here.
        let _ = self.command().args(["down", &self.bridge]).output();
    }
}
