//! The command line.

mod args;
mod table;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use serde::Serialize;

use crate::client::{Client, ClientError};
use crate::daemon::{self, DaemonError};
use crate::model::{BridgeView, NewFdbEntry, NewPort, PortChange, Restart};
use crate::run_dir::{BridgeDir, RunDirError};
use args::{Args, Command, FdbCommand, Format, OnOff, PortCommand, UpArgs};

/// The command failed.
const FAILED: u8 = 1;
/// The host does not permit what was asked.
const REFUSED_BY_HOST: u8 = 3;

/// A command's failure: what to print and the exit code.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
    #[error("cannot write the output: {0}")]
    Json(#[from] serde_json::Error),
}

impl CliError {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Client(error) if error.is_host_refusal() => REFUSED_BY_HOST.into(),
            _ => FAILED.into(),
        }
    }
}

/// Runs the command of this process.
pub fn main() -> ExitCode {
    let args = Args::parse();
    match dispatch(args) {
        // Whoever reads the output may have seen enough.
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vswitch: {error}");
            error.exit_code()
        }
        Ok(()) => ExitCode::SUCCESS,
    }
}

fn dispatch(args: Args) -> Result<(), CliError> {
    match args.command {
        Command::Up(up) if up.foreground => run_daemon(up),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "vswitch", &mut io::stdout());
            Ok(())
        }
        Command::Man { folder } => match folder {
            Some(folder) => clap_mangen::generate_to(Args::command(), folder),
            None => clap_mangen::Man::new(Args::command()).render(&mut io::stdout()),
        }
        .map_err(CliError::Output),
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(CliError::Runtime)?;
            runtime.block_on(control(command, args.format))
        }
    }
}

fn run_daemon(up: UpArgs) -> Result<(), CliError> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
    if up.new_session
        && let Err(error) = rustix::process::setsid()
    {
        tracing::debug!("no session of its own: {error}");
    }
    let dir = BridgeDir::new(&up.bridge)?;
    if up.take_over {
        daemon::take_over(&dir)?;
    } else {
        daemon::run(&dir, up.settings)?;
    }
    Ok(())
}

async fn control(command: Command, format: Format) -> Result<(), CliError> {
    match command {
        Command::Up(up) => {
            let view = daemon::start_detached(&BridgeDir::new(&up.bridge)?, &up.passed_on()).await?;
            if format == Format::Json {
                return print_json(&view);
            }
            print(&format!(
                "bridge {} is up (pid {}, {} ports)\n",
                view.name,
                view.pid,
                view.ports.len()
            ))
        }
        Command::Down { bridge } => {
            daemon::down(&BridgeDir::new(&bridge)?).await?;
            if format == Format::Json {
                Ok(())
            } else {
                print(&format!("bridge {bridge} is down\n"))
            }
        }
        Command::Restart { bridge, program } => {
            let program = match program {
                Some(program) => std::path::absolute(program),
                None => std::env::current_exe(),
            };
            let program = Some(program.map_err(CliError::Output)?);
            let restarted = Client::new(&bridge)?.restart(&Restart { program }).await?;
            if format == Format::Json {
                return print_json(&restarted);
            }
            print(&format!(
                "bridge {bridge} goes on in pid {}; its ports stood still for {}.{:03} ms\n",
                restarted.pid,
                restarted.stopped_us / 1000,
                restarted.stopped_us % 1000
            ))
        }
        Command::Show { bridge: Some(bridge) } => {
            let view = Client::new(&bridge)?.bridge().await?;
            if format == Format::Json {
                print_json(&view)
            } else {
                print(&table::bridge(&view))
            }
        }
        Command::Show { bridge: None } => {
            let views = live_bridges().await?;
            if format == Format::Json {
                print_json(&views)
            } else {
                print(&table::bridges(&views))
            }
        }
        Command::Port(port) => port_command(port, format).await,
        Command::Fdb(fdb) => fdb_command(fdb, format).await,
        Command::Metrics { bridge } => print(&Client::new(&bridge)?.metrics().await?),
        Command::Openapi => print_json(&crate::api::document()),
        Command::Completions { .. } | Command::Man { .. } => Ok(()),
    }
}

async fn live_bridges() -> Result<Vec<BridgeView>, CliError> {
    let mut views = Vec::new();
    for dir in BridgeDir::all()? {
        match Client::new(dir.name())?.bridge().await {
            Ok(view) => views.push(view),
            // A folder without a daemon: it was killed, and `up` restores it.
            Err(ClientError::NotUp(_)) => {}
            Err(error) => eprintln!("vswitch: {error}"),
        }
    }
    Ok(views)
}

async fn port_command(command: PortCommand, format: Format) -> Result<(), CliError> {
    match command {
        PortCommand::Add {
            bridge,
            name,
            link,
            queues,
            mac,
            mtu,
            control_queue,
            anti_spoof,
            allow_macs,
        } => {
            let socket = link
                .socket
                .map(std::path::absolute)
                .transpose()
                .map_err(CliError::Output)?;
            let port = NewPort {
                name,
                socket,
                client: link.client,
                tap: link.tap,
                queues,
                mac,
                mtu,
                control_queue,
                anti_spoof,
                allow_macs,
            };
            let view = Client::new(&bridge)?.add_port(&port).await?;
            if format == Format::Json {
                return print_json(&view);
            }
            let end = match (&view.socket, &view.interface) {
                (Some(socket), _) => format!("socket {}", socket.display()),
                (None, Some(interface)) => format!("interface {interface}"),
                (None, None) => view.kind.clone(),
            };
            print(&format!("port {} added to {bridge}: {end}\n", view.name))
        }
        PortCommand::Set {
            bridge,
            name,
            link,
            anti_spoof,
            allow_macs,
        } => {
            let change = PortChange {
                link,
                anti_spoof: anti_spoof.map(|switch| switch == OnOff::On),
                allow_macs,
            };
            let view = Client::new(&bridge)?.set_port(&name, &change).await?;
            if format == Format::Json {
                print_json(&view)
            } else {
                print(&format!("port {name} of {bridge} is {}\n", table::state(&view)))
            }
        }
        PortCommand::Del { bridge, name } => {
            Client::new(&bridge)?.delete_port(&name).await?;
            if format == Format::Json {
                Ok(())
            } else {
                print(&format!("port {name} deleted from {bridge}\n"))
            }
        }
        PortCommand::List { bridge } => {
            let view = Client::new(&bridge)?.bridge().await?;
            if format == Format::Json {
                print_json(&view.ports)
            } else {
                print(&table::ports(&view.ports))
            }
        }
        PortCommand::Show { bridge, name } => {
            let view = Client::new(&bridge)?.port(&name).await?;
            if format == Format::Json {
                print_json(&view)
            } else {
                print(&table::port(&view))
            }
        }
    }
}

async fn fdb_command(command: FdbCommand, format: Format) -> Result<(), CliError> {
    match command {
        FdbCommand::Show { bridge } => {
            let entries = Client::new(&bridge)?.fdb().await?;
            if format == Format::Json {
                print_json(&entries)
            } else {
                print(&table::fdb(&entries))
            }
        }
        FdbCommand::Add {
            bridge,
            mac,
            port,
            vlan,
        } => {
            Client::new(&bridge)?
                .add_fdb(&NewFdbEntry {
                    mac,
                    vlan,
                    port: port.clone(),
                })
                .await?;
            if format == Format::Json {
                Ok(())
            } else {
                print(&format!("{mac} is static on port {port}\n"))
            }
        }
        FdbCommand::Del { bridge, mac, vlan } => {
            Client::new(&bridge)?.delete_fdb(mac, vlan).await?;
            if format == Format::Json {
                Ok(())
            } else {
                print(&format!("{mac} deleted\n"))
            }
        }
        FdbCommand::Flush { bridge, port } => {
            let entries = Client::new(&bridge)?.flush_fdb(port.as_deref()).await?;
            if format == Format::Json {
                return print_json(&crate::model::Flushed { entries });
            }
            print(&format!("{entries} learned entries flushed\n"))
        }
    }
}

fn print(text: &str) -> Result<(), CliError> {
    io::stdout().write_all(text.as_bytes()).map_err(CliError::Output)
}

fn print_json<T: Serialize>(value: &T) -> Result<(), CliError> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}
