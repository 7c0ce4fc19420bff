//! A guest under one of the monitors that are compared: the same kernel, image, memory and number of CPUs under each.

use std::fmt;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use topologies::agent::Channels;
use topologies::image;
use topologies::initramfs::cache::Cache;

use crate::bin;

/// What our image's agent prints as the last step of the boot.
const READY: &str = "netyard: ready";

/// The memory files that hold guest RAM: ours and QEMU's.
const RAM: [&str; 2] = ["/memfd:netyard-ram", "/memfd:memory-backend-memfd"];

/// A virtual machine monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Monitor {
    /// Ours.
    Vmm,
    /// QEMU's machine with PCI Express.
    Q35,
    /// QEMU's machine without PCI and with little firmware.
    Microvm,
}

impl fmt::Display for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vmm => "`vmm`",
            Self::Q35 => "QEMU `q35`",
            Self::Microvm => "QEMU `microvm`",
        })
    }
}

/// The other end of a guest's NIC.
#[derive(Debug, Clone)]
pub enum Nic {
    /// A vhost-user back-end that listens here.
    VhostUser(PathBuf),
    /// A tap with vhost-net, in a network namespace.
    Tap {
        /// The tap.
        name: String,
        /// The namespace that it is in.
        namespace: String,
    },
}

/// Kernel and initial RAM file system, in a folder of this process.
#[derive(Debug)]
pub struct BootFiles {
    folder: tempfile::TempDir,
}

impl BootFiles {
    /// Copies of the guest image's files, so that no monitor pays for reading them first.
    ///
    /// # Panics
    /// When there is no image and none can be built.
    pub fn copy() -> Self {
        let image = image::ensure(image::DEFAULT, &Cache::of_user(), &|text| {
            eprintln!("image: {text}");
        })
        .unwrap_or_else(|error| panic!("{error}"));
        let folder = tempfile::Builder::new()
            .prefix("ny-")
            .tempdir()
            .expect("a folder for the kernel");
        for (from, to) in [(image.kernel(), "vmlinuz"), (image.initrd(), "initrd.cpio")] {
            fs::copy(&from, folder.path().join(to))
                .unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

/// A running guest with one CPU and 256 MiB; it ends with the value.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    started: Instant,
    ready: Receiver<Instant>,
    _files: tempfile::TempDir,
    channels: Channels,
}

impl Guest {
    /// Starts a guest without a NIC and without an agent channel.
    ///
    /// # Panics
    /// When the monitor cannot be started.
    pub fn start_bare(monitor: Monitor, boot: &BootFiles) -> Self {
        let arguments = arguments(monitor, boot, "");
        Self::spawn(Self::program(monitor), &arguments, folder())
    }

    /// Starts a guest with an agent channel and a NIC of this address. Only for monitors with PCI.
    ///
    /// # Panics
    /// When the monitor cannot be started.
    pub fn start(monitor: Monitor, boot: &BootFiles, nic: &Nic, mac: &str, ip: &str) -> Self {
        let files = folder();
        let mut arguments = arguments(monitor, boot, &format!(" netyard.nic={mac},{ip},1500"));
        let channels = Channels::new(files.path(), 1);
        let (name, socket) = (Channels::name(0), channels.socket(0));
        let socket = socket.display();
        let mut option = |key: &str, value: String| arguments.extend([key.to_owned(), value]);
        if monitor == Monitor::Vmm {
            option("--channel", format!("name={name},socket={socket}"));
        } else {
            option("-device", "virtio-serial-pci".to_owned());
            option(
                "-chardev",
                format!("socket,id=agent,path={socket},server=on,wait=off"),
            );
            option("-device", format!("virtserialport,chardev=agent,name={name}"));
        }
        let mut program = Self::program(monitor);
        match nic {
            Nic::VhostUser(socket) => option("--net", format!("socket={},mac={mac}", socket.display())),
            Nic::Tap { name, namespace } => {
                option(
                    "-netdev",
                    format!("tap,id=net,ifname={name},script=no,downscript=no,vhost=on"),
                );
                option("-device", format!("virtio-net-pci,netdev=net,mac={mac},romfile="));
                let mut inside = Command::new("ip");
                inside
                    .args(["netns", "exec", namespace])
                    .arg(program.get_program());
                program = inside;
            }
        }
        Self::spawn(program, &arguments, files)
    }

    fn program(monitor: Monitor) -> Command {
        match monitor {
            Monitor::Vmm => Command::new(bin::path("vmm")),
            Monitor::Q35 | Monitor::Microvm => Command::new("qemu-system-x86_64"),
        }
    }

    fn spawn(mut program: Command, arguments: &[String], files: tempfile::TempDir) -> Self {
        let started = Instant::now();
        let mut child = program
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program:?} did not start: {error}"));
        let console = child.stdout.take().expect("its console is a pipe");
        let (sender, ready) = channel();
        // Reads on after that, or the guest would wait for its console.
        std::thread::spawn(move || {
            for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
                if String::from_utf8_lossy(&line).contains(READY) {
                    // Nobody may wait for it any more.
                    let _ = sender.send(Instant::now());
                }
            }
        });
        let channels = Channels::new(files.path(), 1);
        Self {
            child,
            started,
            ready,
            _files: files,
            channels,
        }
    }

    /// Waits until the guest is ready, and says how long that took from the start of the process; `None` if it takes longer than
    /// `limit`, or the monitor ends.
    pub fn boot_time(&self, limit: Duration) -> Option<Duration> {
        let at = self.ready.recv_timeout(limit).ok()?;
        Some(at - self.started)
    }

    /// The channels to its agent.
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// What the monitor's process keeps in memory besides the guest's RAM, in KiB.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn overhead_kib(&self) -> u64 {
        let smaps =
            fs::read_to_string(format!("/proc/{}/smaps", self.child.id())).expect("the monitor's mappings");
        resident_besides_ram(&smaps)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It was only there to be measured; nothing of it is kept.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("ny-")
        .tempdir()
        .expect("a folder for the guest")
}

fn arguments(monitor: Monitor, boot: &BootFiles, words: &str) -> Vec<String> {
    let cmdline = format!("console=ttyS0 panic=-1{words}");
    let (kernel, initrd) = (boot.path("vmlinuz"), boot.path("initrd.cpio"));
    let ours = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect();
    if monitor == Monitor::Vmm {
        return ours(&[
            "run",
            "--kernel",
            &kernel,
            "--initrd",
            &initrd,
            "--cmdline",
            &cmdline,
            "--cpus",
            "1",
            "--memory",
            "256M",
            "--serial",
            "stdio",
        ]);
    }
    let machine = if monitor == Monitor::Q35 { "q35" } else { "microvm" };
    ours(&[
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-machine",
        &format!("{machine},memory-backend=ram"),
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-smp",
        "1",
        "-m",
        "256M",
        // RAM of the same kind as ours.
        "-object",
        "memory-backend-memfd,id=ram,size=256M,share=on",
        "-kernel",
        &kernel,
        "-initrd",
        &initrd,
        "-append",
        &cmdline,
        "-serial",
        "stdio",
    ])
}

/// The resident KiB of every mapping in `smaps` that is not the guest's RAM.
fn resident_besides_ram(smaps: &str) -> u64 {
    let mut is_ram = false;
    let mut sum = 0;
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            is_ram = RAM.iter().any(|name| line.contains(name));
        } else if first == "Rss:" && !is_ram {
            let kib = line
                .split_whitespace()
                .nth(1)
                .and_then(|kib| kib.parse::<u64>().ok());
            sum += kib.unwrap_or(0);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::resident_besides_ram;

    #[test]
    fn guest_ram_does_not_count() {
        let smaps = "\
7f00-7f10 rw-s 00000000 00:01 12  /memfd:netyard-ram (deleted)
Size:             262144 kB
Rss:               90000 kB
VmFlags: rd wr sh
7f10-7f20 r-xp 00000000 00:01 13  /usr/bin/vmm
Rss:                3000 kB
7f20-7f30 rw-p 00000000 00:00 0
Rss:                 200 kB
7f30-7f40 rw-s 00000000 00:01 12  /memfd:memory-backend-memfd (deleted)
Rss:               50000 kB
";
        assert_eq!(resident_besides_ram(smaps), 3200);
    }
}
