//! A lab of the test's own, driven by the `lab` command line.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use topologies::emulated::Host;

use crate::monitor::Monitor;
use crate::{bin, deadline};

/// Where the lab's machines run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On this machine, under QEMU.
    Qemu,
    /// In the emulated host, under our own `vmm`.
    Emulated,
}

impl Place {
    fn args(self) -> &'static [&'static str] {
        match self {
            Self::Qemu => &["--engine", "qemu"],
            Self::Emulated => &["--engine", "vmm", "--host", "emulated"],
        }
    }

    /// How long something takes there that a person would wait a moment for.
    pub fn patience(self) -> Duration {
        match self {
            Self::Qemu => Duration::from_mins(1),
            Self::Emulated => Duration::from_mins(4),
        }
    }
}

/// A run folder, in which labs live for as long as the value does. Labs in an emulated host share the one that belongs to the
/// folder.
#[derive(Debug)]
pub struct Yard {
    run: TempDir,
    place: Place,
    variables: Vec<(&'static str, PathBuf)>,
}

impl Yard {
    /// A folder with nothing in it.
    ///
    /// # Panics
    /// When the folder cannot be made.
    pub fn new(place: Place) -> Self {
        let run = tempfile::Builder::new()
            .prefix("ny-")
            .tempdir()
            .expect("a folder for the test");
        Self {
            run,
            place,
            variables: Vec::new(),
        }
    }

    /// Sets a variable for all `lab` commands.
    pub fn set(&mut self, name: &'static str, value: &Path) {
        self.variables.push((name, value.to_path_buf()));
    }

    /// Where the labs of this folder run.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        self.run.path()
    }

    /// A `lab` command in this folder.
    pub fn command(&self) -> Command {
        let mut command = bin::command("lab", self.run.path());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The monitor of the QEMU that the emulated host runs in.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn monitor(&self) -> Monitor {
        Monitor::connect(&Host::in_folder(self.dir().join("emulated-host")).monitor())
    }

    /// Writes a lab file with two nodes on one switch.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn two_nodes(&self, name: &str, isolate: bool) -> PathBuf {
        self.two_nodes_and(name, 2, isolate, "")
    }

    /// As [`two_nodes`](Self::two_nodes), with as many queue pairs on each NIC, and more nodes as they stand in a lab file.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn two_nodes_and(&self, name: &str, queues: u16, isolate: bool, more: &str) -> PathBuf {
        let node = |node: &str, last: u8| {
            let isolate = if isolate {
                ", isolate: true"
            } else {
                ", control_queue: true"
            };
            format!(
                "  {node}: {{cpus: 2, memory: 256M, nics: [{{switch: lan, ip: 10.0.0.{last}/24, queues: {queues}{isolate}}}]}}\n"
            )
        };
        let text = format!(
            "name: {name}\nswitches: {{lan: }}\nnodes:\n{}{}{more}",
            node("a", 1),
            node("b", 2)
        );
        let path = self.run.path().join(format!("{name}.lab.yaml"));
        std::fs::write(&path, text).expect("the lab file is written");
        path
    }

    /// Brings a lab up.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn up(&self, file: &Path) -> Lab<'_> {
        let name = file
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let name = name.trim_end_matches(".lab.yaml").to_owned();
        bin::succeed(self.command().arg("up").arg(file).args(self.place.args()));
        self.adopt(&name)
    }

    /// The lab of this name, which was started by other means.
    pub fn adopt(&self, name: &str) -> Lab<'_> {
        Lab {
            yard: self,
            name: name.to_owned(),
        }
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        if self.place == Place::Emulated {
            // What is in it goes with it; a test that failed is told about elsewhere.
            let _ = self.command().args(["host", "down"]).output();
        }
    }
}

/// A lab that is up until it is taken down, at the latest when the value goes.
#[derive(Debug)]
pub struct Lab<'a> {
    yard: &'a Yard,
    name: String,
}

impl Lab<'_> {
    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The run folder that it lives in.
    pub fn yard(&self) -> &Yard {
        self.yard
    }

    /// `lab status`, parsed.
    ///
    /// # Panics
    /// When it is not JSON.
    pub fn status(&self) -> Value {
        let text = bin::succeed(
            self.yard
                .command()
                .args(["status", "--lab", &self.name, "--format", "json"]),
        );
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// A node's entry in the status.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn node(&self, name: &str) -> Value {
        entry(&self.status()["nodes"], name)
    }

    /// The only switch's entry in the status.
    pub fn switch(&self) -> Value {
        self.status()["switches"][0].clone()
    }

    /// A port's entry in the status.
    ///
    /// # Panics
    /// When there is no such port.
    pub fn port(&self, name: &str) -> Value {
        entry(&self.switch()["ports"], name)
    }

    /// A command that runs in a node.
    pub fn exec(&self, node: &str, argv: &[&str]) -> Command {
        let mut command = self.yard.command();
        command.args(["exec", "--lab", &self.name, node, "--"]).args(argv);
        command
    }

    /// Runs a command in a node that has to succeed; gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, node: &str, argv: &[&str]) -> String {
        bin::succeed(&mut self.exec(node, argv))
    }

    /// Runs a command in a node until it succeeds.
    ///
    /// # Panics
    /// When it does not within the place's patience.
    pub fn run_until(&self, node: &str, argv: &[&str]) -> String {
        deadline::wait_for(&argv.join(" "), self.yard.place.patience(), || {
            let output = bin::finish(&mut self.exec(node, argv));
            output
                .status
                .success()
                .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        })
    }

    /// Starts a command in a node and leaves it running.
    ///
    /// # Panics
    /// When `lab` does not start.
    pub fn start(&self, node: &str, argv: &[&str]) -> Running {
        let child = self
            .exec(node, argv)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Running(Some(child.unwrap_or_else(|error| panic!("{argv:?}: {error}"))))
    }

    /// A command on the machine that the lab's processes run on.
    pub fn on_host(&self, argv: &[&str]) -> Command {
        match self.yard.place {
            Place::Qemu => {
                let mut command = Command::new(bin_or_name(argv[0]));
                command.env("NETYARD_RUN_DIR", self.yard.dir()).args(&argv[1..]);
                command
            }
            Place::Emulated => {
                let mut command = self.yard.command();
                let program = bin_or_name(argv[0]);
                command.args(["host", "exec", "--"]).arg(program).args(&argv[1..]);
                command
            }
        }
    }

    /// Takes the lab down.
    ///
    /// # Panics
    /// When that fails.
    pub fn down(self) {
        bin::succeed(self.yard.command().args(["down", "--lab", &self.name]));
    }
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        // Nothing to do after `down`; after a failed test nothing may stay.
        let _ = self
            .yard
            .command()
            .args(["down", "--now", "--lab", &self.name])
            .output();
    }
}

/// A command that runs in a node while the test goes on.
#[derive(Debug)]
pub struct Running(Option<Child>);

impl Running {
    /// Waits for its end.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn finish(mut self) -> Output {
        let child = self.0.take().expect("it is finished only once");
        child.wait_with_output().expect("it can be waited for")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn bin_or_name(name: &str) -> PathBuf {
    match name {
        "vswitch" | "lab" | "vmm" | "sriov" => bin::path(name),
        name => PathBuf::from(name),
    }
}

fn entry(list: &Value, name: &str) -> Value {
    let found = list
        .as_array()
        .and_then(|all| all.iter().find(|entry| entry["name"] == name));
    found.unwrap_or_else(|| panic!("no {name} in {list}")).clone()
}

/// The processes whose run folder is `dir`, by command name.
pub fn processes_of(dir: &Path) -> Vec<String> {
    let needle = format!("NETYARD_RUN_DIR={}", dir.display());
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| {
        let environment = std::fs::read(entry.path().join("environ")).ok()?;
        let ours = environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == needle.as_bytes());
        ours.then(|| std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default())
    })
    .collect()
}
