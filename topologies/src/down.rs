//! Stops a lab, whatever state it is in.

use std::time::Duration;

use crate::lock::{Lock, LockError};
use crate::paths::RunDir;
use crate::progress::Progress;
use crate::remove::{RemoveError, remove};
use crate::state::{Phase, State, StateError};

/// A lab could not be stopped.
#[derive(Debug, thiserror::Error)]
pub enum DownError {
    /// Another `lab` is at it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Its state cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// Something of it stays.
    #[error(transparent)]
    Remove(#[from] RemoveError),
}

/// Stops the lab called `name`, its machines having `grace` to power off. False if there was nothing to stop.
pub async fn down(name: &str, run: &RunDir, grace: Duration) -> Result<bool, DownError> {
    let dir = run.lab(name);
    if State::load(&dir)?.is_none() {
        return Ok(false);
    }
    let _lock = Lock::take(&dir.lock(), name)?;
    // Another `lab` may have been faster.
    let Some(mut state) = State::load(&dir)? else {
        return Ok(false);
    };
    state.phase = Phase::Stopping;
    state.save(&dir)?;
    remove(&state, &dir, grace, &Progress::new()).await?;
    Ok(true)
}
