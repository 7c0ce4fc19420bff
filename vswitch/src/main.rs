//! `vswitch`: a learning Ethernet switch for virtual machines.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    vswitch::cli::main()
}
