//! Which engine runs a lab on this host.

use std::path::Path;
use std::process::Command;

use super::{Engine, EngineKind, Engines, Qemu, Vmm};
use crate::lab::Lab;
use crate::programs::{self, ProgramError};

const QEMU: &str = "qemu-system-x86_64";

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum EngineArg {
    /// vmm where hardware backs KVM, else qemu
    #[default]
    Auto,
    /// Netyard's own machine monitor; needs hardware virtualization
    Vmm,
    /// QEMU; with a software CPU where there is no hardware virtualization
    Qemu,
}

/// No engine can run the lab.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A program is missing.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// `vmm` was asked for and cannot work.
    #[error("engine vmm cannot run here: {0}; use --engine qemu, or --host emulated")]
    NoHardware(String),
    /// A machine names `vmm`, which cannot work.
    #[error(
        "node {0} is to run under vmm, which cannot run here: {1}; change its `engine`, or use --host emulated"
    )]
    NodeWithoutHardware(String, String),
    /// QEMU does not run.
    #[error("`{QEMU} --version` does not tell its version ({0}); install the package qemu-system-x86 again")]
    Version(String),
}

impl EngineError {
    /// Whether it is the host that cannot do what was asked for.
    pub fn is_the_hosts(&self) -> bool {
        matches!(self, Self::NoHardware(_) | Self::NodeWithoutHardware(..))
    }
}

/// The engines of a lab, and why they were taken.
#[derive(Debug)]
pub struct Choice {
    /// The engines.
    pub engines: Engines,
    /// For the user: a line for the usual one, and one for each other that a machine names.
    pub reasons: Vec<String>,
}

/// Takes the engine asked for, or the best that works here, and what single machines of the lab name.
pub fn choose(asked: EngineArg, lab: &Lab) -> Result<Choice, EngineError> {
    let hardware = hardware_kvm();
    let usual = match (asked, &hardware) {
        (EngineArg::Vmm, Err(why)) => return Err(EngineError::NoHardware(why.clone())),
        (EngineArg::Vmm | EngineArg::Auto, Ok(())) => EngineKind::Vmm,
        (EngineArg::Qemu, _) | (EngineArg::Auto, Err(_)) => EngineKind::Qemu,
    };
    let because = match (asked, &hardware) {
        (EngineArg::Auto, Ok(())) => "KVM is backed by this host's hardware",
        (EngineArg::Auto, Err(why)) => why,
        _ => "as asked for",
    };
    let (engine, reason) = find(usual, hardware.is_ok(), because)?;
    let mut choice = Choice {
        engines: Engines::new(engine),
        reasons: vec![reason],
    };
    for kind in [EngineKind::Vmm, EngineKind::Qemu] {
        let named = lab.nodes.iter().find(|node| node.engine == Some(kind));
        let Some(node) = named.filter(|_| kind != usual) else {
            continue;
        };
        if let (EngineKind::Vmm, Err(why)) = (kind, &hardware) {
            return Err(EngineError::NodeWithoutHardware(node.name.clone(), why.clone()));
        }
        let because = format!("of node {} and others that name it", node.name);
        let (engine, reason) = find(kind, hardware.is_ok(), &because)?;
        choice.engines.add(engine);
        choice.reasons.push(reason);
    }
    Ok(choice)
}

/// Finds the programs of an engine. The text is for the user.
fn find(kind: EngineKind, hardware: bool, because: &str) -> Result<(Box<dyn Engine>, String), EngineError> {
    Ok(match kind {
        EngineKind::Vmm => (
            Box::new(Vmm::new(programs::own("vmm")?)),
            format!("engine vmm: {because}"),
        ),
        EngineKind::Qemu => {
            let program = programs::system(QEMU, "qemu-system-x86")?;
            let version = qemu_version(&program)?;
            let cpu = if hardware { "KVM" } else { "a software CPU" };
            (
                Box::new(Qemu::new(program, version, hardware)),
                format!("engine qemu {}.{} with {cpu}: {because}", version.0, version.1),
            )
        }
    })
}

fn qemu_version(program: &Path) -> Result<(u32, u32), EngineError> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .map_err(|error| EngineError::Version(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Qemu::parse_version(&text).ok_or_else(|| EngineError::Version(format!("{}", output.status)))
}

/// Whether guests can run on this host's hardware; else why not, in a few words.
pub fn hardware_kvm() -> Result<(), String> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !has_virtualization(&cpuinfo) {
        return Err("this CPU shows no hardware virtualization (vmx or svm)".to_owned());
    }
    std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map(drop)
        .map_err(|error| format!("/dev/kvm cannot be opened ({error})"))
}

/// A software-only KVM module may serve `/dev/kvm` on a CPU that has neither flag; it does not boot Linux.
fn has_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::RunDir;

    #[test]
    fn only_the_flags_of_a_cpu_count() {
        assert!(has_virtualization("processor: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_virtualization("flags : fpu svm\n"));
        assert!(!has_virtualization(
            "flags : fpu sse\nvmx flags : vnmi\nmodel name : vmx\n"
        ));
        assert!(!has_virtualization("flags : fpu svm_lock\n"));
    }

    fn lab(engine: &str) -> Lab {
        let text = format!("name: t\nswitches: {{}}\nnodes: {{a: {{}}, b: {{{engine}}}}}\n");
        crate::check::check(Path::new("x.lab.yaml"), &text, &RunDir::new("/run/netyard")).unwrap()
    }

    #[test]
    fn vmm_without_hardware_is_refused_with_the_cure() {
        if let Err(why) = hardware_kvm() {
            let text = choose(EngineArg::Vmm, &lab("")).unwrap_err().to_string();
            assert_eq!(
                text,
                format!("engine vmm cannot run here: {why}; use --engine qemu, or --host emulated")
            );
            let text = choose(EngineArg::Auto, &lab("engine: vmm")).unwrap_err();
            assert_eq!(
                text.to_string(),
                format!(
                    "node b is to run under vmm, which cannot run here: {why}; change its `engine`, or use --host emulated"
                )
            );
        }
    }
}
