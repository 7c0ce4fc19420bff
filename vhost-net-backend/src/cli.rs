//! The command line, and the life of the process: start, wait for a signal, stop.

use std::io::{self, IsTerminal};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use clap::{CommandFactory, Parser};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use vhost_net_backend::config::{MAX_QUEUE_PAIRS, OFFLOADS, USO};
use vhost_net_backend::netlink::{self, NetlinkError};
use vhost_net_backend::nic::Nic;
use vhost_net_backend::session::SessionError;
use vhost_net_backend::tap::{Tap, TapError, TapKeeper};
use vhost_net_backend::wire::Wire;
use vhost_net_backend::wire::tap::TapWire;
use vhost_net_backend::wire::user::{self, Link};
use vhost_net_backend::{DevicePlane, PortConfig, Session, SessionHandle, SocketConfig};

const EXAMPLES: &str = "\
Examples:
  # a NIC with two queue pairs on a tap of this host, which is created and set up
  vhost-net-backend --socket /run/nic0.sock --tap tap0 --queues 2

  # a NIC that hides the VM's memory from the switch it is plugged into
  vhost-net-backend --socket /run/nic0.sock --connect /run/netyard/vswitch/br0/ports/p1.sock

  # connect to a VMM that listens, instead of listening for it
  vhost-net-backend --socket /run/vmm.sock --client --tap tap0

Exit codes: 0 stopped by SIGTERM or SIGINT, 1 failed, 2 usage, 3 refused by the host.
RUST_LOG sets what is logged (error, warn, info, debug).";

/// Options that print something instead of serving a NIC.
const PRINTED: [&str; 3] = ["print_capabilities", "completions", "man"];

/// One virtio-net NIC behind a vhost-user socket.
#[derive(Debug, Parser)]
#[command(name = "vhost-net-backend", version, after_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("wire").args(["tap", "tap_fd", "connect"]).args(PRINTED).required(true))]
struct Args {
    /// The vhost-user socket: where front-ends connect, or with --client where to connect
    #[arg(
        long,
        alias = "socket-path",
        value_name = "PATH",
        required_unless_present_any = PRINTED
    )]
    socket: Option<PathBuf>,
    /// Connect to the socket instead of listening on it; try for ever
    #[arg(long)]
    client: bool,
    /// Wire the NIC to this tap interface: attach to it, or create it
    #[arg(long, value_name = "NAME")]
    tap: Option<String>,
    /// Wire the NIC to inherited tap descriptors, one for each queue pair
    #[arg(long, value_name = "N,…", value_delimiter = ',', conflicts_with = "queues")]
    tap_fd: Vec<RawFd>,
    /// Wire the NIC to another vhost-user back-end that listens here; its link is down while that one is away
    #[arg(long, value_name = "PATH")]
    connect: Option<PathBuf>,
    /// Queue pairs offered
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_QUEUE_PAIRS)))]
    queues: u16,
    /// MAC address offered; without it the front-end chooses
    #[arg(long, value_name = "ADDR", value_parser = parse_mac)]
    mac: Option<[u8; 6]>,
    /// MTU offered, and set on a tap; 68 to 65535
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(68..))]
    mtu: Option<u16>,
    /// Print what this back-end can do, as JSON, and exit
    #[arg(long)]
    print_capabilities: bool,
    /// Print a completion script for this shell and exit
    #[arg(long, value_name = "SHELL")]
    completions: Option<clap_complete::Shell>,
    /// Print the manual page and exit
    #[arg(long)]
    man: bool,
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let wrong = || format!("'{text}' is no MAC address; write six octets as in 02:00:00:00:00:01");
    let mut mac = [0u8; 6];
    let mut parts = text.split(':');
    for octet in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
        *octet = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
    }
    if parts.next().is_some() {
        return Err(wrong());
    }
    if mac[0] & 1 == 1 {
        return Err(format!(
            "'{text}' is a group address; choose one whose first octet is even"
        ));
    }
    Ok(mac)
}

/// Why the process ends with an error.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the operating system refused: {0}")]
    Os(#[from] io::Error),
}

impl Failure {
    /// 3 where the host refuses something that it could allow.
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Tap(TapError::Device(_) | TapError::Attach { .. } | TapError::Setup { .. })
            | Self::Netlink(_) => 3,
            Self::Tap(_) | Self::Session(_) | Self::Os(_) => 1,
        })
    }
}

pub(crate) fn main() -> ExitCode {
    let args = Args::parse();
    if args.print_capabilities {
        println!("{}", capabilities());
        return ExitCode::SUCCESS;
    }
    if let Some(shell) = args.completions {
        clap_complete::generate(
            shell,
            &mut Args::command(),
            "vhost-net-backend",
            &mut io::stdout(),
        );
        return ExitCode::SUCCESS;
    }
    if args.man {
        return match clap_mangen::Man::new(Args::command()).render(&mut io::stdout()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("vhost-net-backend: the manual page cannot be written: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("vhost-net-backend: {failure}");
            failure.exit_code()
        }
    }
}

/// In the form that the vhost-user text describes for back-end programs.
fn capabilities() -> serde_json::Value {
    serde_json::json!({
        "type": "net",
        "features": ["tap", "virtio-user", "client"],
        "max-queue-pairs": MAX_QUEUE_PAIRS,
    })
}

/// The state of the wire, on its way to the session, which may be there later than the wire.
#[derive(Default)]
struct Carrier {
    up: bool,
    session: Option<Arc<SessionHandle>>,
}

impl Carrier {
    fn set(&mut self, up: bool) {
        self.up = up;
        if let Some(session) = &self.session {
            session.set_link(up);
        }
    }

    fn attach(&mut self, session: Arc<SessionHandle>) {
        session.set_link(self.up);
        self.session = Some(session);
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    // Signals first: one that comes while things start must still end them in order.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let _context = runtime.enter();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);

    let path = args.socket.clone().unwrap_or_default();
    let name = path
        .file_stem()
        .map_or_else(|| "nic".into(), |stem| stem.to_string_lossy().into_owned());
    let mut port = PortConfig {
        queue_pairs: args.queues,
        mac: args.mac,
        mtu: args.mtu,
        ..PortConfig::new(name)
    };
    let carrier: Arc<Mutex<Carrier>> = Arc::default();
    let (wires, far_end) = wire(args, &mut port, &carrier)?;
    let nic = Nic::start(wires, args.mtu)?;
    let socket = if args.client {
        SocketConfig::client(path)
    } else {
        SocketConfig::server(path)
    };
    let plane: Arc<dyn DevicePlane> = Arc::clone(&nic) as _;
    let session = Arc::new(Session::spawn(socket, port, plane)?);
    carrier
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .attach(Arc::clone(&session));

    runtime.block_on(async {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    });
    session.stop();
    drop(far_end);
    for (pair, counts) in nic.counts().iter().enumerate() {
        tracing::debug!(pair, ?counts, "stopped");
    }
    Ok(())
}

/// What keeps the far end of the wires, for as long as it lives.
#[derive(Default)]
struct FarEnd {
    _link: Option<Link>,
    _keeper: Option<TapKeeper>,
}

/// Open the far end; from then on `carrier` follows it. The VM's NIC has a link while there is something to carry its
/// frames: another back-end whose rings are linked, or a tap that is up.
fn wire(
    args: &Args,
    port: &mut PortConfig,
    carrier: &Arc<Mutex<Carrier>>,
) -> Result<(Vec<Box<dyn Wire>>, FarEnd), Failure> {
    let set = |up: bool| {
        let carrier = Arc::clone(carrier);
        carrier.lock().unwrap_or_else(PoisonError::into_inner).set(up);
        move |up| carrier.lock().unwrap_or_else(PoisonError::into_inner).set(up)
    };
    port.link_up = args.connect.is_none();
    let changed = set(port.link_up);
    if let Some(path) = &args.connect {
        fit(port, path);
        let (link, wires) = Link::start(path.clone(), port.queue_pairs, changed)?;
        let wires = wires.into_iter().map(|wire| Box::new(wire) as _).collect();
        let far_end = FarEnd {
            _link: Some(link),
            ..FarEnd::default()
        };
        return Ok((wires, far_end));
    }
    let tap = open_tap(args, port)?;
    if !tap.takes_uso() {
        port.features &= !USO;
    }
    tracing::info!(tap = tap.name(), queues = port.queue_pairs, "attached");
    let keeper = TapKeeper::start(&tap, args.mtu, changed)?;
    let wires = TapWire::all(tap.into_queues())
        .into_iter()
        .map(|wire| Box::new(wire) as _)
        .collect();
    let far_end = FarEnd {
        _keeper: Some(keeper),
        ..FarEnd::default()
    };
    Ok((wires, far_end))
}

/// Offer the VM no more offloads and pairs than the other back-end has, as far as it can be asked already: its driver
/// makes up for what is lacking with less effort than we do.
fn fit(port: &mut PortConfig, path: &std::path::Path) {
    match user::probe(path) {
        Ok(offer) => {
            port.features = offer.features | !OFFLOADS;
            let pairs = u16::try_from(offer.pairs).unwrap_or(u16::MAX).max(1);
            if pairs < port.queue_pairs {
                tracing::warn!("the back-end has {pairs} queue pairs only; offering as many");
                port.queue_pairs = pairs;
            }
        }
        Err(error) => tracing::warn!("cannot ask {} what it offers yet: {error}", path.display()),
    }
}

fn open_tap(args: &Args, port: &mut PortConfig) -> Result<Tap, Failure> {
    let Some(name) = &args.tap else {
        let tap = Tap::from_raw_fds(&args.tap_fd)?;
        port.queue_pairs = u16::try_from(tap.queues().len()).unwrap_or(u16::MAX);
        return Ok(tap);
    };
    let tap = Tap::open(name, args.queues)?;
    netlink::set_up(tap.name(), args.mtu)?;
    Ok(tap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn mac_addresses_are_six_octets() {
        assert_eq!(parse_mac("02:00:00:00:0a:ff"), Ok([2, 0, 0, 0, 10, 255]));
        for wrong in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "2:0:0:0:0:1",
            "01:00:5e:00:00:01",
        ] {
            assert!(parse_mac(wrong).is_err(), "{wrong}");
        }
    }
}
