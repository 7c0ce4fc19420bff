//! The program `lab`: what it refuses, and that whatever goes wrong, nothing stays behind.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const LAB: &str = env!("CARGO_BIN_EXE_lab");
/// Longer than a busy machine takes for anything here.
const LIMIT: Duration = Duration::from_mins(2);

/// A run folder of this test's own, with lab files beside it.
struct Place {
    folder: TempDir,
    lab: PathBuf,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            lab: LAB.into(),
        }
    }

    fn run(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A file that can be run.
    fn program(&self, name: &str, text: &str) {
        let path = self.file(name, text);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.lab);
        command
            .args(arguments)
            .env("NETYARD_RUN_DIR", self.run())
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that succeeds; its standard output.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that fails with `code`; its standard error.
    fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {}",
            stderr(&output)
        );
        stderr(&output)
    }

    fn state(&self, lab: &str) -> serde_json::Value {
        let text = fs::read(self.run().join("labs").join(lab).join("state.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Starts `lab up` and waits until its first machine has a process.
    fn up_until_a_machine_runs(&self, file: &Path, lab: &str) -> Child {
        let mut child = self
            .command(&["up", file.to_str().unwrap(), "--engine", "qemu"])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("a machine runs", || {
            assert_eq!(child.try_wait().unwrap(), None, "lab up goes on");
            self.state(lab)["processes"]
                .as_array()
                .is_some_and(|processes| !processes.is_empty())
        });
        child
    }

    /// Whether neither a file nor a process of a lab is left.
    fn assert_nothing_left(&self) {
        for folder in ["labs", "vswitch"] {
            let left: Vec<_> = fs::read_dir(self.run().join(folder))
                .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
                .unwrap_or_default();
            assert!(left.is_empty(), "left in {folder}: {left:?}");
        }
        let left = processes_about(self.run().to_str().unwrap());
        assert!(left.is_empty(), "processes left: {left:?}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A test that failed leaves no machines behind.
        for entry in fs::read_dir(self.run().join("labs"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            self.output(&["down", "--now", "--lab", &name]);
        }
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The command lines of living processes that name `text`.
fn processes_about(text: &str) -> Vec<String> {
    let of = |entry: fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(text).then_some(line)
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(of).collect()
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Two machines on a switch.
fn pair(name: &str) -> String {
    format!(
        "name: {name}\nswitches: {{lan: {{}}}}\nnodes:\n  a: {{nics: [{{switch: lan, ip: 10.0.0.1/24}}]}}\n  \
         b: {{nics: [{{switch: lan, ip: 10.0.0.2/24}}]}}\n"
    )
}

/// A node may name an engine that does not run here: that is the host's refusal, as it is for all of a lab.
#[test]
fn an_engine_that_the_host_cannot_run_is_refused_by_the_host() {
    if topologies::engine::hardware_kvm().is_ok() {
        return;
    }
    let place = Place::new();
    place.file("a.lab.yaml", "switches: {}\nnodes: {a: {}, b: {engine: vmm}}\n");
    place.file("b.lab.yaml", "switches: {}\nnodes: {a: {}}\n");
    for (arguments, named) in [
        (
            &["validate", "--plan", "a.lab.yaml"][..],
            "node b is to run under vmm",
        ),
        (&["up", "a.lab.yaml"], "node b is to run under vmm"),
        (
            &["up", "b.lab.yaml", "--engine", "vmm"],
            "engine vmm cannot run here",
        ),
    ] {
        let text = place.fails(3, arguments);
        assert!(text.contains(named), "{text}");
    }
}

#[test]
fn a_file_with_faults_is_refused_with_their_places() {
    let place = Place::new();
    let text = pair("x").replace("a: {nics: [{switch: lan,", "a: {nics: [{swich: lan,");
    place.file("x.lab.yaml", &text);
    let text = place.fails(1, &["validate", "x.lab.yaml"]);
    assert_eq!(
        text,
        "lab: x.lab.yaml:4:15: unknown key `swich`; did you mean `switch`? (keys known here: switch, vf, pci, mac, \
         ip, queues, isolate, mtu, vlan, promisc, spoof, control_queue)\n"
    );
    assert!(
        place
            .fails(1, &["up", "none.yaml"])
            .contains("none.yaml: cannot be read")
    );
    place.assert_nothing_left();
}

#[test]
fn validate_says_what_would_run() {
    let place = Place::new();
    place.file("x.lab.yaml", &pair("x"));
    assert_eq!(
        place.ok(&["validate", "x.lab.yaml"]),
        "x.lab.yaml: lab x is fine: 2 nodes, 1 switch\n"
    );
    let lab: serde_json::Value =
        serde_json::from_str(&place.ok(&["validate", "x.lab.yaml", "--format", "json"])).unwrap();
    assert_eq!(lab["nodes"][1]["nics"][0]["ip"], "10.0.0.2/24");
}

#[test]
fn commands_about_labs_that_are_not_up_say_what_to_do() {
    let place = Place::new();
    place.file("x.lab.yaml", &pair("x"));
    assert_eq!(place.ok(&["list"]), "no lab is up: `lab up FILE` starts one\n");
    assert_eq!(place.ok(&["down", "x.lab.yaml"]), "lab x was not up\n");
    assert_eq!(
        place.fails(1, &["status"]),
        "lab: no lab is up; start one with `lab up FILE`\n"
    );
    assert_eq!(
        place.fails(255, &["exec", "--lab", "x", "a", "--", "true"]),
        "lab: lab x is not up; start it with `lab up FILE`, see `lab list`\n"
    );
    place.fails(2, &["exec"]);
    assert_eq!(place.ok(&["list", "--format", "json"]), "[]\n");
}

/// `PATH` with a QEMU in front that aborts instead of running a machine: each time, or no more once it has.
fn path_with_a_qemu_that_aborts(place: &Place, once: bool) -> OsString {
    let path = std::env::var_os("PATH").unwrap();
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    let real = folders
        .iter()
        .map(|folder| folder.join("qemu-system-x86_64"))
        .find(|path| path.exists())
        .unwrap();
    let bin = place.folder.path().join("bin");
    let aborted = bin.join("aborted");
    let only = if once {
        format!(" && [ ! -e {} ]", aborted.display())
    } else {
        String::new()
    };
    fs::create_dir(&bin).unwrap();
    place.program(
        "bin/qemu-system-x86_64",
        &format!(
            "#!/bin/sh\nif [ \"$1\" != --version ]{only}\nthen >{}; echo a failed assertion >&2; kill -ABRT $$; fi\nexec {} \"$@\"\n",
            aborted.display(),
            real.display()
        ),
    );
    folders.insert(0, bin);
    std::env::join_paths(folders).unwrap()
}

#[test]
fn e2e_a_software_cpu_that_aborts_is_started_again() {
    let place = Place::new();
    place.file("x.lab.yaml", &pair("x"));
    let up = |once| {
        let output = place
            .command(&["up", "x.lab.yaml", "--engine", "qemu"])
            .env("PATH", path_with_a_qemu_that_aborts(&place, once))
            .output()
            .unwrap();
        (output.status.code(), stderr(&output))
    };
    let (code, text) = up(true);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("the monitor aborted, booting it again: a failed assertion"),
        "{text}"
    );
    place.ok(&["exec", "a", "--", "ping", "-c", "1", "-W", "20", "10.0.0.2"]);
    let processes = place.state("x")["processes"].as_array().unwrap().len();
    assert_eq!(processes, 2, "the state names the processes that there are");
    place.ok(&["down", "x.lab.yaml"]);
    place.assert_nothing_left();

    fs::remove_dir_all(place.folder.path().join("bin")).unwrap();
    let (code, text) = up(false);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("stopped before it was ready (signal: 6 (SIGABRT)"),
        "{text}"
    );
    place.assert_nothing_left();
}

#[test]
fn a_missing_switch_program_is_refused_before_anything_runs() {
    let mut place = Place::new();
    place.file("x.lab.yaml", &pair("x"));
    // Alone in its folder, and with a path that holds QEMU but none of our programs.
    let alone = place.folder.path().join("bin");
    fs::create_dir(&alone).unwrap();
    fs::copy(LAB, alone.join("lab")).unwrap();
    place.lab = alone.join("lab");
    place.program(
        "bin/qemu-system-x86_64",
        "#!/bin/sh\necho QEMU emulator version 10.0.2\n",
    );
    let output = place
        .command(&["up", "x.lab.yaml", "--engine", "qemu"])
        .env("PATH", &alone)
        .env_remove("NETYARD_LIBEXEC")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("`vswitch` is neither beside `lab`"),
        "{}",
        stderr(&output)
    );
    place.assert_nothing_left();
}

#[test]
fn e2e_a_guest_that_panics_fails_the_lab_and_nothing_stays() {
    let place = Place::new();
    let text = pair("x").replace("  b: {", "  b: {cmdline: rdinit=/nonexistent root=/dev/nope, ");
    place.file("x.lab.yaml", &text);
    let text = place.fails(1, &["up", "x.lab.yaml", "--engine", "qemu"]);
    assert!(text.contains("lab: the kernel of node b panicked"), "{text}");
    assert!(
        text.contains("  | ") && text.contains("Kernel panic - not syncing"),
        "{text}"
    );
    place.assert_nothing_left();
}

#[test]
fn e2e_an_interrupted_start_leaves_nothing() {
    for how in [Signal::INT, Signal::TERM] {
        let place = Place::new();
        let file = place.file("x.lab.yaml", &pair("x"));
        let mut child = place.up_until_a_machine_runs(&file, "x");
        signal(&child, how);
        assert_eq!(child.wait().unwrap().code(), Some(1));
        place.assert_nothing_left();
    }
}

#[test]
fn e2e_what_a_killed_lab_left_is_shown_and_removed() {
    let place = Place::new();
    let file = place.file("x.lab.yaml", &pair("x"));
    let mut child = place.up_until_a_machine_runs(&file, "x");
    signal(&child, Signal::KILL);
    child.wait().unwrap();
    let shown: serde_json::Value =
        serde_json::from_str(&place.ok(&["status", "x.lab.yaml", "--format", "json"])).unwrap();
    assert_eq!(shown["state"], "incomplete");
    place.ok(&["down", "x.lab.yaml"]);
    place.assert_nothing_left();
    place.ok(&["down", "x.lab.yaml"]);
}

#[test]
fn e2e_two_labs_with_the_same_addresses_run_side_by_side() {
    let place = Place::new();
    for name in ["x", "y"] {
        let file = place.file(&format!("{name}.lab.yaml"), &pair(name));
        place.ok(&["up", file.to_str().unwrap(), "--engine", "qemu"]);
    }
    let again = place.fails(1, &["up", "x.lab.yaml", "--engine", "qemu"]);
    assert!(again.contains("lab x is up already"), "{again}");
    let several = place.fails(255, &["exec", "a", "--", "true"]);
    assert!(several.contains("several labs are up: x, y"), "{several}");
    for name in ["x", "y"] {
        place.ok(&[
            "exec", "--lab", name, "a", "--", "ping", "-c", "1", "-W", "20", "10.0.0.2",
        ]);
    }
    // One lab's machines are not the other's business.
    let pid = place.state("y")["processes"][1]["id"]["pid"].as_i64().unwrap();
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
    let state = |name: &str| -> serde_json::Value {
        serde_json::from_str(&place.ok(&["status", "--lab", name, "--format", "json"])).unwrap()
    };
    wait_until("the killed machine is missed", || {
        state("y")["state"] == "degraded"
    });
    assert_eq!(state("y")["nodes"][1]["state"], "stopped");
    assert_eq!(state("x")["state"], "running");
    for name in ["x", "y"] {
        place.ok(&["down", "--lab", name]);
    }
    place.assert_nothing_left();
}
