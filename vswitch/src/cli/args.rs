//! What can be asked for.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::config::LinkSetting;
use crate::daemon::SettingsArgs;
use crate::mac::MacAddr;

/// A learning Ethernet switch for virtual machines
#[derive(Debug, Parser)]
#[command(
    name = "vswitch",
    version,
    after_help = "Examples:
  vswitch up br0                                  start a bridge
  vswitch port add br0 vm1 --queues 2             give it a port; prints the port's vhost-user socket
  vswitch port add br0 host --tap tap0            let this host join it
  vswitch show br0                                its ports and their counters
  vswitch fdb show br0                            which address is on which port
  vswitch down br0                                stop it and remove its files

Files are kept under $NETYARD_RUN_DIR, else $XDG_RUNTIME_DIR/netyard, else /run/netyard (root)
or /tmp/netyard-UID.

Exit codes: 0 done, 1 failed, 2 usage, 3 refused by the host."
)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
    /// How to print
    #[arg(
        long,
        short,
        global = true,
        value_enum,
        default_value_t,
        env = "VSWITCH_FORMAT"
    )]
    pub(super) format: Format,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start a bridge; what it was made of before its daemon was killed or stopped is restored
    Up(UpArgs),
    /// Stop a bridge and remove its files
    Down {
        /// Name of the bridge
        bridge: String,
    },
    /// Replace a bridge's daemon by a new process, of this program or another; the ports' peers notice nothing
    #[command(after_help = "Examples:
  vswitch restart br0
  vswitch restart br0 --program /opt/netyard/bin/vswitch")]
    Restart {
        /// Name of the bridge
        bridge: String,
        /// The program that goes on with the bridge; this one if left out
        #[arg(long, value_name = "PATH")]
        program: Option<PathBuf>,
    },
    /// Show a bridge with its ports and workers, or all bridges
    ///
    /// BUSY MS is the time that a worker spent on bursts, each from the look that found it until its last frame was delivered; what that
    /// is for each of its FRAMES is NS/FRAME. POLLING MS is the time of looks that found nothing, WAKE-UPS is how often it slept and was
    /// woken. Workers count from the start of the daemon on.
    Show {
        /// Name of the bridge
        bridge: Option<String>,
    },
    /// Add, delete and list ports
    #[command(subcommand)]
    Port(PortCommand),
    /// Show and change the forwarding database
    #[command(subcommand)]
    Fdb(FdbCommand),
    /// Print counters in Prometheus' text format
    Metrics {
        /// Name of the bridge
        bridge: String,
    },
    /// Print the OpenAPI document of the bridges' API
    Openapi,
    /// Print a completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one for each command
    Man {
        /// Write the pages of all commands into this folder
        #[arg(long, value_name = "FOLDER")]
        folder: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vswitch up br0
  vswitch up br0 --workers 2 --cpus 2,3 --poll adaptive
  vswitch up br0 --fdb-size 1024 --on-full flood
  vswitch up br0 --foreground")]
pub(super) struct UpArgs {
    /// Name of the bridge
    pub(super) bridge: String,
    /// Run in this process instead of a detached one
    #[arg(long)]
    pub(super) foreground: bool,
    /// Leave the session of whoever started this process
    #[arg(long, hide = true, requires = "foreground")]
    pub(super) new_session: bool,
    /// Go on with the bridge of the daemon on the other end of the standard input
    #[arg(long, hide = true, requires = "foreground")]
    pub(super) take_over: bool,
    #[command(flatten)]
    pub(super) settings: SettingsArgs,
}

impl UpArgs {
    /// The settings as arguments for the detached daemon.
    pub(super) fn passed_on(&self) -> Vec<String> {
        fn name<T: ValueEnum>(value: &T) -> Option<String> {
            value.to_possible_value().map(|value| value.get_name().to_owned())
        }
        let settings = &self.settings;
        let cpus = settings
            .cpus
            .as_ref()
            .map(|cpus| cpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
        [
            ("--workers", settings.workers.map(|n| n.to_string())),
            ("--cpus", cpus),
            ("--poll", settings.poll.as_ref().and_then(name)),
            ("--fdb-size", settings.fdb_size.map(|n| n.to_string())),
            ("--ageing", settings.ageing.map(|n| n.to_string())),
            ("--on-full", settings.on_full.as_ref().and_then(name)),
        ]
        .into_iter()
        .filter_map(|(option, value)| Some(format!("{option}={}", value?)))
        .collect()
    }
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OnOff {
    On,
    Off,
}

#[derive(Debug, Subcommand)]
pub(super) enum PortCommand {
    /// Add a port: a vhost-user socket for a VM, or an interface of this host
    #[command(after_help = "Examples:
  vswitch port add br0 vm1
  vswitch port add br0 vm2 --socket /tmp/vm2.sock --queues 4 --mac 52:54:00:00:00:02
  vswitch port add br0 vm3 --mac 52:54:00:00:00:03 --anti-spoof
  vswitch port add br0 host --tap tap0")]
    Add {
        /// Name of the bridge
        bridge: String,
        /// Name of the port
        name: String,
        #[command(flatten)]
        link: LinkArgs,
        /// The most queue pairs
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
        queues: u16,
        /// The address offered to the guest
        #[arg(long)]
        mac: Option<MacAddr>,
        /// The MTU offered to the guest and enforced, 68 to 9216
        #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(68..=9216))]
        mtu: Option<u16>,
        /// Serve the guest's control queue, for a front-end that forwards it
        #[arg(long, conflicts_with = "tap")]
        control_queue: bool,
        /// Drop frames from other addresses than that of --mac and those of --allow-mac
        #[arg(long)]
        anti_spoof: bool,
        /// More addresses that frames may come from
        #[arg(
            long = "allow-mac",
            value_name = "LIST",
            value_delimiter = ',',
            requires = "anti_spoof"
        )]
        allow_macs: Vec<MacAddr>,
    },
    /// Change a port while it is in use
    #[command(after_help = "Examples:
  vswitch port set br0 vm1 --link down            no frame passes, and the guest sees its link down
  vswitch port set br0 vm1 --link up
  vswitch port set br0 vm1 --anti-spoof on        frames from other addresses than the port's are dropped
  vswitch port set br0 vm1 --anti-spoof on --allow-mac 52:54:00:00:00:03")]
    Set {
        /// Name of the bridge
        bridge: String,
        /// Name of the port
        name: String,
        /// Whether frames may pass; the guest sees its link follow
        #[arg(long, value_name = "STATE", required_unless_present = "anti_spoof")]
        link: Option<LinkSetting>,
        /// Whether frames from other addresses than the port's --mac and those of --allow-mac are dropped
        #[arg(long, value_name = "STATE")]
        anti_spoof: Option<OnOff>,
        /// All other addresses that frames may come from
        #[arg(
            long = "allow-mac",
            value_name = "LIST",
            value_delimiter = ',',
            requires = "anti_spoof"
        )]
        allow_macs: Vec<MacAddr>,
    },
    /// Delete a port
    Del {
        /// Name of the bridge
        bridge: String,
        /// Name of the port
        name: String,
    },
    /// List the ports of a bridge
    List {
        /// Name of the bridge
        bridge: String,
    },
    /// Show one port with its queues
    Show {
        /// Name of the bridge
        bridge: String,
        /// Name of the port
        name: String,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct LinkArgs {
    /// Path of the vhost-user socket; in the bridge's folder if left out
    #[arg(long, value_name = "PATH", conflicts_with = "tap")]
    pub(super) socket: Option<PathBuf>,
    /// Connect to the socket, where the VM listens, instead of listening on it
    #[arg(long, requires = "socket")]
    pub(super) client: bool,
    /// Name of an interface of this host, made if it does not exist
    #[arg(long, value_name = "INTERFACE")]
    pub(super) tap: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum FdbCommand {
    /// Show which address is on which port
    Show {
        /// Name of the bridge
        bridge: String,
    },
    /// Add or replace a static entry
    #[command(after_help = "Example:
  vswitch fdb add br0 52:54:00:12:34:56 vm1")]
    Add {
        /// Name of the bridge
        bridge: String,
        /// The address
        mac: MacAddr,
        /// Name of the port
        port: String,
        /// The VLAN
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=0))]
        vlan: u16,
    },
    /// Delete an entry, learned or static
    Del {
        /// Name of the bridge
        bridge: String,
        /// The address
        mac: MacAddr,
        /// The VLAN
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=0))]
        vlan: u16,
    },
    /// Forget learned entries
    Flush {
        /// Name of the bridge
        bridge: String,
        /// Only those of this port
        #[arg(long)]
        port: Option<String>,
    },
}
