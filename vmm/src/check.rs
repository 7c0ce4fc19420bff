//! `vmm check`: whether this host can run guests.
//!
//! One line for each thing looked at: `ok`, `note` (works, but could be better) or `FAIL`, what was found, and the cure.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use kvm_ioctls::{Cap, Kvm};

use crate::cli::EXIT_HOST;

#[cfg(test)]
mod tests;

/// Said where KVM is there and the processor's virtualization is not.
pub const SOFTWARE_KVM: &str = "KVM here has no virtualization hardware under it (no vmx or svm in the CPU flags): it emulates \
     instruction by instruction and stops at the first one that it does not know; use `lab up --host emulated` or \
     `lab up --engine qemu`";

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Guests run, but something is missing.
    Note,
    /// Guests do not run.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub subject: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found, and the cure if it is not well.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Fail => "FAIL",
        };
        write!(f, "{verdict:<4}  {:<12}  {}", self.subject, self.text)
    }
}

fn finding(subject: &'static str, verdict: Verdict, text: impl Into<String>) -> Finding {
    Finding {
        subject,
        verdict,
        text: text.into(),
    }
}

/// Prints all findings; the exit code is 0 if guests can run here, else 3.
pub fn main() -> ExitCode {
    let findings = all();
    for finding in &findings {
        println!("{finding}");
    }
    let fails = findings.iter().any(|f| f.verdict == Verdict::Fail);
    if fails {
        ExitCode::from(EXIT_HOST)
    } else {
        ExitCode::SUCCESS
    }
}

/// Looks at everything.
pub fn all() -> Vec<Finding> {
    let kvm = Kvm::new();
    let cpuinfo = read("/proc/cpuinfo");
    let mut findings = vec![cpu(&cpuinfo, kvm.is_ok()), device(kvm.as_ref().err())];
    if let Ok(kvm) = &kvm {
        findings.push(features(kvm));
        findings.push(limits(kvm));
    }
    findings.push(memory(&read("/proc/meminfo")));
    findings.push(transparent(&read(
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
    )));
    findings.push(hugepages(&read("/proc/meminfo")));
    findings.push(iommu(Path::new("/sys/class/iommu")));
    findings.push(memlock(&read("/proc/self/limits")));
    findings
}

/// True if the processor has the extensions that KVM wants.
pub fn has_hardware_virtualization() -> bool {
    flags(&read("/proc/cpuinfo")).is_some()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn flags(cpuinfo: &str) -> Option<&'static str> {
    let line = cpuinfo.lines().find(|l| l.starts_with("flags"))?;
    ["vmx", "svm"]
        .into_iter()
        .find(|wanted| line.split_whitespace().any(|flag| flag == *wanted))
}

fn cpu(cpuinfo: &str, kvm: bool) -> Finding {
    match (flags(cpuinfo), kvm) {
        (Some(flag), _) => finding("processor", Verdict::Ok, format!("has {flag}")),
        (None, true) => finding("processor", Verdict::Fail, SOFTWARE_KVM),
        (None, false) => finding(
            "processor",
            Verdict::Fail,
            "has neither vmx nor svm: switch virtualization on in the firmware, or nested virtualization on if this is \
             a guest; else use `lab up --host emulated`",
        ),
    }
}

fn device(error: Option<&kvm_ioctls::Error>) -> Finding {
    let path = "/dev/kvm";
    let Some(error) = error else {
        return finding("/dev/kvm", Verdict::Ok, "opens");
    };
    let text = match error.errno() {
        libc::ENOENT => {
            "is missing: `modprobe kvm-intel` or `modprobe kvm-amd`; in a container, pass the device in"
                .to_owned()
        }
        libc::EACCES | libc::EPERM => {
            let mode = std::fs::metadata(path).map_or(0, |m| m.mode() & 0o777);
            format!(
                "may not be opened (mode {mode:03o}): `usermod -aG kvm $USER` and log in again, or run as root"
            )
        }
        _ => format!("does not open: {error}; look at `dmesg | grep kvm`"),
    };
    finding("/dev/kvm", Verdict::Fail, text)
}

fn features(kvm: &Kvm) -> Finding {
    let wanted = [
        (Cap::Irqchip, "irqchip"),
        (Cap::IrqRouting, "irq routing"),
        (Cap::Irqfd, "irqfd"),
        (Cap::Ioeventfd, "ioeventfd"),
        (Cap::IoeventfdNoLength, "ioeventfd of any length"),
        (Cap::ImmediateExit, "immediate exit"),
        (Cap::TscDeadlineTimer, "TSC deadline timer"),
    ];
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .map(|(_, n)| *n)
        .collect();
    if missing.is_empty() {
        finding(
            "KVM",
            Verdict::Ok,
            format!("API version {}, all features", kvm.get_api_version()),
        )
    } else {
        finding(
            "KVM",
            Verdict::Fail,
            format!("lacks {}: use a kernel of 5.10 or later", missing.join(", ")),
        )
    }
}

fn limits(kvm: &Kvm) -> Finding {
    let (good, max) = (kvm.get_nr_vcpus(), kvm.get_max_vcpus());
    finding(
        "limits",
        Verdict::Ok,
        format!(
            "{good} vCPUs recommended, {max} at most, {} memory slots",
            kvm.get_nr_memslots()
        ),
    )
}

fn kib(meminfo: &str, key: &str) -> u64 {
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

fn memory(meminfo: &str) -> Finding {
    let free = kib(meminfo, "MemAvailable") / 1024;
    if free >= 256 {
        finding("memory", Verdict::Ok, format!("{free} MiB available"))
    } else {
        finding(
            "memory",
            Verdict::Note,
            format!("only {free} MiB available: give guests less with --memory"),
        )
    }
}

fn transparent(setting: &str) -> Finding {
    let chosen = setting
        .split_whitespace()
        .find_map(|w| w.strip_prefix('[')?.strip_suffix(']'));
    match chosen {
        Some("always" | "within_size" | "advise" | "force") => finding(
            "large pages",
            Verdict::Ok,
            "guest memory gets transparent huge pages",
        ),
        _ => finding(
            "large pages",
            Verdict::Note,
            "guest memory gets small pages: `echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled`",
        ),
    }
}

fn hugepages(meminfo: &str) -> Finding {
    let (free, size) = (kib(meminfo, "HugePages_Free"), kib(meminfo, "Hugepagesize"));
    if free > 0 && size == 2048 {
        finding(
            "hugetlbfs",
            Verdict::Ok,
            format!("{free} free pages of 2 MiB for --memory …,hugepages=on"),
        )
    } else {
        finding(
            "hugetlbfs",
            Verdict::Note,
            "no free 2 MiB pages; only --memory …,hugepages=on needs them: `sysctl vm.nr_hugepages=N`",
        )
    }
}

fn iommu(class: &Path) -> Finding {
    let present = std::fs::read_dir(class).is_ok_and(|mut entries| entries.next().is_some());
    if present {
        finding("IOMMU", Verdict::Ok, "on; devices can be passed through")
    } else {
        finding(
            "IOMMU",
            Verdict::Note,
            "off; only passing devices through needs it: boot with intel_iommu=on or switch it on in the firmware",
        )
    }
}

fn memlock(limits: &str) -> Finding {
    let line = limits
        .lines()
        .find(|l| l.starts_with("Max locked memory"))
        .unwrap_or_default();
    let soft = line.split_whitespace().nth(3).unwrap_or("unknown");
    if soft == "unlimited" {
        finding("memlock", Verdict::Ok, "unlimited")
    } else {
        finding(
            "memlock",
            Verdict::Note,
            format!(
                "{soft} bytes; only passing devices through needs all of a guest's memory: `ulimit -l unlimited`"
            ),
        )
    }
}
