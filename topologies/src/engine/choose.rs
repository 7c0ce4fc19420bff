//! Which engine runs a lab on this host.

use std::path::Path;
use std::process::Command;

use super::{Engine, EngineKind, Qemu, Vmm};
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
    /// QEMU does not run.
    #[error("`{QEMU} --version` does not tell its version ({0}); install the package qemu-system-x86 again")]
    Version(String),
}

/// An engine, and why it was taken.
#[derive(Debug)]
pub struct Choice {
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// One line for the user.
    pub reason: String,
}

/// Takes the engine asked for, or the best that works here.
pub fn choose(asked: EngineArg) -> Result<Choice, EngineError> {
    let hardware = hardware_kvm();
    let wanted = match (asked, &hardware) {
        (EngineArg::Vmm, Err(why)) => return Err(EngineError::NoHardware(why.clone())),
        (EngineArg::Vmm | EngineArg::Auto, Ok(())) => EngineKind::Vmm,
        (EngineArg::Qemu, _) | (EngineArg::Auto, Err(_)) => EngineKind::Qemu,
    };
    let because = match (asked, &hardware) {
        (EngineArg::Auto, Ok(())) => "KVM is backed by this host's hardware".to_owned(),
        (EngineArg::Auto, Err(why)) => why.clone(),
        _ => "as asked for".to_owned(),
    };
    Ok(match wanted {
        EngineKind::Vmm => Choice {
            engine: Box::new(Vmm::new(programs::own("vmm")?)),
            reason: format!("engine vmm: {because}"),
        },
        EngineKind::Qemu => {
            let program = programs::system(QEMU, "qemu-system-x86")?;
            let version = qemu_version(&program)?;
            let cpu = if hardware.is_ok() { "KVM" } else { "a software CPU" };
            Choice {
                engine: Box::new(Qemu::new(program, version, hardware.is_ok())),
                reason: format!("engine qemu {}.{} with {cpu}: {because}", version.0, version.1),
            }
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

    #[test]
    fn only_the_flags_of_a_cpu_count() {
        assert!(has_virtualization("processor: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_virtualization("flags : fpu svm\n"));
        assert!(!has_virtualization(
            "flags : fpu sse\nvmx flags : vnmi\nmodel name : vmx\n"
        ));
        assert!(!has_virtualization("flags : fpu svm_lock\n"));
    }

    #[test]
    fn vmm_without_hardware_is_refused_with_the_cure() {
        if let Err(why) = hardware_kvm() {
            let text = choose(EngineArg::Vmm).unwrap_err().to_string();
            assert_eq!(
                text,
                format!("engine vmm cannot run here: {why}; use --engine qemu, or --host emulated")
            );
        }
    }
}
