//! Every command that the book shows is run here, in the order of its page, and has to succeed.

use std::path::Path;
use std::process::Command;

use netyard_tests::{bin, markdown};

/// Takes down whatever a page that failed half-way has left up; after a page that went through there is nothing to do.
struct Leftovers<'a>(&'a Path);

impl Drop for Leftovers<'_> {
    fn drop(&mut self) {
        let names = |folder: &str| {
            let entries = std::fs::read_dir(self.0.join(folder))
                .into_iter()
                .flatten()
                .flatten();
            entries.map(|entry| entry.file_name()).collect::<Vec<_>>()
        };
        let lab = || bin::command("lab", self.0);
        for name in names("labs") {
            let _ = lab().args(["down", "--now", "--lab"]).arg(name).output();
        }
        let _ = lab().args(["host", "down"]).output();
        for name in names("vswitch") {
            let _ = bin::command("vswitch", self.0).arg("down").arg(name).output();
        }
    }
}

/// Runs the commands of one page in a run folder of their own.
fn run_page(page: &str) {
    let root = markdown::repository();
    let text = std::fs::read_to_string(root.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
    let run = tempfile::Builder::new()
        .prefix("ny-")
        .tempdir()
        .expect("a folder for the test");
    let _leftovers = Leftovers(run.path());
    let binaries = bin::path("lab");
    let binaries = binaries.parent().unwrap_or(Path::new("."));
    let path = std::env::var("PATH").unwrap_or_default();
    for shown in markdown::commands(&text) {
        let mut command = Command::new("bash");
        command
            .args(["-o", "pipefail", "-ec", &shown.command])
            .current_dir(&root)
            .env("NETYARD_RUN_DIR", run.path())
            .env("PATH", format!("{}:{path}", binaries.display()));
        let output = bin::finish(&mut command);
        assert!(
            output.status.success(),
            "{page}:{}: {} ended with {}\n{}{}",
            shown.line,
            shown.command,
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// The pages with commands, so that a new page cannot be forgotten.
const PAGES: &[&str] = &[
    "docs/src/tutorial.md",
    "docs/src/howto/qemu.md",
    "docs/src/howto/host-tap.md",
    "docs/src/howto/isolate.md",
    "docs/src/howto/emulated-host.md",
    "docs/src/howto/restart.md",
];

#[test]
fn every_page_with_commands_is_run() {
    let root = markdown::repository();
    let mut pending = vec![root.join("docs/src")];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).expect("the book is there") {
            let path = entry.expect("a folder entry").path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a page is text");
            let name = path
                .strip_prefix(&root)
                .expect("below the root")
                .display()
                .to_string();
            assert!(
                markdown::commands(&text).is_empty()
                    || PAGES.contains(&name.as_str())
                    || markdown::ABOUT_DEVICES.contains(&name.as_str()),
                "{name} shows commands that no test runs"
            );
        }
    }
}

#[test]
fn e2e_tutorial() {
    run_page(PAGES[0]);
}

#[test]
fn e2e_howto_qemu() {
    run_page(PAGES[1]);
}

#[test]
fn e2e_howto_host_tap() {
    run_page(PAGES[2]);
}

#[test]
fn e2e_howto_isolate() {
    run_page(PAGES[3]);
}

#[test]
fn e2e_howto_emulated_host() {
    run_page(PAGES[4]);
}

#[test]
fn howto_restart() {
    run_page(PAGES[5]);
}
