//! HTTP on a Unix socket, and signals: how people and programs speak to a running VM.
//!
//! | method and path | what |
//! |---|---|
//! | `GET /v1/vm` | what the VM is and does |
//! | `PUT /v1/vm/shutdown` | ask the guest to power off |
//! | `PUT /v1/vm/power-off` | stop at once |
//! | `PUT /v1/vm/reset`, `pause`, `resume` | as they say |
//! | `GET /v1/vm/devices` | the devices of the host that the guest has |
//! | `PUT /v1/vm/devices/DEVICE` | give the guest a device |
//! | `DELETE /v1/vm/devices/DEVICE` | take it back when the guest has let go of it; `?force=true`: at once |

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::routing::{get, put};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::listener::{Listener, SocketError};
use crate::machine::control::{Command, CommandError, Control, State};
use crate::machine::passthrough::{DeviceInfo, Passthrough};

mod devices;

/// Why the VM cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The socket was refused.
    #[error("API: {0}")]
    Socket(#[from] SocketError),
    /// The host refused a thread or a signal handler.
    #[error("a thread for the API was refused by the host: {0}")]
    Host(#[from] io::Error),
}

/// What a VM is and does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// What it is doing.
    pub state: State,
    /// Processors.
    pub cpus: u8,
    /// Bytes of RAM.
    pub memory: u64,
    /// How often the guest was reset.
    pub resets: u64,
    /// The pseudo-terminal of the serial port, if it is one.
    pub serial_pty: Option<PathBuf>,
    /// Network cards.
    pub nics: Vec<NicInfo>,
    /// Devices of the host.
    pub devices: Vec<DeviceInfo>,
}

/// What a network card is and does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicInfo {
    /// Its vhost-user socket.
    pub socket: PathBuf,
    /// Its hardware address, if it was given one.
    pub mac: Option<String>,
    /// Queue pairs offered to the guest.
    pub queue_pairs: u16,
    /// What the guest sees: the link is up.
    pub link_up: bool,
    /// The back-end is connected.
    pub connected: bool,
}

/// An answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What was refused and why.
    pub error: String,
}

/// Makes a [`VmInfo`] of the moment.
pub type InfoSource = Arc<dyn Fn() -> VmInfo + Send + Sync>;

/// The thread that serves; ends when dropped.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    socket: Option<Listener>,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        drop(self.socket.take());
    }
}

/// Serves signals, and the API if there is a `socket`, on a thread of its own.
pub fn serve(
    info: InfoSource,
    control: Control,
    passthrough: Arc<Passthrough>,
    socket: Option<PathBuf>,
) -> Result<Server, ApiError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (stop, mut stopped) = oneshot::channel();
    let guard = runtime.enter();
    let terminate = signal(SignalKind::terminate())?;
    let interrupt = signal(SignalKind::interrupt())?;
    let (socket, listener) = match socket {
        Some(path) => {
            let listener = Listener::bind(&path)?;
            let serving = tokio::net::UnixListener::from_std(listener.try_clone()?)?;
            (Some(listener), Some(serving))
        }
        None => (None, None),
    };
    drop(guard);
    let signals = control.clone();
    let thread = std::thread::Builder::new()
        .name("api".to_owned())
        .spawn(move || {
            runtime.block_on(async move {
                let work = async {
                    tokio::join!(
                        follow_signals(terminate, interrupt, signals),
                        serve_http(listener, router(info, control, passthrough)),
                    )
                };
                tokio::pin!(work);
                tokio::select! {
                    _ = &mut stopped => return,
                    _ = &mut work => {}
                }
                // All signals are spent: only the machine's end is left to wait for.
                let _ = stopped.await;
            });
            // A command that is under way has its answer from the machine's end; nobody waits for it here.
            runtime.shutdown_background();
        })?;
    Ok(Server {
        stop: Some(stop),
        thread: Some(thread),
        socket,
    })
}

async fn serve_http(listener: Option<tokio::net::UnixListener>, router: axum::Router) {
    if let Some(listener) = listener
        && let Err(error) = axum::serve(listener, router).await
    {
        tracing::error!(%error, "the API has ended");
    }
}

/// The first signal asks, the second one does not.
async fn follow_signals(mut terminate: Signal, mut interrupt: Signal, control: Control) {
    for command in [Command::Shutdown, Command::PowerOff] {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        control.request(command);
    }
}

struct Context {
    info: InfoSource,
    control: Control,
    passthrough: Arc<Passthrough>,
}

fn router(info: InfoSource, control: Control, passthrough: Arc<Passthrough>) -> axum::Router {
    let command = |command: Command| {
        put(move |Shared(context): Shared<Arc<Context>>| async move { obey(&context, command).await })
    };
    axum::Router::new()
        .route(
            "/v1/vm",
            get(|Shared(context): Shared<Arc<Context>>| async move { Json((context.info)()) }),
        )
        .route("/v1/vm/shutdown", command(Command::Shutdown))
        .route("/v1/vm/power-off", command(Command::PowerOff))
        .route("/v1/vm/reset", command(Command::Reset))
        .route("/v1/vm/pause", command(Command::Pause))
        .route("/v1/vm/resume", command(Command::Resume))
        .route("/v1/vm/devices", get(devices::list))
        .route(
            "/v1/vm/devices/{device}",
            put(devices::add).delete(devices::remove),
        )
        .with_state(Arc::new(Context {
            info,
            control,
            passthrough,
        }))
}

async fn obey(context: &Context, command: Command) -> Result<StatusCode, (StatusCode, Json<Refusal>)> {
    let control = context.control.clone();
    let result = tokio::task::spawn_blocking(move || control.command(command)).await;
    let refused = |status, error: String| Err((status, Json(Refusal { error })));
    match result {
        Ok(Ok(())) => Ok(StatusCode::NO_CONTENT),
        Ok(Err(error @ CommandError::Busy)) => refused(StatusCode::TOO_MANY_REQUESTS, error.to_string()),
        Ok(Err(error @ CommandError::Ended)) => refused(StatusCode::GONE, error.to_string()),
        Ok(Err(error)) => refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
