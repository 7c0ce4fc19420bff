//! QEMU as the machine monitor: its NICs are vhost-user ports of our switches.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{Engine, EngineKind};
use crate::agent::Channels;
use crate::plan::{NicPlan, NodePlan};

/// QEMU's version that first takes `reconnect-ms` for character devices.
const RECONNECT_MS_SINCE: (u32, u32) = (9, 2);

/// QEMU.
#[derive(Debug, Clone)]
pub struct Qemu {
    program: PathBuf,
    version: (u32, u32),
    hardware: bool,
}

impl Qemu {
    /// QEMU at `program`, of `version` (major, minor); `hardware` says whether KVM is to run the guests.
    pub fn new(program: impl Into<PathBuf>, version: (u32, u32), hardware: bool) -> Self {
        Self {
            program: program.into(),
            version,
            hardware,
        }
    }

    /// The version in the first line of `qemu-system-x86_64 --version`.
    pub(crate) fn parse_version(text: &str) -> Option<(u32, u32)> {
        let mut numbers = text.split("version ").nth(1)?.split(['.', ' ', '\n']);
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }

    fn reconnect(&self) -> &'static str {
        // A switch that was killed and started again finds its machines back on its ports.
        if self.version >= RECONNECT_MS_SINCE {
            "reconnect-ms=200"
        } else {
            "reconnect=1"
        }
    }

    fn nic(&self, arguments: &mut Arguments, index: usize, nic: &NicPlan) {
        let queues = nic.queues;
        arguments.option(
            "-chardev",
            format!(
                "socket,id=port{index},path={},{}",
                escaped(&nic.socket),
                self.reconnect()
            ),
        );
        arguments.option(
            "-netdev",
            format!("vhost-user,id=net{index},chardev=port{index},queues={queues}"),
        );
        // A vector for each virtqueue, one for the control queue, one for configuration changes.
        let vectors = 2 * queues + 2;
        let multi = if queues > 1 { "on" } else { "off" };
        // Packed rings, as under our own engine: the next switch finds in them where one that died had got to.
        arguments.option(
            "-device",
            format!(
                "virtio-net-pci,netdev=net{index},mac={},mq={multi},packed=on,vectors={vectors},romfile=",
                nic.mac
            ),
        );
    }
}

impl Engine for Qemu {
    fn kind(&self) -> EngineKind {
        EngineKind::Qemu
    }

    fn program(&self) -> &Path {
        &self.program
    }

    /// A software CPU of several processors keeps an index into the memory map while another one changes that map, which it
    /// does for each BAR that it probes: now and then an assertion of `iotlb_to_section` fails, seen with QEMU 10.0.
    fn aborts_by_itself(&self) -> bool {
        !self.hardware
    }

    fn arguments(&self, node: &NodePlan) -> Vec<OsString> {
        let mut arguments = Arguments::default();
        // Nothing of ours uses these, and each probe of one is an exit to QEMU, which takes milliseconds in a nested guest.
        let (accelerator, cpu, without) = if self.hardware {
            ("kvm", "host", ",hpet=off,i8042=off,sata=off,smbus=off,vmport=off")
        } else {
            ("tcg,thread=multi", "max", "")
        };
        arguments.option("-name", node.title.clone());
        arguments.flag("-nodefaults");
        arguments.flag("-no-user-config");
        arguments.option("-display", "none".to_owned());
        arguments.option("-machine", format!("q35,memory-backend=ram{without}"));
        arguments.option("-accel", accelerator.to_owned());
        arguments.option("-cpu", cpu.to_owned());
        arguments.option("-smp", node.cpus.to_string());
        arguments.option("-m", format!("{}M", node.memory_mib));
        // The back-ends of the NICs map the guest's memory, so it has to be a file that can be shared.
        arguments.option(
            "-object",
            format!("memory-backend-memfd,id=ram,size={}M,share=on", node.memory_mib),
        );
        arguments.option("-kernel", node.boot.kernel.clone());
        if let Some(initrd) = &node.boot.initrd {
            arguments.option("-initrd", initrd.clone());
        }
        arguments.option("-append", node.cmdline.clone());
        arguments.option("-device", "virtio-rng-pci".to_owned());

        let dir = &node.dir;
        arguments.option(
            "-qmp",
            format!("unix:{},server=on,wait=off", escaped(&dir.api_socket())),
        );
        arguments.option(
            "-chardev",
            format!(
                "socket,id=serial,path={},server=on,wait=off,logfile={},logappend=on",
                escaped(&dir.serial_socket()),
                escaped(&dir.serial_log())
            ),
        );
        arguments.option("-serial", "chardev:serial".to_owned());
        let channels = dir.channels();
        // Port 0 is reserved for a console by the device.
        arguments.option(
            "-device",
            format!("virtio-serial-pci,id=agents,max_ports={}", channels.count() + 1),
        );
        for channel in 0..channels.count() {
            arguments.option(
                "-chardev",
                format!(
                    "socket,id=agent{channel},path={},server=on,wait=off",
                    escaped(&channels.socket(channel))
                ),
            );
            arguments.option(
                "-device",
                format!(
                    "virtserialport,bus=agents.0,nr={},chardev=agent{channel},name={}",
                    channel + 1,
                    Channels::name(channel)
                ),
            );
        }
        for (index, nic) in node.nics.iter().enumerate() {
            self.nic(&mut arguments, index, nic);
        }
        for device in &node.devices {
            arguments.option("-device", format!("vfio-pci,host={device}"));
        }
        for (index, disk) in node.disks.iter().enumerate() {
            let readonly = if disk.readonly { "on" } else { "off" };
            arguments.option(
                "-drive",
                format!(
                    "if=none,id=disk{index},format=raw,readonly={readonly},file={}",
                    escaped(&disk.path)
                ),
            );
            arguments.option("-device", format!("virtio-blk-pci,drive=disk{index}"));
        }
        arguments.0
    }
}

/// A growing list of arguments.
#[derive(Debug, Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.extend([name.into(), value.into()]);
    }
}

/// A path inside a comma-separated option: QEMU reads two commas as one.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2~bpo12+1)\nCopyright";
        assert_eq!(Qemu::parse_version(debian), Some((10, 0)));
        assert_eq!(Qemu::parse_version("QEMU emulator version 7.2\n"), Some((7, 2)));
        assert_eq!(Qemu::parse_version("no such thing"), None);
    }

    #[test]
    fn an_older_qemu_reconnects_too() {
        assert_eq!(Qemu::new("q", (7, 2), false).reconnect(), "reconnect=1");
        assert_eq!(Qemu::new("q", (9, 2), false).reconnect(), "reconnect-ms=200");
    }

    #[test]
    fn a_comma_in_a_path_does_not_start_an_option() {
        assert_eq!(escaped(Path::new("/a,b/c")), "/a,,b/c");
    }
}
