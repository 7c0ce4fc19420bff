//! The emulated host, and `sriov` in it.

use std::process::{Command, Output};

use netyard_tests::bin;
use netyard_tests::lab::{Place, Yard};
use serde_json::Value;

/// The emulated host, booted with `words` on its kernel command line.
pub(crate) struct Machine(Yard);

impl Machine {
    pub(crate) fn boot(words: &str) -> Self {
        let yard = Yard::new(Place::Emulated);
        bin::succeed(yard.command().args(["host", "up", "--append", words]));
        Self(yard)
    }

    pub(crate) fn output(&self, argv: &[&str]) -> Output {
        bin::finish(self.0.command().args(["host", "exec", "--"]).args(argv))
    }

    pub(crate) fn succeed(&self, argv: &[&str]) -> String {
        bin::succeed(self.0.command().args(["host", "exec", "--"]).args(argv))
    }

    pub(crate) fn shell(&self, script: &str) -> String {
        self.succeed(&["sh", "-c", script])
    }

    /// `sriov` with these arguments: exit code and all that it printed.
    pub(crate) fn sriov(&self, arguments: &str) -> (i32, String) {
        let program = bin::path("sriov").display().to_string();
        let mut argv = vec![program.as_str()];
        argv.extend(arguments.split_whitespace());
        let output = self.output(&argv);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        (output.status.code().unwrap_or(-1), text)
    }

    pub(crate) fn done(&self, arguments: &str) -> String {
        let (code, text) = self.sriov(arguments);
        assert_eq!(code, 0, "sriov {arguments}: {text}");
        text
    }

    pub(crate) fn refused(&self, arguments: &str, part: &str) {
        let (code, text) = self.sriov(arguments);
        assert_ne!(code, 0, "sriov {arguments}: {text}");
        assert!(text.contains(part), "sriov {arguments}: no `{part}` in {text}");
    }

    /// The interface of a function, as the kernel names it.
    pub(crate) fn interface(&self, bdf: &str) -> String {
        self.shell(&format!("ls /sys/bus/pci/devices/{bdf}/net"))
            .trim()
            .to_owned()
    }

    pub(crate) fn driver(&self, bdf: &str) -> String {
        let link = format!("basename $(readlink /sys/bus/pci/devices/{bdf}/driver || echo none)");
        self.shell(&link).trim().to_owned()
    }

    /// What `ip link` tells of the virtual functions of `pf`.
    pub(crate) fn ip_link(&self, pf: &str) -> Value {
        let text = self.succeed(&["ip", "-j", "link", "show", pf]);
        let links: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
        links[0]["vfinfo_list"].clone()
    }

    /// `lab` outside, for labs inside.
    pub(crate) fn lab(&self) -> Command {
        self.0.command()
    }

    /// Runs a dry run's output in a shell.
    pub(crate) fn in_shell(&self, arguments: &str) {
        let program = bin::path("sriov").display().to_string();
        self.shell(&format!(
            "set -e; {program} {arguments} --dry-run > /tmp/writes; cat /tmp/writes; sh -e /tmp/writes"
        ));
    }

    pub(crate) fn drivers<const N: usize>(&self, functions: [&str; N]) -> [String; N] {
        functions.map(|bdf| self.driver(bdf))
    }
}
