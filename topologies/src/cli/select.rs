//! Which lab, and which of its nodes, a command means.

use super::CliError;
use super::args::{LabArgs, Which};
use crate::check;
use crate::paths::RunDir;
use crate::problem::Refused;
use crate::state::{self, State};

/// The lab that an option names, else the only one that is up.
fn chosen(lab: &LabArgs, run: &RunDir) -> Result<State, CliError> {
    match (&lab.lab, &lab.file) {
        (Some(name), _) => named(name, run),
        (None, Some(file)) => named(&check::name_of(file)?, run),
        (None, None) => only(run),
    }
}

pub(super) fn named(name: &str, run: &RunDir) -> Result<State, CliError> {
    State::load(&run.lab(name))?.ok_or_else(|| CliError::NotUp(name.to_owned()))
}

pub(super) fn only(run: &RunDir) -> Result<State, CliError> {
    let names = state::names(run)?;
    match names.as_slice() {
        [] => Err(CliError::NoneUp),
        [name] => named(name, run),
        several => Err(CliError::Several(several.join(", "))),
    }
}

/// A node of the lab that is meant.
pub(super) fn node(lab: &LabArgs, node: &str, run: &RunDir) -> Result<(State, String), CliError> {
    let state = chosen(lab, run)?;
    if state.lab.node(node).is_some() {
        return Ok((state, node.to_owned()));
    }
    let known: Vec<&str> = state.lab.nodes.iter().map(|node| node.name.as_str()).collect();
    Err(CliError::NoNode {
        near: crate::problem::did_you_mean(node, known.iter().copied()),
        known: known.join(", "),
        lab: state.lab.name.clone(),
        node: node.to_owned(),
    })
}

impl Which {
    /// The lab's name, if one was given.
    pub(super) fn name(&self) -> Result<Option<String>, Refused> {
        match (&self.lab, &self.file) {
            (Some(name), _) => Ok(Some(name.clone())),
            (None, Some(file)) => check::name_of(file).map(Some),
            (None, None) => Ok(None),
        }
    }
}
