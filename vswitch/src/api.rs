//! The HTTP/JSON API of a bridge's daemon, on its Unix socket, with its OpenAPI document.

mod handlers;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::sync::watch;
use utoipa::OpenApi;
use vhost_net_backend::session::SessionError;

use crate::config::LinkSetting;
use crate::daemon::{RestartError, Restarter};
use crate::model::{
    ApiErrorBody, BridgeView, FdbEntryView, FdbView, Flushed, NewFdbEntry, NewPort, PortChange, PortCounters,
    PortState, PortView, QueueView, Restart, Restarted,
};
use crate::switch::{Switch, SwitchError};

/// What the handlers work on.
#[derive(Debug, Clone)]
pub struct ApiState {
    /// The bridge.
    pub switch: Arc<Switch>,
    /// Set to ask the daemon to end.
    pub shutdown: watch::Sender<Shutdown>,
    /// Passes the bridge on.
    pub restarter: Arc<Restarter>,
}

/// How the daemon shall end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Not yet.
    No,
    /// Keep the settings: the next `up` restores the ports.
    Keep,
    /// Remove every trace of the bridge.
    Remove,
    /// Another daemon has the bridge: touch nothing.
    HandedOver,
}

/// The OpenAPI document.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "vswitch",
        description = "Control of one Netyard bridge. `rx` is what the switch received from a port, `tx` what it sent to it."
    ),
    paths(
        handlers::show_bridge,
        handlers::shut_down,
        handlers::restart,
        handlers::list_ports,
        handlers::add_port,
        handlers::show_port,
        handlers::set_port,
        handlers::delete_port,
        handlers::show_fdb,
        handlers::add_fdb,
        handlers::delete_fdb,
        handlers::flush_fdb,
        handlers::metrics,
    ),
    components(schemas(
        BridgeView,
        FdbView,
        PortView,
        PortState,
        PortCounters,
        QueueView,
        NewPort,
        PortChange,
        LinkSetting,
        FdbEntryView,
        NewFdbEntry,
        Flushed,
        Restart,
        Restarted,
        ApiErrorBody
    ))
)]
struct Document;

/// The API's routes.
pub fn router(state: ApiState) -> Router {
    Router::new()
        .route("/v1/bridge", get(handlers::show_bridge))
        .route("/v1/shutdown", post(handlers::shut_down))
        .route("/v1/restart", post(handlers::restart))
        .route("/v1/ports", get(handlers::list_ports).post(handlers::add_port))
        .route(
            "/v1/ports/{name}",
            get(handlers::show_port)
                .patch(handlers::set_port)
                .delete(handlers::delete_port),
        )
        .route(
            "/v1/fdb",
            get(handlers::show_fdb)
                .post(handlers::add_fdb)
                .delete(handlers::delete_fdb),
        )
        .route("/v1/fdb/flush", post(handlers::flush_fdb))
        .route("/v1/openapi.json", get(|| async { axum::Json(document()) }))
        .route("/metrics", get(handlers::metrics))
        .with_state(state)
}

/// The OpenAPI document, for documentation and tests.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// A refused request: its status and the reason in one line.
#[derive(Debug)]
pub struct ApiError(StatusCode, String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.0, axum::Json(ApiErrorBody { error: self.1 })).into_response()
    }
}

fn session_status(error: &SessionError) -> StatusCode {
    match error {
        SessionError::Port(_) => StatusCode::BAD_REQUEST,
        SessionError::Socket(_) => StatusCode::CONFLICT,
        SessionError::Os(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<RestartError> for ApiError {
    fn from(error: RestartError) -> Self {
        let status = match &error {
            RestartError::NotStarted { .. } => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

impl From<SwitchError> for ApiError {
    fn from(error: SwitchError) -> Self {
        let status = match &error {
            SwitchError::NoPort { .. } | SwitchError::NoFdbEntry(_) => StatusCode::NOT_FOUND,
            SwitchError::PortExists { .. }
            | SwitchError::SocketTaken { .. }
            | SwitchError::TapTaken { .. } => StatusCode::CONFLICT,
            SwitchError::Settings(_) | SwitchError::RunDir(_) => StatusCode::BAD_REQUEST,
            SwitchError::Tap(_) => StatusCode::FORBIDDEN,
            SwitchError::TooManyPorts | SwitchError::Fdb(_) => StatusCode::INSUFFICIENT_STORAGE,
            SwitchError::Session(error) => session_status(error),
            SwitchError::Config(_) | SwitchError::Workers(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}
