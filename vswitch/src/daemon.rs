//! The life of a bridge's daemon: start, detached or not, and end.

mod detach;
mod restart;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::api::{ApiState, Shutdown, router};
use crate::client::ClientError;
use crate::config::{BridgeConfig, BridgeSettings, ConfigError, PollMode};
use crate::fdb::OnFull;
use crate::handover;
use crate::run_dir::{BridgeDir, Claim, RunDirError};
use crate::switch::{Switch, SwitchError};

pub use detach::{down, start_detached};
pub use restart::{RestartError, Restarter};

/// The shortest time between two sweeps of aged addresses.
const SWEEP_MIN: Duration = Duration::from_secs(1);
/// The longest time between two sweeps of aged addresses.
const SWEEP_MAX: Duration = Duration::from_secs(30);

/// Time between two looks at the load of the workers while they have some.
const BALANCE_BUSY: Duration = Duration::from_secs(1);
/// Time between two looks while nearly nothing happens.
const BALANCE_IDLE: Duration = Duration::from_secs(10);

/// The daemon could not be started or ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The bridge's folder.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The bridge's API.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The bridge's settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The bridge itself.
    #[error(transparent)]
    Switch(#[from] SwitchError),
    /// The operating system refused something.
    #[error("cannot {0}: {1}")]
    Io(&'static str, #[source] io::Error),
    /// A detached daemon ended before it was ready.
    #[error("the daemon of bridge {0} did not start: {1}")]
    NotStarted(String, String),
    /// A daemon did not end.
    #[error(
        "the daemon of bridge {0} (pid {1}) did not end; stop it with `kill -9 {1}`, then `vswitch down {0}`"
    )]
    NotEnded(String, String),
    /// There is nothing to end.
    #[error("bridge {0} is not up: `vswitch show` lists the bridges that are")]
    NotUp(String),
    /// The bridge of another daemon could not be taken over.
    #[error(transparent)]
    Restart(#[from] RestartError),
    /// A file that is no socket stands where the API's socket belongs.
    #[error("{0} is not a socket: move it away")]
    NotASocket(PathBuf),
}

/// Settings given at this start; those left out come from the stored configuration, else the defaults.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SettingsArgs {
    /// Number of worker threads that forward frames
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: Option<u16>,
    /// Pin the workers to these CPUs, in turn
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cpus: Option<Vec<u16>>,
    /// How workers wait for frames
    #[arg(long, value_name = "MODE")]
    pub poll: Option<PollMode>,
    /// The most addresses in the forwarding database
    #[arg(long, value_name = "N", value_parser = fdb_size)]
    pub fdb_size: Option<usize>,
    /// Seconds until a silent address is forgotten
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub ageing: Option<u32>,
    /// What a full forwarding database does
    #[arg(long, value_name = "POLICY")]
    pub on_full: Option<OnFull>,
}

fn fdb_size(text: &str) -> Result<usize, String> {
    let limits = crate::fdb::SIZE_LIMITS;
    let size: usize = text.parse().map_err(|_| "not a number".to_owned())?;
    if limits.contains(&size) {
        Ok(size)
    } else {
        Err(format!("must be {} to {}", limits.start(), limits.end()))
    }
}

impl SettingsArgs {
    fn over(self, stored: BridgeSettings) -> BridgeSettings {
        BridgeSettings {
            workers: self.workers.unwrap_or(stored.workers),
            cpus: self.cpus.unwrap_or(stored.cpus),
            poll: self.poll.unwrap_or(stored.poll),
            fdb_size: self.fdb_size.unwrap_or(stored.fdb_size),
            ageing: self.ageing.unwrap_or(stored.ageing),
            on_full: self.on_full.unwrap_or(stored.on_full),
        }
    }
}

/// Runs the daemon in this process until it is told to end.
pub fn run(dir: &BridgeDir, settings: SettingsArgs) -> Result<(), DaemonError> {
    let claim = dir.claim()?;
    let mut config = BridgeConfig::load(dir)?.unwrap_or_default();
    config.settings = settings.over(config.settings);
    let switch = Switch::start(dir.name(), config, Some(dir.clone()))?;
    run_switch(dir, claim, switch, listen(dir)?, || Ok(()))
}

/// Goes on with the bridge of the daemon that started this process, over its standard input.
pub fn take_over(dir: &BridgeDir) -> Result<(), DaemonError> {
    let (taken, socket) = restart::take_over(dir)?;
    let said = move || handover::say_done(&socket);
    run_switch(dir, taken.claim, taken.switch, taken.listener, said)
}

fn run_switch(
    dir: &BridgeDir,
    claim: Claim,
    switch: Switch,
    listener: std::os::unix::net::UnixListener,
    ready: impl FnOnce() -> io::Result<()>,
) -> Result<(), DaemonError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| DaemonError::Io("start the control thread", error))?;
    let switch = Arc::new(switch);
    let end = runtime.block_on(serve(dir, &switch, &claim, listener, ready))?;
    // Requests under way finish before the ports go.
    runtime.shutdown_timeout(Duration::from_secs(2));
    switch.stop();
    drop(switch);
    if end == Shutdown::HandedOver {
        // Claim and files are the other daemon's now.
        tracing::info!(bridge = dir.name(), "bridge is handed over");
        return Ok(());
    }
    remove_socket(dir);
    // The claim is held until the files are gone: they cannot be those of a daemon that came after.
    let removed = if end == Shutdown::Remove {
        dir.remove()
    } else {
        Ok(())
    };
    claim.release();
    removed?;
    tracing::info!(bridge = dir.name(), "bridge is down");
    Ok(())
}

async fn serve(
    dir: &BridgeDir,
    switch: &Arc<Switch>,
    claim: &Claim,
    listener: std::os::unix::net::UnixListener,
    ready: impl FnOnce() -> io::Result<()>,
) -> Result<Shutdown, DaemonError> {
    let ports = switch.bridge().ports().iter().count();
    let (shutdown, mut ended) = watch::channel(Shutdown::No);
    end_on_signals(&shutdown)?;
    let restarter = Restarter::new(dir, claim, &listener)
        .map_err(|error| DaemonError::Io("keep what the next daemon needs", error))?;
    let listener = listener
        .set_nonblocking(true)
        .and_then(|()| UnixListener::from_std(listener))
        .map_err(|error| DaemonError::Io("listen on the API's socket", error))?;
    let app = router(ApiState {
        switch: Arc::clone(switch),
        shutdown: shutdown.clone(),
        restarter: Arc::new(restarter),
    });
    let sweeper = tokio::spawn(sweep(Arc::clone(switch)));
    let balancer = tokio::spawn(balance(Arc::clone(switch)));
    tracing::info!(
        bridge = dir.name(),
        pid = std::process::id(),
        ports,
        "bridge is up"
    );
    ready().map_err(|error| DaemonError::Io("tell the former daemon", error))?;
    let mut told = ended.clone();
    let serving = axum::serve(listener, app).with_graceful_shutdown(async move {
        let _: Result<_, watch::error::RecvError> =
            told.wait_for(|end| *end != Shutdown::No).await.map(|end| *end);
    });
    let server = tokio::spawn(async move { serving.await });
    let end = ended
        .wait_for(|end| *end != Shutdown::No)
        .await
        .map_or(Shutdown::Keep, |end| *end);
    // A client that keeps its connection open must not keep the daemon alive.
    if let Ok(Ok(Err(error))) = tokio::time::timeout(Duration::from_secs(1), server).await {
        tracing::warn!("the API ended with an error: {error}");
    }
    sweeper.abort();
    balancer.abort();
    Ok(end)
}

fn end_on_signals(shutdown: &watch::Sender<Shutdown>) -> Result<(), DaemonError> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut stream = signal(kind).map_err(|error| DaemonError::Io("watch for signals", error))?;
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                shutdown.send_replace(Shutdown::Keep);
            }
        });
    }
    Ok(())
}

fn listen(dir: &BridgeDir) -> Result<std::os::unix::net::UnixListener, DaemonError> {
    let path = dir.api_socket();
    replace_stale_socket(&path)?;
    let listener = std::os::unix::net::UnixListener::bind(&path)
        .map_err(|error| DaemonError::Io("listen on the API's socket", error))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
        .map_err(|error| DaemonError::Io("protect the API's socket", error))?;
    Ok(listener)
}

/// Removes a socket that a killed daemon left. The bridge is claimed, so nobody listens on it.
fn replace_stale_socket(path: &std::path::Path) -> Result<(), DaemonError> {
    use std::os::unix::fs::FileTypeExt;
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => Err(DaemonError::NotASocket(path.to_owned())),
        Ok(_) => {
            fs::remove_file(path).map_err(|error| DaemonError::Io("remove the former API socket", error))
        }
        Err(_) => Ok(()),
    }
}

fn remove_socket(dir: &BridgeDir) {
    if let Err(error) = fs::remove_file(dir.api_socket()) {
        tracing::debug!("the API's socket could not be removed: {error}");
    }
}

/// Evens out the load of the workers, where there are several. Looks rarely while there is none.
async fn balance(switch: Arc<Switch>) {
    let mut period = BALANCE_IDLE;
    while switch.view().workers > 1 {
        tokio::time::sleep(period).await;
        period = if switch.balance() {
            BALANCE_BUSY
        } else {
            BALANCE_IDLE
        };
    }
}

/// Frees the entries of silent addresses now and then. Looks at nothing while there are none to age, and is
/// not what makes an entry age: that is its time alone.
async fn sweep(switch: Arc<Switch>) {
    let fdb = switch.bridge().fdb();
    let period = Duration::from_secs(u64::from(fdb.ageing()) / 10).clamp(SWEEP_MIN, SWEEP_MAX);
    loop {
        tokio::time::sleep(period).await;
        if fdb.has_learned() {
            fdb.expire(switch.bridge().clock().now());
        }
    }
}
