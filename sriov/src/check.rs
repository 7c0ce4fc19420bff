//! What stands between a function and a guest, each obstacle with its cure.

mod function;
mod host;

use serde::Serialize;

use crate::inventory::{self, Function};
use crate::sysfs::Sysfs;

pub use function::{addresses, function};
pub use host::host;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, with a surprise.
    Warning,
    /// Will not work.
    Failure,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub text: String,
    /// What to do about it.
    pub cure: Option<String>,
}

impl Finding {
    fn ok(text: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            text: text.into(),
            cure: None,
        }
    }

    fn warning(text: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            text: text.into(),
            cure: Some(cure.into()),
        }
    }

    fn failure(text: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            level: Level::Failure,
            text: text.into(),
            cure: Some(cure.into()),
        }
    }
}

/// What `sriov check` looks at when it is given no name: the PFs, their VFs and the other network functions.
pub fn candidates(sysfs: &Sysfs) -> Vec<Function> {
    let all = inventory::functions(sysfs).into_iter();
    all.filter(|function| function.is_network() || function.sriov.is_some())
        .collect()
}
