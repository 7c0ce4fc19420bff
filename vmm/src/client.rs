//! The other end of the API.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::api::{Refusal, VmInfo};
use crate::cli::{CtlAction, CtlArgs, DeviceAction, DeviceArgs, EXIT_FAILED};
use crate::machine::control::Command;
use crate::vfio::Source;

/// More than any answer has.
const MAX_ANSWER: usize = 1 << 20;

/// Why the VM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at the socket.
    #[error("no VM answers at {0}: {1}; is it running?")]
    Connect(PathBuf, #[source] std::io::Error),
    /// The connection broke, or what came was no answer.
    #[error("the VM at {0} did not answer properly: {1}")]
    Protocol(PathBuf, String),
    /// The VM refused.
    #[error("refused by the VM: {0}")]
    Refused(String),
}

/// Speaks to the VM at an API socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// For the VM whose API socket is `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// The API socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What the VM is and does.
    pub async fn info(&self) -> Result<VmInfo, ClientError> {
        let answer = self.request(Method::GET, "/v1/vm").await?;
        serde_json::from_slice(&answer).map_err(|e| self.broken(&e))
    }

    /// Has the VM do `command`.
    pub async fn command(&self, command: Command) -> Result<(), ClientError> {
        let path = match command {
            Command::Shutdown => "/v1/vm/shutdown",
            Command::PowerOff => "/v1/vm/power-off",
            Command::Reset => "/v1/vm/reset",
            Command::Pause => "/v1/vm/pause",
            Command::Resume => "/v1/vm/resume",
        };
        self.request(Method::PUT, path).await.map(|_| ())
    }

    /// Gives the guest devices of the host: all of them, or none.
    pub async fn add_devices(&self, devices: &[Source]) -> Result<(), ClientError> {
        let names: Vec<String> = devices.iter().map(Source::name).collect();
        let Some((first, others)) = names.split_first() else {
            return Ok(());
        };
        let path = format!("/v1/vm/devices/{first}?with={}", others.join(","));
        self.request(Method::PUT, &path).await.map(|_| ())
    }

    /// Takes a device back from the guest: when the guest has let go of it, or by force.
    pub async fn remove_device(&self, device: &str, force: bool) -> Result<(), ClientError> {
        let path = format!("/v1/vm/devices/{device}?force={force}");
        self.request(Method::DELETE, &path).await.map(|_| ())
    }

    async fn request(&self, method: Method, path: &str) -> Result<Bytes, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|e| ClientError::Connect(self.socket.clone(), e))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.broken(&e))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "vmm")
            .body(Empty::<Bytes>::new())
            .map_err(|e| self.broken(&e))?;
        let exchange = async move {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            Ok::<_, hyper::Error>((status, body))
        };
        // The connection ends when the sender is gone.
        let (exchanged, _) = tokio::join!(exchange, connection);
        let (status, body) = exchanged.map_err(|e| self.broken(&e))?;
        let body = body.map_err(|e| self.broken(&e))?.to_bytes();
        if status.is_success() {
            Ok(body)
        } else {
            Err(refusal(status, &body))
        }
    }

    fn broken(&self, error: &dyn std::fmt::Display) -> ClientError {
        ClientError::Protocol(self.socket.clone(), error.to_string())
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    ClientError::Refused(
        serde_json::from_slice(body).map_or_else(|_| status.to_string(), |r: Refusal| r.error),
    )
}

/// `vmm ctl`.
pub fn main(args: &CtlArgs) -> ExitCode {
    finish(act(args))
}

/// `vmm device`.
pub fn device(args: &DeviceArgs) -> ExitCode {
    finish(move_device(args))
}

fn finish(work: impl Future<Output = Result<(), ClientError>>) -> ExitCode {
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| e.to_string())
        .and_then(|runtime| runtime.block_on(work).map_err(|e| e.to_string()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmm: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

async fn move_device(args: &DeviceArgs) -> Result<(), ClientError> {
    let client = Client::new(&args.api_socket);
    match &args.action {
        DeviceAction::Add { devices } => client.add_devices(devices).await,
        DeviceAction::Del { device, force } => client.remove_device(&device.name(), *force).await,
        DeviceAction::List => {
            for device in client.info().await?.devices {
                let state = serde_json::to_value(device.state).unwrap_or_default();
                println!(
                    "{}  at {} in the guest  {}{}",
                    device.device,
                    device.guest_address,
                    state.as_str().unwrap_or_default(),
                    if device.wanted { "  wanted by the host" } else { "" },
                );
            }
            Ok(())
        }
    }
}

async fn act(args: &CtlArgs) -> Result<(), ClientError> {
    let client = Client::new(&args.api_socket);
    let command = match args.action {
        CtlAction::Info => {
            let info = client.info().await?;
            let text = serde_json::to_string_pretty(&info).map_err(|e| client.broken(&e))?;
            println!("{text}");
            return Ok(());
        }
        CtlAction::Shutdown => Command::Shutdown,
        CtlAction::PowerOff => Command::PowerOff,
        CtlAction::Reset => Command::Reset,
        CtlAction::Pause => Command::Pause,
        CtlAction::Resume => Command::Resume,
    };
    client.command(command).await
}
