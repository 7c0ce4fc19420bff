//! The real binary in a run folder of its own.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use netyard_testkit::command::{finish, succeed};
use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::{Guest, wait_for};
use serde_json::Value;

use super::pair::Pair;

/// A run folder; whatever was started in it is stopped at the end.
pub(crate) struct Host {
    pub(crate) folder: tempfile::TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::Builder::new().prefix("vs").tempdir().unwrap(),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vswitch"));
        command
            .args(args)
            .env("NETYARD_RUN_DIR", self.folder.path())
            .env_remove("VSWITCH_FORMAT");
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        finish(&mut self.command(args))
    }

    /// Runs a command that has to succeed; returns its output.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        succeed(&mut self.command(args))
    }

    /// Runs a command that has to fail with this exit code; returns its one line of explanation.
    pub(crate) fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(code == 2 || text.trim_end().lines().count() == 1, "{text}");
        text
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--format", "json"]].concat())).unwrap()
    }

    pub(crate) fn bridge(&self, name: &str) -> PathBuf {
        self.folder.path().join("vswitch").join(name)
    }

    /// The socket of a port of bridge `br0`.
    pub(crate) fn socket(&self, port: &str) -> PathBuf {
        self.bridge("br0").join(format!("ports/{port}.sock"))
    }

    /// Two guests on ports `a` and `b` of bridge `br0`, of which one is to send to the other. They know each other.
    pub(crate) fn pair(&self, options: Options) -> Pair {
        let connect = |name: &str| Guest::connect(&self.socket(name), options);
        let mut pair = Pair::new(connect("a"), connect("b"));
        wait_for("both ports", || {
            let show = self.json(&["show", "br0"]);
            ["a", "b"].iter().all(|name| port(&show, name)["state"] == "up")
        });
        pair.meet();
        pair.run(1000);
        pair
    }

    pub(crate) fn pid(&self, bridge: &str) -> String {
        fs::read_to_string(self.bridge(bridge).join("pid"))
            .unwrap()
            .trim()
            .to_owned()
    }

    /// Ends a daemon without any notice.
    pub(crate) fn kill(&self, bridge: &str) {
        let pid = self.pid(bridge);
        assert!(
            Command::new("kill")
                .args(["-9", &pid])
                .status()
                .unwrap()
                .success()
        );
        let process = PathBuf::from(format!("/proc/{pid}"));
        wait_for("the daemon to be gone", || {
            // A zombie is gone too, once none of its threads keeps the socket open: its parent may not have looked yet.
            let zombie = fs::read_to_string(process.join("stat")).map_or(true, |text| text.contains(") Z"));
            zombie && fs::read_dir(process.join("task")).map_or(0, Iterator::count) <= 1
        });
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let Ok(bridges) = fs::read_dir(self.folder.path().join("vswitch")) else {
            return;
        };
        for bridge in bridges.flatten() {
            self.run(&["down", &bridge.file_name().to_string_lossy()]);
        }
    }
}

/// A port of a bridge's view.
pub(crate) fn port<'a>(view: &'a Value, name: &str) -> &'a Value {
    view["ports"]
        .as_array()
        .unwrap()
        .iter()
        .find(|port| port["name"] == name)
        .unwrap()
}
