//! The part of the API that is about devices of the host.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;

use super::{Context, Refusal};
use crate::machine::passthrough::{DeviceInfo, Passthrough, PassthroughError};
use crate::vfio::Source;

type Answer = Result<StatusCode, (StatusCode, Json<Refusal>)>;

/// How a device is taken back.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Removal {
    /// Without the guest's consent.
    #[serde(default)]
    force: bool,
}

/// What comes with a device.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Company {
    /// More devices, with commas between. Functions of one device of the host share a slot in the guest when they come together.
    #[serde(default)]
    with: String,
}

/// The devices of the host that the guest has.
#[utoipa::path(get, path = "/v1/vm/devices", responses((status = 200, body = Vec<DeviceInfo>)))]
pub(super) async fn list(State(context): State<Arc<Context>>) -> Json<Vec<DeviceInfo>> {
    Json(context.passthrough.list())
}

/// Gives the guest devices: all of them, or none.
#[utoipa::path(
    put,
    path = "/v1/vm/devices/{device}",
    params(("device" = String, Path, description = "PCI address on the host"), Company),
    responses(
        (status = 204),
        (status = 400, description = "no PCI address", body = Refusal),
        (status = 409, description = "the guest has it already", body = Refusal),
        (status = 500, body = Refusal)
    )
)]
pub(super) async fn add(
    State(context): State<Arc<Context>>,
    Path(device): Path<String>,
    Query(company): Query<Company>,
) -> Answer {
    let names = company.with.split(',').filter(|name| !name.is_empty());
    let sources = std::iter::once(&*device).chain(names).map(|name| {
        let source = name.parse::<Source>()?;
        // A descriptor's number would be one of this process, which nobody has passed it.
        let there = source.folder().is_some().then_some(source);
        there.ok_or_else(|| "name the device by its address".to_owned())
    });
    let sources: Vec<Source> = sources
        .collect::<Result<_, _>>()
        .map_err(|error| refused(StatusCode::BAD_REQUEST, error))?;
    work(&context, move |devices| devices.plug(&sources)).await
}

/// Takes a device back.
#[utoipa::path(
    delete,
    path = "/v1/vm/devices/{device}",
    params(("device" = String, Path, description = "PCI address on the host"), Removal),
    responses(
        (status = 204),
        (status = 404, description = "the guest does not have it", body = Refusal),
        (status = 409, description = "the guest keeps it", body = Refusal),
        (status = 500, body = Refusal)
    )
)]
pub(super) async fn remove(
    State(context): State<Arc<Context>>,
    Path(device): Path<String>,
    Query(removal): Query<Removal>,
) -> Answer {
    let name = device.parse::<Source>().map_or(device, |source| source.name());
    work(&context, move |devices| devices.remove(&name, removal.force)).await
}

/// Devices take their time, and the thread that serves has other things to do.
async fn work(
    context: &Context,
    work: impl FnOnce(&Arc<Passthrough>) -> Result<(), PassthroughError> + Send + 'static,
) -> Answer {
    let passthrough = Arc::clone(&context.passthrough);
    match tokio::task::spawn_blocking(move || work(&passthrough)).await {
        Ok(Ok(())) => Ok(StatusCode::NO_CONTENT),
        Ok(Err(error @ PassthroughError::Unknown(_))) => {
            Err(refused(StatusCode::NOT_FOUND, error.to_string()))
        }
        Ok(Err(error @ (PassthroughError::Kept(_) | PassthroughError::Twice(_)))) => {
            Err(refused(StatusCode::CONFLICT, error.to_string()))
        }
        Ok(Err(error)) => Err(refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        Err(error) => Err(refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

fn refused(status: StatusCode, error: String) -> (StatusCode, Json<Refusal>) {
    (status, Json(Refusal { error }))
}
