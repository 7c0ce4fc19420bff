//! The how-to pages about devices of the host: every command that they show, on a host that has such devices.

use std::process::Command;

use netyard_tests::{bin, markdown};

use crate::machine::Machine;

fn run_page(machine: &Machine, page: &str) {
    let root = markdown::repository();
    let text = std::fs::read_to_string(root.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
    let binaries = bin::path("lab");
    let binaries = binaries.parent().expect("it is in a folder").display();
    let path = std::env::var("PATH").unwrap_or_default();
    for shown in markdown::commands(&text) {
        let mut command: Command = machine.lab();
        command
            .args([
                "host",
                "exec",
                "--",
                "bash",
                "-o",
                "pipefail",
                "-ec",
                &shown.command,
            ])
            .current_dir(&root)
            .env("PATH", format!("{binaries}:{path}"));
        let output = bin::finish(&mut command);
        let printed = [output.stdout, output.stderr].concat();
        let printed = String::from_utf8_lossy(&printed);
        eprintln!("$ {}\n{printed}", shown.command);
        assert_eq!(
            output.status.success(),
            !shown.fails,
            "{page}:{}: {} ended with {}\n{printed}",
            shown.line,
            shown.command,
            output.status
        );
    }
}

#[test]
fn e2e_howtos_about_devices() {
    let machine = Machine::boot("");
    // The host uses its other NICs itself.
    machine.shell("modprobe -a e1000e nvme");
    for page in markdown::ABOUT_DEVICES {
        run_page(&machine, page);
    }
}
