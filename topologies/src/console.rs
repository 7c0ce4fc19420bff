//! The serial console of a machine, on this terminal.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};

use crate::agent::terminal::{RawMode, read_stdin};
use crate::paths::NodeDir;

/// Ctrl-], which telnet and virsh use too.
const ESCAPE: u8 = 0x1d;

/// The console could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// A console has one user at a time.
    #[error("the console of node {0} is in use by another `lab console`; end that one with Ctrl-]")]
    Busy(String),
    /// There is nothing to connect to.
    #[error("cannot connect to the console of node {0} at {1}: {2}; is the node running? see `lab status`")]
    Connect(String, PathBuf, #[source] io::Error),
    /// The terminal or the connection failed.
    #[error("the console of node {0} broke off: {1}")]
    Io(String, #[source] io::Error),
}

/// Shows the console of `node` until Ctrl-], the end of standard input, or the end of the machine.
pub async fn console(node: &str, dir: &NodeDir) -> Result<(), ConsoleError> {
    let broke = |error: io::Error| ConsoleError::Io(node.to_owned(), error);
    let lock = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(dir.serial_lock())
        .map_err(|error| ConsoleError::Connect(node.to_owned(), dir.serial_lock(), error))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(ConsoleError::Busy(node.to_owned())),
        Err(error) => return Err(broke(error.into())),
    }
    let socket = dir.serial_socket();
    let stream = UnixStream::connect(&socket)
        .await
        .map_err(|error| ConsoleError::Connect(node.to_owned(), socket, error))?;
    let interactive = io::stdin().is_terminal();
    let raw = if interactive {
        eprintln!("console of node {node}; Ctrl-] leaves it");
        Some(RawMode::enter().map_err(broke)?)
    } else {
        None
    };
    let result = relay(stream).await;
    drop(raw);
    if interactive {
        eprintln!();
    }
    result.map_err(broke)
}

async fn relay(stream: UnixStream) -> io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let mut typed = read_stdin();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut buffer = [0; 4096];
    loop {
        tokio::select! {
            read = reader.read(&mut buffer) => match read? {
                0 => return Ok(()),
                n => {
                    let mut out = io::stdout().lock();
                    out.write_all(&buffer[..n])?;
                    out.flush()?;
                }
            },
            keys = typed.recv() => {
                let Some(keys) = keys else { return Ok(()) };
                match keys.iter().position(|&key| key == ESCAPE) {
                    Some(end) => return writer.write_all(&keys[..end]).await,
                    None => writer.write_all(&keys).await?,
                }
            }
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}
