//! Placeholder.

pub mod agent;
pub mod measure;
