//! The command line of `sriov`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::address::Bdf;
use crate::mac::Mac;
use crate::settings::{LinkState, Settings};

/// Virtual functions and PCI passthrough on the host's side
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  sriov list                                  physical and virtual functions
  sriov check eth0                            what stands in the way, and what to do about it
  sriov create eth0 2                         two virtual functions, each with a stable address
  sriov set eth0 0 --vlan 100 --trust on      attributes of the first
  sriov bind 0000:01:10.0                     give it to vfio-pci, for `vmm run --device`
  sriov release 0000:01:10.0                  give it back to its own driver

Exit codes: 0 fine, 1 failed, 2 usage, 3 refused by the host"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Print each write instead of doing it
    #[arg(long, global = true)]
    pub dry_run: bool,
    /// How lists are printed
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Where former drivers are kept
    #[arg(long, global = true, value_name = "DIR", env = "NETYARD_SRIOV_DIR", default_value_os_t = crate::record::Records::default_dir())]
    pub records: PathBuf,
    /// The root that sys, proc and dev are below
    #[arg(long, global = true, value_name = "DIR", default_value = "/", hide = true)]
    pub root: PathBuf,
}

/// How lists are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show physical and virtual functions
    List {
        /// Show every PCI function
        #[arg(long)]
        all: bool,
    },
    /// Say what stands in the way of passthrough, with cures
    Check {
        /// Interfaces or PCI addresses; all network functions if none is given
        names: Vec<String>,
    },
    /// Give a physical function exactly N virtual functions
    Create {
        /// Interface or PCI address
        pf: String,
        /// How many
        count: u32,
        /// What is allowed.
        #[command(flatten)]
        permit: PermitArgs,
    },
    /// Set attributes of a virtual function
    Set(Box<SetArgs>),
    /// Give a function to vfio-pci
    Bind {
        /// PCI address
        bdf: Bdf,
        /// Take all other functions of its IOMMU group too
        #[arg(long)]
        group: bool,
        /// Also a function that carries the default route
        #[arg(long)]
        allow_default_route: bool,
    },
    /// Give a function back to the driver that it had
    Release {
        /// PCI address
        #[arg(required_unless_present = "all")]
        bdf: Option<Bdf>,
        /// All other functions of its IOMMU group that were bound by `sriov bind` too
        #[arg(long, conflicts_with = "all")]
        group: bool,
        /// Every function that was bound by `sriov bind`
        #[arg(long, conflicts_with = "bdf")]
        all: bool,
    },
    /// Take all virtual functions from a physical function
    Destroy {
        /// Interface or PCI address
        pf: String,
        /// What is allowed.
        #[command(flatten)]
        permit: PermitArgs,
    },
    /// Allocate virtual functions to the NICs of a lab file
    Plan {
        /// Lab file
        file: PathBuf,
    },
    /// Make a declared state true
    Apply {
        /// State file
        file: PathBuf,
        /// What is allowed.
        #[command(flatten)]
        permit: PermitArgs,
    },
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

/// What is refused unless it is allowed.
#[derive(Debug, Clone, Copy, Args)]
pub struct PermitArgs {
    /// Also a physical function that carries the default route
    #[arg(long)]
    pub allow_default_route: bool,
    /// Also where a virtual function is in use
    #[arg(long)]
    pub force: bool,
}

impl From<PermitArgs> for crate::create::Permit {
    fn from(args: PermitArgs) -> Self {
        Self {
            default_route: args.allow_default_route,
            force: args.force,
        }
    }
}

/// `sriov set`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct SetArgs {
    /// Interface or PCI address of the physical function
    pub pf: String,
    /// Index of the virtual function
    pub vf: u32,
    /// Address, or `auto` for a stable one
    #[arg(long, value_parser = parse_mac)]
    pub mac: Option<MacChoice>,
    /// VLAN ID, 0 for none
    #[arg(long)]
    pub vlan: Option<u16>,
    /// Priority in the VLAN tag, 0 to 7
    #[arg(long)]
    pub qos: Option<u8>,
    /// Drop frames with another source address
    #[arg(long, value_enum)]
    pub spoofchk: Option<Switch>,
    /// Let it ask for more addresses and promiscuous mode
    #[arg(long, value_enum)]
    pub trust: Option<Switch>,
    /// The link that it sees
    #[arg(long, value_enum)]
    pub state: Option<LinkState>,
    /// Guaranteed rate in Mbit/s
    #[arg(long)]
    pub min_rate: Option<u32>,
    /// Limit of the rate in Mbit/s
    #[arg(long)]
    pub max_rate: Option<u32>,
}

/// An address that was named, or one to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MacChoice {
    /// The stable one of this VF.
    Auto,
    /// This one.
    Named(Mac),
}

fn parse_mac(text: &str) -> Result<MacChoice, crate::mac::InvalidMac> {
    if text == "auto" {
        return Ok(MacChoice::Auto);
    }
    text.parse().map(MacChoice::Named)
}

/// `on` or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On
    On,
    /// Off
    Off,
}

impl SetArgs {
    /// The settings, with `pf_mac` to make a stable address from.
    pub fn settings(&self, pf_mac: Mac) -> Settings {
        let on = |switch| switch == Switch::On;
        Settings {
            mac: self.mac.map(|mac| match mac {
                MacChoice::Auto => Mac::stable(pf_mac, self.vf),
                MacChoice::Named(mac) => mac,
            }),
            vlan: self.vlan,
            qos: self.qos,
            spoofchk: self.spoofchk.map(on),
            trust: self.trust.map(on),
            state: self.state,
            min_rate: self.min_rate,
            max_rate: self.max_rate,
        }
    }
}
