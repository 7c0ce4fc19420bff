//! The x86-64 board: where things are and what a guest is told about them.

pub mod layout;
