//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub mod options;
pub mod run;

use crate::machine::config::{ChannelConfig, DiskConfig, NetConfig, NodeConfig};
use crate::vfio::Source;
use options::{MemoryOption, SerialOption};

/// Exit code: refused or failed.
pub const EXIT_FAILED: u8 = 1;
/// Exit code: wrong usage.
pub const EXIT_USAGE: u8 = 2;
/// Exit code: this host cannot run guests, or refuses what the VM needs.
pub const EXIT_HOST: u8 = 3;
/// Exit code: the guest panicked.
pub const EXIT_PANICKED: u8 = 10;
/// Exit code: somebody stopped the VM.
pub const EXIT_STOPPED: u8 = 11;
/// Exit code: the hypervisor could not go on with the guest.
pub const EXIT_FAULT: u8 = 12;

/// Runs one virtual machine on KVM.
#[derive(Debug, Parser)]
#[command(name = "vmm", version, about, long_about = None, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: CliCommand,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum CliCommand {
    /// Run a virtual machine until its guest powers off.
    Run(Box<RunArgs>),
    /// Say whether this host can run guests, and what to do where it cannot.
    Check,
    /// Speak to a running virtual machine through its API socket.
    #[command(after_help = CTL_EXAMPLES)]
    Ctl(CtlArgs),
    /// Give a running virtual machine devices of the host, and take them back.
    #[command(after_help = DEVICE_EXAMPLES)]
    Device(DeviceArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one for each command.
    Man {
        /// Write the pages of all commands into this folder.
        #[arg(long, value_name = "FOLDER")]
        folder: Option<PathBuf>,
    },
}

const RUN_EXAMPLES: &str = "\
Examples:
  Boot a kernel with an initial RAM disk, console on this terminal (Ctrl-A x leaves):
    vmm run --kernel vmlinuz --initrd initrd.gz
  Two processors, and a network card with two queue pairs on a switch:
    vmm run --name a --kernel vmlinuz --initrd initrd.gz --cpus 2 --memory 512M \\
      --net socket=/run/netyard/vswitch/br0/ports/a.sock,mac=02:00:00:00:00:01,queues=2
  Two NUMA nodes, and a console on /dev/hvc0 rather than on the serial port:
    vmm run --kernel vmlinuz --initrd initrd.gz --cmdline console=hvc0 --console stdio \\
      --cpus 4 --memory 1G --numa cpus=0-1,memory=512M --numa cpus=2-3,memory=512M
  A disk, a channel, and the console on a socket:
    vmm run --kernel vmlinuz --cmdline 'console=ttyS0 root=/dev/vda' --disk path=root.img \\
      --channel name=org.example.0,socket=channel.sock --serial socket=serial.sock,log=serial.log

Signals: SIGTERM or SIGINT asks the guest to power off; a second one stops it.

Exit codes:
  0 the guest powered off      3 refused by the host      11 stopped by a signal or the API
  1 failed                    10 the guest panicked       12 the hypervisor could not go on
  2 wrong usage";

const CTL_EXAMPLES: &str = "\
Examples:
  vmm ctl --api-socket a.sock info
  vmm ctl --api-socket a.sock shutdown";

const DEVICE_EXAMPLES: &str = "\
Examples:
  vmm device --api-socket a.sock add 0000:01:10.0
  vmm device --api-socket a.sock del 0000:01:10.0

The device has to be bound to vfio-pci: see `sriov bind`.";

/// A virtual machine.
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub struct RunArgs {
    /// Name of the virtual machine.
    #[arg(long, default_value = "vm", value_parser = options::name)]
    pub name: String,
    /// Kernel: a bzImage (vmlinuz), or an ELF file (vmlinux) with a PVH entry.
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0", value_parser = options::cmdline)]
    pub cmdline: String,
    /// Processors.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    pub cpus: u8,
    /// RAM, for example 512M or 2G; hugepages=on takes it from reserved 2 MiB pages.
    #[arg(long, value_name = "SIZE[,hugepages=on]", default_value = "512M")]
    pub memory: MemoryOption,
    /// A NUMA node of the guest: its processors, its part of --memory, and the node of the host to take that from; may be
    /// given several times.
    #[arg(long, value_name = "cpus=N[-M],memory=SIZE[,host-node=N]", value_parser = options::numa)]
    pub numa: Vec<NodeConfig>,
    /// A network card on a vhost-user back-end; may be given several times.
    #[arg(long, value_name = "socket=PATH[,mac=MAC][,queues=N][,mode=client|server]", value_parser = options::net)]
    pub net: Vec<NetConfig>,
    /// A disk in a raw file; may be given several times.
    #[arg(long, value_name = "path=FILE[,readonly=on]", value_parser = options::disk)]
    pub disk: Vec<DiskConfig>,
    /// A PCI device of the host, bound to vfio-pci: its address, its folder in sysfs, or an open descriptor; may be given
    /// several times.
    #[arg(long, value_name = "ADDRESS|FOLDER|fd=N")]
    pub device: Vec<Source>,
    /// A named channel to the guest on a Unix socket; may be given several times.
    #[arg(long, value_name = "name=NAME,socket=PATH", value_parser = options::channel)]
    pub channel: Vec<ChannelConfig>,
    /// Other end of the serial port, stdio unless the console has that; log=FILE also keeps a copy of all output.
    #[arg(long, value_name = "stdio|pty|off|file=FILE|socket=PATH[,log=FILE]")]
    pub serial: Option<SerialOption>,
    /// Other end of the virtio console, which the guest knows as hvc0.
    #[arg(
        long,
        value_name = "stdio|pty|off|file=FILE|socket=PATH[,log=FILE]",
        default_value = "off"
    )]
    pub console: SerialOption,
    /// Listen for the HTTP API on this Unix socket.
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,
    /// End when the guest resets, rather than starting it again.
    #[arg(long)]
    pub no_reboot: bool,
}

/// What to tell a running virtual machine.
#[derive(Debug, Args)]
pub struct CtlArgs {
    /// Its API socket.
    #[arg(long, value_name = "PATH")]
    pub api_socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub action: CtlAction,
}

/// Devices of the host in a running virtual machine.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Its API socket.
    #[arg(long, value_name = "PATH")]
    pub api_socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub action: DeviceAction,
}

/// What to do with devices.
#[derive(Debug, Clone, Subcommand)]
pub enum DeviceAction {
    /// Give the guest devices: all of them, or none.
    Add {
        /// Its PCI address, or its folder in sysfs. Functions of one device that are given together share a slot.
        #[arg(value_name = "ADDRESS|FOLDER", required = true)]
        devices: Vec<Source>,
    },
    /// Ask the guest to let go of a device, and of what shares its slot, and wait until it has.
    Del {
        /// What `list` calls it.
        device: Source,
        /// Take it away at once, without asking the guest.
        #[arg(long)]
        force: bool,
    },
    /// Print the devices that the guest has.
    List,
}

/// What to tell a running virtual machine.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum CtlAction {
    /// Print what it is and does, as JSON.
    Info,
    /// Ask the guest to power off.
    Shutdown,
    /// Stop it at once.
    PowerOff,
    /// Reset the guest.
    Reset,
    /// Hold its processors; devices of the host that it has go on.
    Pause,
    /// Let its processors run on.
    Resume,
}
