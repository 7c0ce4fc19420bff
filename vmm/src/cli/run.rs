//! `vmm run`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use super::{EXIT_FAILED, EXIT_FAULT, EXIT_HOST, EXIT_PANICKED, EXIT_STOPPED, RunArgs};
use crate::api::{self, ApiError};
use crate::hv::HvError;
use crate::machine::config::VmConfig;
use crate::machine::devices::DeviceError;
use crate::machine::{Ending, Machine, MachineError};
use crate::memory::MemoryError;

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
            ExitCode::from(if refused_by_host(&error) {
                EXIT_HOST
            } else {
                EXIT_FAILED
            })
        }
    }
}

fn config(args: RunArgs) -> VmConfig {
    VmConfig {
        name: args.name,
        kernel: args.kernel,
        initrd: args.initrd,
        cmdline: args.cmdline,
        cpus: args.cpus,
        ram: args.memory.0,
        nets: args.net,
        disks: args.disk,
        devices: args.device,
        channels: args.channel,
        serial: args.serial.end,
        serial_log: args.serial.log,
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
                    MemoryError::File(_) | MemoryError::Map(..) | MemoryError::HugePages(..)
                )
                | MachineError::Device(DeviceError::Passthrough(_))
                | MachineError::Cpus(..)
                | MachineError::Thread(_)
        )
    )
}
