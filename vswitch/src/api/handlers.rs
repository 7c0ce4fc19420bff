//! One function per request.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;

use super::{ApiError, ApiState, Shutdown};
use crate::daemon::RestartError;
use crate::mac::MacAddr;
use crate::model::{
    ApiErrorBody, BridgeView, FdbEntryView, Flushed, NewFdbEntry, NewPort, PortChange, PortView, Restart,
    Restarted,
};
use crate::switch::{Switch, SwitchError};

/// Runs what may wait for a worker or for a port's session beside the API's own thread.
async fn aside<T: Send + 'static>(
    state: ApiState,
    work: impl FnOnce(&Switch) -> Result<T, SwitchError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(move || work(&state.switch)).await {
        Ok(result) => result.map_err(ApiError::from),
        Err(error) => Err(ApiError(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the request could not be carried out: {error}"),
        )),
    }
}

/// Shows the bridge.
#[utoipa::path(get, path = "/v1/bridge", responses((status = 200, body = BridgeView)))]
pub(super) async fn show_bridge(State(state): State<ApiState>) -> Json<BridgeView> {
    Json(state.switch.view())
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(super) struct ShutdownQuery {
    /// Keep the settings, so that the next `up` restores the ports.
    #[serde(default)]
    keep: bool,
}

/// Ends the daemon and removes the bridge's files.
#[utoipa::path(post, path = "/v1/shutdown", params(ShutdownQuery), responses((status = 202)))]
pub(super) async fn shut_down(
    State(state): State<ApiState>,
    Query(query): Query<ShutdownQuery>,
) -> StatusCode {
    state.shutdown.send_replace(if query.keep {
        Shutdown::Keep
    } else {
        Shutdown::Remove
    });
    StatusCode::ACCEPTED
}

/// Has another process go on with the bridge; this one ends.
#[utoipa::path(
    post,
    path = "/v1/restart",
    request_body = Restart,
    responses(
        (status = 200, body = Restarted),
        (status = 400, body = ApiErrorBody, description = "The program does not start."),
    )
)]
pub(super) async fn restart(
    State(state): State<ApiState>,
    Json(restart): Json<Restart>,
) -> Result<Json<Restarted>, ApiError> {
    let shutdown = state.shutdown.clone();
    let work = tokio::task::spawn_blocking(move || {
        let program = match restart.program {
            Some(program) => program,
            None => std::env::current_exe().map_err(|error| RestartError::NotStarted {
                program: "vswitch".into(),
                error,
            })?,
        };
        state.restarter.restart(&state.switch, &program)
    });
    let restarted = work.await.map_err(|error| {
        ApiError(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the request could not be carried out: {error}"),
        )
    })??;
    shutdown.send_replace(Shutdown::HandedOver);
    Ok(Json(restarted))
}

/// Lists the ports.
#[utoipa::path(get, path = "/v1/ports", responses((status = 200, body = Vec<PortView>)))]
pub(super) async fn list_ports(State(state): State<ApiState>) -> Json<Vec<PortView>> {
    Json(state.switch.view().ports)
}

/// Adds a port.
#[utoipa::path(
    post,
    path = "/v1/ports",
    request_body = NewPort,
    responses(
        (status = 201, body = PortView),
        (status = 400, body = ApiErrorBody, description = "The settings make no sense."),
        (status = 403, body = ApiErrorBody, description = "The host does not permit it."),
        (status = 409, body = ApiErrorBody, description = "The name, socket or interface is taken."),
    )
)]
pub(super) async fn add_port(
    State(state): State<ApiState>,
    Json(port): Json<NewPort>,
) -> Result<(StatusCode, Json<PortView>), ApiError> {
    let view = aside(state, move |switch| switch.add_port(&port)).await?;
    Ok((StatusCode::CREATED, Json(view)))
}

/// Shows one port.
#[utoipa::path(
    get,
    path = "/v1/ports/{name}",
    params(("name" = String, Path)),
    responses((status = 200, body = PortView), (status = 404, body = ApiErrorBody))
)]
pub(super) async fn show_port(
    State(state): State<ApiState>,
    Path(name): Path<String>,
) -> Result<Json<PortView>, ApiError> {
    Ok(Json(state.switch.port_view(&name)?))
}

/// Changes a port.
#[utoipa::path(
    patch,
    path = "/v1/ports/{name}",
    params(("name" = String, Path)),
    request_body = PortChange,
    responses((status = 200, body = PortView), (status = 404, body = ApiErrorBody))
)]
pub(super) async fn set_port(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    Json(change): Json<PortChange>,
) -> Result<Json<PortView>, ApiError> {
    let view = aside(state, move |switch| switch.set_port(&name, &change)).await?;
    Ok(Json(view))
}

/// Deletes a port and forgets its addresses.
#[utoipa::path(
    delete,
    path = "/v1/ports/{name}",
    params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ApiErrorBody))
)]
pub(super) async fn delete_port(
    State(state): State<ApiState>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    aside(state, move |switch| switch.delete_port(&name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the forwarding database.
#[utoipa::path(get, path = "/v1/fdb", responses((status = 200, body = Vec<FdbEntryView>)))]
pub(super) async fn show_fdb(State(state): State<ApiState>) -> Json<Vec<FdbEntryView>> {
    Json(state.switch.fdb_entries())
}

/// Adds or replaces a static entry.
#[utoipa::path(
    post,
    path = "/v1/fdb",
    request_body = NewFdbEntry,
    responses((status = 204), (status = 404, body = ApiErrorBody), (status = 507, body = ApiErrorBody))
)]
pub(super) async fn add_fdb(
    State(state): State<ApiState>,
    Json(entry): Json<NewFdbEntry>,
) -> Result<StatusCode, ApiError> {
    aside(state, move |switch| switch.add_fdb(&entry)).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(super) struct FdbQuery {
    /// The address.
    #[param(value_type = String)]
    mac: MacAddr,
    /// The VLAN; 0 without VLANs.
    #[serde(default)]
    vlan: u16,
}

/// Deletes an entry, learned or static.
#[utoipa::path(
    delete,
    path = "/v1/fdb",
    params(FdbQuery),
    responses((status = 204), (status = 404, body = ApiErrorBody))
)]
pub(super) async fn delete_fdb(
    State(state): State<ApiState>,
    Query(query): Query<FdbQuery>,
) -> Result<StatusCode, ApiError> {
    aside(state, move |switch| switch.delete_fdb(query.mac, query.vlan)).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(super) struct FlushQuery {
    /// Only the entries of this port.
    port: Option<String>,
}

/// Forgets learned entries.
#[utoipa::path(
    post,
    path = "/v1/fdb/flush",
    params(FlushQuery),
    responses((status = 200, body = Flushed), (status = 404, body = ApiErrorBody))
)]
pub(super) async fn flush_fdb(
    State(state): State<ApiState>,
    Query(query): Query<FlushQuery>,
) -> Result<Json<Flushed>, ApiError> {
    let entries = aside(state, move |switch| switch.flush_fdb(query.port.as_deref())).await?;
    Ok(Json(Flushed { entries }))
}

/// Metrics in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String)))]
pub(super) async fn metrics(State(state): State<ApiState>) -> Result<impl IntoResponse, ApiError> {
    let text = crate::metrics::render(&state.switch.view()).map_err(|error| {
        ApiError(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the metrics could not be written: {error}"),
        )
    })?;
    Ok(([(header::CONTENT_TYPE, crate::metrics::CONTENT_TYPE)], text))
}
