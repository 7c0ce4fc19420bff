//! Labs: whole networks of virtual machines, described by one file.
//!
//! [`check::load`] reads and checks a lab file and gives a [`lab::Lab`]; [`plan::Plan`] says which processes it takes.

#![forbid(unsafe_code)]

pub mod agent;
pub mod check;
pub mod cli;
pub mod console;
pub mod control;
pub mod down;
pub mod emulated;
pub mod engine;
pub mod image;
pub mod initramfs;
pub mod lab;
pub mod lock;
pub mod mac;
pub mod measure;
mod memory_size;
pub mod passthrough;
pub mod paths;
pub mod plan;
pub mod problem;
pub mod process;
pub mod programs;
pub mod progress;
pub mod remove;
mod schema;
pub mod state;
pub mod status;
pub mod up;
