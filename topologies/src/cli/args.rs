//! What can be asked for.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::emulated::DEFAULT_MEMORY_MIB;
use crate::engine::EngineArg;
use crate::image;
use crate::state::HostKind;

/// Labs: whole networks of virtual machines from one file
#[derive(Debug, Parser)]
#[command(
    name = "lab",
    version,
    after_help = "Examples:
  lab validate topologies/labs/iperf.lab.yaml       check a lab file
  lab up topologies/labs/iperf.lab.yaml             start its switches and machines
  lab status                                        what runs, with links and ports
  lab exec a -- ping -c 3 10.0.0.2                  run a command in a machine
  lab console a                                     its serial console; Ctrl-] leaves it
  lab down topologies/labs/iperf.lab.yaml           stop it and remove everything

Files are kept under $NETYARD_RUN_DIR, else $XDG_RUNTIME_DIR/netyard, else /run/netyard (root)
or /tmp/netyard-UID.

Exit codes: 0 done, 1 failed, 2 usage, 3 refused by the host."
)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
    /// How to print
    #[arg(long, global = true, value_enum, default_value_t, env = "LAB_FORMAT")]
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
    /// Start a lab; when that fails or is interrupted, nothing of it stays
    Up(UpArgs),
    /// Show a lab's machines, links, switches and ports
    Status(Which),
    /// Stop a lab and remove everything of it
    Down(DownArgs),
    /// Check a lab file without starting anything
    Validate(ValidateArgs),
    /// List the labs that are up
    List,
    /// Run a command in a machine; its output, input and exit code are the command's
    Exec(ExecArgs),
    /// Connect this terminal to a machine's serial console; Ctrl-] leaves it
    Console(ConsoleArgs),
    /// Measure the network between two machines: ping, and iperf3 over TCP and UDP
    Measure(MeasureArgs),
    /// Build and list guest images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Start, show and stop the emulated host, which has hardware virtualization where this machine has none
    #[command(subcommand)]
    Host(HostCommand),
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
  lab up topologies/labs/iperf.lab.yaml
  lab up topologies/labs/iperf.lab.yaml --engine qemu
  lab up topologies/labs/iperf.lab.yaml --engine vmm --host emulated")]
pub(super) struct UpArgs {
    /// The lab file
    pub(super) file: PathBuf,
    /// What runs the machines
    #[arg(long, value_enum, default_value_t, env = "LAB_ENGINE")]
    pub(super) engine: EngineArg,
    /// Where to run it
    #[arg(long, value_enum, default_value_t, env = "LAB_HOST")]
    pub(super) host: HostKind,
    /// How long the machines may take until they are ready: 180, or 600 in the emulated host, if left out
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(super) timeout: Option<u64>,
}

/// Which lab is meant, by its file.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// The lab file; may be left out if only one lab is up
    #[arg(conflicts_with = "lab")]
    pub(super) file: Option<PathBuf>,
    /// The lab's name instead of its file
    #[arg(long, value_name = "NAME")]
    pub(super) lab: Option<String>,
}

/// Which lab is meant, for commands about a node.
#[derive(Debug, clap::Args)]
pub(super) struct LabArgs {
    /// The lab's name, if several are up
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    pub(super) lab: Option<String>,
    /// The lab's file, if several are up
    #[arg(long, short, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct DownArgs {
    #[command(flatten)]
    pub(super) which: Which,
    /// How long the machines may take to power off before they are ended
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub(super) grace: u64,
    /// End the machines without asking them to power off
    #[arg(long)]
    pub(super) now: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct ValidateArgs {
    /// The lab file
    pub(super) file: PathBuf,
    /// Print the commands that `lab up` would run
    #[arg(long)]
    pub(super) plan: bool,
    /// What would run the machines
    #[arg(long, value_enum, default_value_t, requires = "plan")]
    pub(super) engine: EngineArg,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lab exec a -- uname -r
  lab exec -t a -- sh
  echo hello | lab exec --lab iperf a -- cat

Exit codes: the command's; 128 and its number for a signal; 255 if lab itself failed.")]
pub(super) struct ExecArgs {
    #[command(flatten)]
    pub(super) lab: LabArgs,
    /// Give the command a terminal
    #[arg(long, short)]
    pub(super) tty: bool,
    /// The node
    pub(super) node: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) command: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct ConsoleArgs {
    #[command(flatten)]
    pub(super) lab: LabArgs,
    /// The node
    pub(super) node: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct MeasureArgs {
    #[command(flatten)]
    pub(super) lab: LabArgs,
    /// One node
    pub(super) from: String,
    /// The other
    pub(super) to: String,
    /// How long each iperf3 run takes
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(super) seconds: u32,
}

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Build an image from the newest Debian packages, unless it is there; prints its folder
    Build {
        /// Name of the image
        #[arg(default_value = image::DEFAULT)]
        name: String,
    },
    /// List the images that were built
    List,
}

#[derive(Debug, Subcommand)]
pub(super) enum HostCommand {
    /// Boot it unless it is up
    Up {
        /// Its memory
        #[arg(long, value_name = "MIB", default_value_t = DEFAULT_MEMORY_MIB, value_parser = clap::value_parser!(u32).range(1024..))]
        memory: u32,
        /// Words added to its kernel command line, such as iommu=off
        #[arg(
            long,
            value_name = "WORDS",
            default_value = "",
            hide_default_value = true,
            allow_hyphen_values = true
        )]
        append: String,
    },
    /// Show whether it is up
    Status,
    /// Stop it and everything in it
    Down,
    /// Run a command in it; its output, input and exit code are the command's
    #[command(after_help = "Examples:
  lab host exec -- vswitch show iperf.lan
  lab host exec -t -- sh

Exit codes: the command's; 128 and its number for a signal.")]
    Exec {
        /// Give the command a terminal
        #[arg(long, short)]
        tty: bool,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}
