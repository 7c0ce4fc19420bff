//! `vmm run`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use super::options::SerialOption;
use super::{EXIT_FAILED, EXIT_FAULT, EXIT_HOST, EXIT_PANICKED, EXIT_STOPPED, EXIT_USAGE, RunArgs};
use crate::api::{self, ApiError};
use crate::hv::HvError;
use crate::machine::config::VmConfig;
use crate::machine::devices::DeviceError;
use crate::machine::{Ending, Machine, MachineError};
use crate::memory::MemoryError;
use crate::serial::SerialConfig;

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// Runs the machine that `args` describe to its end.
pub fn run(args: RunArgs) -> ExitCode {
    let api_socket = args.api_socket.clone();
    match start(&config(args), api_socket) {
        Ok(ending) => ExitCode::from(exit_code(&ending)),
        Err(error) => {
            eprintln!("vmm: {error}");
            ExitCode::from(match &error {
                RunError::Machine(MachineError::Config(_)) => EXIT_USAGE,
                error if refused_by_host(error) => EXIT_HOST,
                _ => EXIT_FAILED,
            })
        }
    }
}

fn config(args: RunArgs) -> VmConfig {
    let stdio = SerialOption {
        end: SerialConfig::Stdio,
        log: None,
    };
    let serial = args.serial.unwrap_or(match args.console.end {
        SerialConfig::Stdio => SerialOption {
            end: SerialConfig::Off,
            ..stdio
        },
        _ => stdio,
    });
    VmConfig {
        name: args.name,
        kernel: args.kernel,
        initrd: args.initrd,
        cmdline: args.cmdline,
        cpus: args.cpus,
        ram: args.memory.0,
        nodes: args.numa,
        nets: args.net,
        disks: args.disk,
        devices: args.device,
        channels: args.channel,
        serial: serial.end,
        serial_log: serial.log,
        console: args.console.end,
        console_log: args.console.log,
        reboot: !args.no_reboot,
    }
}

fn start(config: &VmConfig, api_socket: Option<PathBuf>) -> Result<Ending, RunError> {
    let machine = Machine::new(config)?;
    if !crate::check::has_hardware_virtualization() {
        eprintln!("vmm: warning: {}", crate::check::SOFTWARE_KVM);
    }
    if let Some(name) = machine.serial().and_then(|s| s.pty()) {
        eprintln!("vmm: serial port on {}", name.display());
    }
    if let Some(name) = machine.console().and_then(|c| c.pty()) {
        eprintln!("vmm: console on {}", name.display());
    }
    let _server = api::serve(
        machine.info_source(config),
        machine.control().clone(),
        Arc::clone(machine.passthrough()),
        api_socket,
    )?;
    Ok(machine.run()?)
}

fn exit_code(ending: &Ending) -> u8 {
    match ending {
        Ending::PoweredOff => 0,
        Ending::Panicked => {
            eprintln!("vmm: the guest panicked; its console says why");
            EXIT_PANICKED
        }
        Ending::Stopped => EXIT_STOPPED,
        Ending::Fault(fault) => {
            eprintln!("vmm: {fault}");
            EXIT_FAULT
        }
    }
}

fn refused_by_host(error: &RunError) -> bool {
    matches!(
        error,
        RunError::Machine(
            MachineError::Hypervisor(HvError::Open(_) | HvError::Missing(_))
                | MachineError::Memory(
                    MemoryError::File(_)
                        | MemoryError::Map(..)
                        | MemoryError::HugePages(..)
                        | MemoryError::HostNode(..)
                )
                | MachineError::Device(DeviceError::Passthrough(_))
                | MachineError::Cpus(..)
                | MachineError::Thread(_)
        )
    )
}
