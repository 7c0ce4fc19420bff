//! A client of the API of bridges' daemons.

use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::mac::MacAddr;
use crate::model::{
    ApiErrorBody, BridgeView, FdbEntryView, Flushed, NewFdbEntry, NewPort, PortChange, PortView, Restart,
    Restarted,
};
use crate::run_dir::{BridgeDir, RunDirError};

/// A request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon.
    #[error("bridge {0} is not up: start it with `vswitch up {0}`")]
    NotUp(String),
    /// The bridge's folder cannot be what was asked for.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The daemon refused the request.
    #[error("{reason}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// The daemon's reason.
        reason: String,
    },
    /// The connection failed.
    #[error("the daemon of bridge {0} did not answer: {1}; see {2}")]
    Transport(String, String, PathBuf),
}

impl ClientError {
    /// Whether the host refused what was asked, rather than the switch.
    pub fn is_host_refusal(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::FORBIDDEN)
    }
}

/// Talks to one bridge.
#[derive(Debug, Clone)]
pub struct Client {
    dir: BridgeDir,
}

impl Client {
    /// The client of bridge `name`. Connects with each request.
    pub fn new(name: &str) -> Result<Self, ClientError> {
        Ok(Self {
            dir: BridgeDir::new(name)?,
        })
    }

    /// Where the bridge keeps its files.
    pub fn dir(&self) -> &BridgeDir {
        &self.dir
    }

    /// The bridge with its ports.
    pub async fn bridge(&self) -> Result<BridgeView, ClientError> {
        self.request_json(Method::GET, "/v1/bridge", Vec::new()).await
    }

    /// One port.
    pub async fn port(&self, name: &str) -> Result<PortView, ClientError> {
        self.request_json(Method::GET, &format!("/v1/ports/{}", escape(name)), Vec::new())
            .await
    }

    /// Adds a port.
    pub async fn add_port(&self, port: &NewPort) -> Result<PortView, ClientError> {
        self.request_json(Method::POST, "/v1/ports", self.body(port)?)
            .await
    }

    /// Changes a port.
    pub async fn set_port(&self, name: &str, change: &PortChange) -> Result<PortView, ClientError> {
        let path = format!("/v1/ports/{}", escape(name));
        self.request_json(Method::PATCH, &path, self.body(change)?).await
    }

    /// Deletes a port.
    pub async fn delete_port(&self, name: &str) -> Result<(), ClientError> {
        self.request(Method::DELETE, &format!("/v1/ports/{}", escape(name)), Vec::new())
            .await
            .map(drop)
    }

    /// The forwarding database.
    pub async fn fdb(&self) -> Result<Vec<FdbEntryView>, ClientError> {
        self.request_json(Method::GET, "/v1/fdb", Vec::new()).await
    }

    /// Adds or replaces a static entry.
    pub async fn add_fdb(&self, entry: &NewFdbEntry) -> Result<(), ClientError> {
        self.request(Method::POST, "/v1/fdb", self.body(entry)?)
            .await
            .map(drop)
    }

    /// Deletes an entry.
    pub async fn delete_fdb(&self, mac: MacAddr, vlan: u16) -> Result<(), ClientError> {
        self.request(
            Method::DELETE,
            &format!("/v1/fdb?mac={mac}&vlan={vlan}"),
            Vec::new(),
        )
        .await
        .map(drop)
    }

    /// Forgets learned entries, of one port or all; returns how many.
    pub async fn flush_fdb(&self, port: Option<&str>) -> Result<usize, ClientError> {
        let query = port
            .map(|port| format!("?port={}", escape(port)))
            .unwrap_or_default();
        let flushed: Flushed = self
            .request_json(Method::POST, &format!("/v1/fdb/flush{query}"), Vec::new())
            .await?;
        Ok(flushed.entries)
    }

    /// The metrics, as text.
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let body = self.request(Method::GET, "/metrics", Vec::new()).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// The OpenAPI document, as text.
    pub async fn openapi(&self) -> Result<String, ClientError> {
        let body = self.request(Method::GET, "/v1/openapi.json", Vec::new()).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Has another process go on with the bridge.
    pub async fn restart(&self, restart: &Restart) -> Result<Restarted, ClientError> {
        self.request_json(Method::POST, "/v1/restart", self.body(restart)?)
            .await
    }

    /// Asks the daemon to end. With `keep`, its settings stay for the next `up`.
    pub async fn shut_down(&self, keep: bool) -> Result<(), ClientError> {
        self.request(Method::POST, &format!("/v1/shutdown?keep={keep}"), Vec::new())
            .await
            .map(drop)
    }

    fn body<T: serde::Serialize>(&self, value: &T) -> Result<Vec<u8>, ClientError> {
        serde_json::to_vec(value).map_err(|error| self.transport(&error))
    }

    async fn request_json<T: DeserializeOwned>(
        &self,
        method: Method,
        uri: &str,
        body: Vec<u8>,
    ) -> Result<T, ClientError> {
        let body = self.request(method, uri, body).await?;
        serde_json::from_slice(&body).map_err(|error| self.transport(&error))
    }

    async fn request(&self, method: Method, uri: &str, body: Vec<u8>) -> Result<Bytes, ClientError> {
        let stream = connect(&self.dir.api_socket())
            .await
            .map_err(|_| ClientError::NotUp(self.dir.name().to_owned()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.transport(&error))?;
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("host", "vswitch")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.transport(&error))?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
        };
        let driver = tokio::spawn(connection);
        let result = exchange.await;
        driver.abort();
        let (status, body) = result.map_err(|error| self.transport(&error))?;
        if status.is_success() {
            return Ok(body);
        }
        let reason = serde_json::from_slice::<ApiErrorBody>(&body).map_or_else(
            |_| String::from_utf8_lossy(&body).trim().to_owned(),
            |body| body.error,
        );
        Err(ClientError::Refused { status, reason })
    }

    fn transport(&self, error: &dyn std::fmt::Display) -> ClientError {
        ClientError::Transport(self.dir.name().to_owned(), error.to_string(), self.dir.log())
    }
}

async fn connect(path: &Path) -> std::io::Result<UnixStream> {
    UnixStream::connect(path).await
}

/// Percent-encodes what may not stand in a path or query; names that pass the daemon's check need none.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    text.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn names_cannot_leave_their_path_segment() {
        assert_eq!(escape("a.b-c_1"), "a.b-c_1");
        assert_eq!(escape("../x?y ä"), "..%2Fx%3Fy%20%C3%A4");
    }
}
