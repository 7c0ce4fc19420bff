//! What the emulated host is made of, and the QEMU command line that runs it.

use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command};

use super::{CHANNELS, Host, HostError, Record};
use crate::agent::Channels;
use crate::engine::Qemu;
use crate::initramfs::cache::Cache;
use crate::initramfs::{self, Image, Recipe};
use crate::process::{ProcessId, Start};
use crate::programs;

/// The first QEMU with `igb`, the NIC with virtual functions.
const NEEDED: (u32, u32) = (8, 0);

/// Marks its process, as labs mark theirs.
const MARK: &str = "emulated-host";

/// Size of the `NVMe` drive: a file with holes.
const DRIVE: u64 = 64 << 20;

/// Variables that choose another kernel than Debian's own, for tests of interfaces that this one lacks: the package that depends
/// on it, and a folder of modules that were made for it.
const KERNEL: &str = "NETYARD_HOST_KERNEL";
/// See [`KERNEL`].
const MODULES: &str = "NETYARD_HOST_MODULES";

const RECIPE: Recipe<'static> = Recipe {
    name: "emulated-host",
    kernel: "linux-image-amd64",
    modules: None,
    tools: &[],
    load: &[
        "virtio_pci",
        "virtio_console",
        "virtio_rng",
        "9p",
        "9pnet_virtio",
        "overlay",
        "kvm_amd",
        "tun",
        "vhost_net",
        "igb",
        "button",
        "evdev",
    ],
    available: &[
        "tap",
        "bridge",
        "veth",
        "vxlan",
        "8021q",
        "macvtap",
        "dummy",
        "sch_netem",
        "igbvf",
        "e1000e",
        "e1000",
        "nvme",
        "vfio_pci",
        "vfio_iommu_type1",
    ],
    links: &[],
    files: &[
        ("init", 0o755, include_str!("init.sh")),
        ("etc/inittab", 0o644, include_str!("inittab")),
        ("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n"),
        ("etc/group", 0o644, "root:x:0:\n"),
    ],
};

/// Everything that a boot needs, checked.
#[derive(Debug)]
pub(super) struct Boot {
    qemu: PathBuf,
    image: Image,
    memory_mib: u32,
}

impl Boot {
    pub(super) fn prepare(
        memory_mib: u32,
        cache: &Cache,
        progress: &dyn Fn(&str),
    ) -> Result<Self, HostError> {
        let qemu = programs::system("qemu-system-x86_64", "qemu-system-x86")?;
        let output = Command::new(&qemu)
            .arg("--version")
            .output()
            .map_err(HostError::Version)?;
        let text = String::from_utf8_lossy(&output.stdout);
        check_version(&text)?;
        if let Some(available) = available_mib(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default())
            && available < u64::from(memory_mib)
        {
            return Err(HostError::Memory {
                wanted: memory_mib,
                available,
            });
        }
        let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let kernel = named(KERNEL).map(|name| name.to_string_lossy().into_owned());
        let modules = named(MODULES).map(PathBuf::from);
        let recipe = Recipe {
            kernel: kernel.as_deref().unwrap_or(RECIPE.kernel),
            modules: modules.as_deref(),
            ..RECIPE
        };
        let image = initramfs::ensure(&recipe, cache, progress)?;
        Ok(Self {
            qemu,
            image,
            memory_mib,
        })
    }

    pub(super) fn record(&self, process: ProcessId) -> Record {
        Record {
            process,
            memory_mib: self.memory_mib,
            image: self.image.manifest.key.clone(),
            kernel: self.image.manifest.kernel.clone(),
        }
    }

    pub(super) fn start(&self, host: &Host) -> Result<Child, HostError> {
        let drive = host.drive();
        File::create(&drive)
            .and_then(|file| file.set_len(DRIVE))
            .map_err(|source| HostError::Folder { path: drive, source })?;
        let start = Start {
            program: &self.qemu,
            arguments: &self.arguments(host),
            log: &host.qemu_log(),
            mark: MARK,
            run: host.folder.parent().unwrap_or(&host.folder),
        };
        Ok(start.spawn()?)
    }

    fn arguments(&self, host: &Host) -> Vec<OsString> {
        let console = host.log();
        let mut arguments: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        option("-name", "netyard-emulated-host".into());
        option("-M", "q35,kernel-irqchip=split".into());
        option("-accel", "tcg,tb-size=1024".into());
        // Without these two features of SVM nested guests run dependably.
        option("-cpu", "max,+svm,-vgif,-v-vmsave-vmload".into());
        option("-m", format!("{}M", self.memory_mib).into());
        // With more CPUs nested guests hang.
        option("-smp", "1".into());
        option("-display", "none".into());
        option(
            "-qmp",
            joined("unix:", &escaped(&host.monitor()), ",server=on,wait=off"),
        );
        option("-serial", joined("file:", &console, ""));
        option("-kernel", self.image.kernel().into());
        option("-initrd", self.image.initrd().into());
        // On a busy machine the timer's check, which counts ticks, fails though the timer works, and the kernel panics.
        option(
            "-append",
            format!(
                "console=ttyS0 panic=-1 quiet no_timer_check intel_iommu=on netyard.9p=msize=512000,cache=loose {}",
                host.kernel_words
            )
            .into(),
        );
        option("-device", "intel-iommu,intremap=on,caching-mode=on".into());
        hardware(host, &mut option);
        option("-object", "rng-random,id=rng,filename=/dev/urandom".into());
        option("-device", "virtio-rng-pci,rng=rng".into());
        option(
            "-fsdev",
            "local,id=outer,path=/,security_model=none,readonly=on,multidevs=remap".into(),
        );
        option("-device", "virtio-9p-pci,fsdev=outer,mount_tag=outer".into());
        option("-device", "virtio-serial-pci,id=channels".into());
        for index in 0..CHANNELS {
            let socket = host.channels.socket(index);
            option(
                "-chardev",
                joined(
                    &format!("socket,id=c{index},server=on,wait=off,path="),
                    &escaped(&socket),
                    "",
                ),
            );
            let name = Channels::name(index);
            option(
                "-device",
                format!(
                    "virtserialport,bus=channels.0,nr={},chardev=c{index},name={name}",
                    index + 1
                )
                .into(),
            );
        }
        arguments.extend(["-nodefaults".into(), "-no-reboot".into()]);
        arguments
    }
}

fn joined(before: &str, path: &std::path::Path, after: &str) -> OsString {
    let mut value = OsString::from(before);
    value.push(path);
    value.push(after);
    value
}

/// PCI devices to give to guests, each behind a root port of its own: `igb`, an SR-IOV NIC, and `e1000e`, one without, on one
/// wire with a gateway, 10.0.2.2; an `NVMe` drive; a NIC of two functions in one IOMMU group, wired to each other; and two
/// conventional PCI NICs behind one bridge. Their names are for QEMU's monitor.
fn hardware(host: &Host, option: &mut dyn FnMut(&str, OsString)) {
    for port in 1..=5 {
        // Windows that are small enough for all of them to be below 4 GiB: igb's virtual functions do not answer above.
        let device = format!("pcie-root-port,id=rp{port},bus=pcie.0,chassis={port},pref32-reserve=4M");
        option("-device", device.into());
    }
    option("-netdev", "user,id=user,restrict=on".into());
    for (wire, end) in [
        (0, "gateway"),
        (0, "igb"),
        (0, "e1000e"),
        (1, "pair0"),
        (1, "pair1"),
        (2, "old0"),
        (2, "old1"),
    ] {
        let behind = if end == "gateway" { ",netdev=user" } else { "" };
        option("-netdev", format!("hubport,hubid={wire},id={end}{behind}").into());
    }
    option("-device", "igb,id=igb,netdev=igb,bus=rp1,romfile=".into());
    option(
        "-device",
        "e1000e,id=e1000e,netdev=e1000e,bus=rp2,romfile=".into(),
    );
    option(
        "-drive",
        joined(
            "if=none,id=nvme,format=raw,cache=unsafe,file=",
            &escaped(&host.drive()),
            "",
        ),
    );
    option("-device", "nvme,id=nvme,drive=nvme,serial=netyard,bus=rp3".into());
    for function in 0..2 {
        let place = format!("bus=rp4,addr=0.{function},multifunction=on");
        option(
            "-device",
            format!("e1000e,netdev=pair{function},{place},romfile=").into(),
        );
    }
    option("-device", "pcie-pci-bridge,id=old,bus=rp5".into());
    for slot in 0..2 {
        let place = format!("bus=old,addr={}", slot + 1);
        option(
            "-device",
            format!("e1000,netdev=old{slot},{place},romfile=").into(),
        );
    }
}

/// A path in a list of QEMU options: a comma is written twice.
fn escaped(path: &std::path::Path) -> PathBuf {
    path.to_string_lossy().replace(',', ",,").into()
}

fn check_version(text: &str) -> Result<(), HostError> {
    let found = Qemu::parse_version(text);
    if found.is_some_and(|found| found >= NEEDED) {
        return Ok(());
    }
    let show = |(major, minor)| format!("{major}.{minor}");
    Err(HostError::OldQemu {
        found: found.map_or("of unknown version".into(), show),
        needed: show(NEEDED),
    })
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_qemu_is_refused_with_the_cure() {
        check_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n").unwrap();
        check_version("QEMU emulator version 8.0.0\n").unwrap();
        let error = check_version("QEMU emulator version 7.2.13 (Debian)\n")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("7.2") && error.contains("8.0") && error.contains("bookworm-backports"),
            "{error}"
        );
        check_version("something else").unwrap_err();
    }

    #[test]
    fn available_memory_is_read() {
        assert_eq!(
            available_mib("MemTotal: 9 kB\nMemAvailable:    2097152 kB\n"),
            Some(2048)
        );
        assert_eq!(available_mib(""), None);
    }

    #[test]
    fn the_outer_root_is_shared_read_only_and_there_is_one_cpu() {
        let manifest = crate::initramfs::Manifest {
            name: "x".into(),
            key: "k".into(),
            recipe: "r".into(),
            kernel: "6.1".into(),
            packages: std::collections::BTreeMap::new(),
        };
        let boot = Boot {
            qemu: "qemu".into(),
            image: Image {
                folder: "/i".into(),
                manifest,
            },
            memory_mib: 2048,
        };
        let arguments = boot.arguments(&Host::in_folder("/run/a,b").with_kernel_words("intremap=off"));
        let text: Vec<_> = arguments
            .iter()
            .map(|argument| argument.to_string_lossy())
            .collect();
        let text = text.join(" ");
        assert!(text.contains("path=/,security_model=none,readonly=on"), "{text}");
        assert!(text.contains("-smp 1 ") && text.contains("-m 2048M "), "{text}");
        assert!(text.contains("path=/run/a,,b/agent.15.sock"), "{text}");
        assert!(text.contains("file=/run/a,,b/nvme.img "), "{text}");
        assert!(
            text.contains("-qmp unix:/run/a,,b/monitor.sock,server=on,wait=off "),
            "{text}"
        );
        assert!(text.contains("cache=loose intremap=off "), "{text}");
    }
}
