//! `vhost-net-backend`: one virtio-net NIC behind a vhost-user socket, on a tap or on another back-end.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
