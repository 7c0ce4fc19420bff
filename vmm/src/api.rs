//! HTTP on a Unix socket, and signals: how people and programs speak to a running VM.
//!
//! | method and path | what |
//! |---|---|
//! | `GET /v1/vm` | what the VM is and does |
//! | `PUT /v1/vm/shutdown` | ask the guest to power off |
//! | `PUT /v1/vm/power-off` | stop at once |
//! | `PUT /v1/vm/reset`, `pause`, `resume` | as they say |
//! | `GET /v1/vm/devices` | the devices of the host that the guest has |
//! | `PUT /v1/vm/devices/DEVICE` | give the guest a device; `?with=DEVICE,…`: and others |
//! | `DELETE /v1/vm/devices/DEVICE` | take it back when the guest has let go of it; `?force=true`: at once |
//! | `GET /v1/openapi.json` | this, for programs |

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use utoipa::{OpenApi, ToSchema};

use crate::listener::{Listener, SocketError};
use crate::machine::control::{Command, CommandError, Control, State};
use crate::machine::passthrough::{DeviceInfo, DeviceState, Passthrough};

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
    #[schema(value_type = Option<String>)]
    pub serial_pty: Option<PathBuf>,
    /// The pseudo-terminal of the virtio console, if it is one.
    #[schema(value_type = Option<String>)]
    pub console_pty: Option<PathBuf>,
    /// Network cards.
    pub nics: Vec<NicInfo>,
    /// Devices of the host.
    pub devices: Vec<DeviceInfo>,
}

/// What a network card is and does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NicInfo {
    /// Its vhost-user socket.
    #[schema(value_type = String)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

/// The OpenAPI document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "vmm",
        description = "Control of one virtual machine, on its Unix socket."
    ),
    paths(
        show,
        shut_down,
        power_off,
        reset,
        pause,
        resume,
        devices::list,
        devices::add,
        devices::remove
    ),
    components(schemas(VmInfo, NicInfo, DeviceInfo, DeviceState, State, Refusal))
)]
struct Document;

/// The OpenAPI document, for documentation and tests.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

fn router(info: InfoSource, control: Control, passthrough: Arc<Passthrough>) -> axum::Router {
    axum::Router::new()
        .route("/v1/vm", get(show))
        .route("/v1/vm/shutdown", put(shut_down))
        .route("/v1/vm/power-off", put(power_off))
        .route("/v1/vm/reset", put(reset))
        .route("/v1/vm/pause", put(pause))
        .route("/v1/vm/resume", put(resume))
        .route("/v1/vm/devices", get(devices::list))
        .route(
            "/v1/vm/devices/{device}",
            put(devices::add).delete(devices::remove),
        )
        .route("/v1/openapi.json", get(|| async { Json(document()) }))
        .with_state(Arc::new(Context {
            info,
            control,
            passthrough,
        }))
}

type Handle = Shared<Arc<Context>>;
type Obeyed = Result<StatusCode, Refused>;

/// What the VM is and does.
#[utoipa::path(get, path = "/v1/vm", responses((status = 200, body = VmInfo)))]
async fn show(Shared(context): Handle) -> Json<VmInfo> {
    Json((context.info)())
}

/// Asks the guest to power off.
#[utoipa::path(put, path = "/v1/vm/shutdown", responses((status = 204), Refused))]
async fn shut_down(Shared(context): Handle) -> Obeyed {
    obey(&context, Command::Shutdown).await
}

/// Stops the VM at once.
#[utoipa::path(put, path = "/v1/vm/power-off", responses((status = 204), Refused))]
async fn power_off(Shared(context): Handle) -> Obeyed {
    obey(&context, Command::PowerOff).await
}

/// Resets the guest.
#[utoipa::path(put, path = "/v1/vm/reset", responses((status = 204), Refused))]
async fn reset(Shared(context): Handle) -> Obeyed {
    obey(&context, Command::Reset).await
}

/// Holds the VM: its processors and own devices stand still; devices of the host that it has go on in its memory.
#[utoipa::path(put, path = "/v1/vm/pause", responses((status = 204), Refused))]
async fn pause(Shared(context): Handle) -> Obeyed {
    obey(&context, Command::Pause).await
}

/// Lets a held VM go on.
#[utoipa::path(put, path = "/v1/vm/resume", responses((status = 204), Refused))]
async fn resume(Shared(context): Handle) -> Obeyed {
    obey(&context, Command::Resume).await
}

/// How a command can be refused.
#[derive(utoipa::IntoResponses)]
enum Refused {
    /// The VM has ended.
    #[response(status = 410)]
    Ended(Refusal),
    /// Too many commands wait.
    #[response(status = 429)]
    Busy(Refusal),
    /// The VM could not do it.
    #[response(status = 500)]
    Failed(Refusal),
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, refusal) = match self {
            Self::Ended(refusal) => (StatusCode::GONE, refusal),
            Self::Busy(refusal) => (StatusCode::TOO_MANY_REQUESTS, refusal),
            Self::Failed(refusal) => (StatusCode::INTERNAL_SERVER_ERROR, refusal),
        };
        (status, Json(refusal)).into_response()
    }
}

async fn obey(context: &Context, command: Command) -> Obeyed {
    let control = context.control.clone();
    let result = tokio::task::spawn_blocking(move || control.command(command)).await;
    let (how, error): (fn(Refusal) -> Refused, String) = match result {
        Ok(Ok(())) => return Ok(StatusCode::NO_CONTENT),
        Ok(Err(error @ CommandError::Busy)) => (Refused::Busy, error.to_string()),
        Ok(Err(error @ CommandError::Ended)) => (Refused::Ended, error.to_string()),
        Ok(Err(error)) => (Refused::Failed, error.to_string()),
        Err(error) => (Refused::Failed, error.to_string()),
    };
    Err(how(Refusal { error }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Set to anything to write the file anew instead of comparing it.
    const UPDATE: &str = "NETYARD_UPDATE_DOCS";

    #[test]
    fn the_books_document_is_what_is_served() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/src/reference/vmm-api.json");
        let text = document().to_pretty_json().unwrap() + "\n";
        if std::env::var_os(UPDATE).is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(
            kept, text,
            "run this test once with {UPDATE}=1 and commit the file"
        );
    }
}
