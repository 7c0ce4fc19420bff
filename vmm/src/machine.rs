//! A machine: all parts put together, and its life from power-on to its end.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use crate::api::{InfoSource, VmInfo};
use crate::board::boot::{BootError, BootSource};
use crate::board::hot_plug::HotPlug;
use crate::board::power::{self, ActionSink, GuestAction, Power};
use crate::board::{acpi, cpuid, layout};
use crate::bus::{Bus, BusError};
use crate::hv::irq::LegacyIrq;
use crate::hv::vcpu::{FaultReport, Vcpu};
use crate::hv::{HvError, Vm, kick};
use crate::loader::{Kernel, LoadError};
use crate::memory::{GuestRam, MemoryError};
use crate::serial::{Bridge, Ends, SerialError, SerialPort};

pub mod config;
pub mod control;
pub mod devices;
pub mod passthrough;
#[cfg(test)]
mod tests;
pub mod vcpus;

use config::VmConfig;
use control::{Command, Control, Message, State};
use devices::{DeviceError, Devices, Nic, Place};
use passthrough::Passthrough;
use vcpus::{Guest, Stuck, VcpuEvent, VcpuThreads};

/// Why a machine could not be made or run.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The description contradicts itself.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// The hypervisor refused.
    #[error(transparent)]
    Hypervisor(#[from] HvError),
    /// Memory was refused.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initrd or command line were refused.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The serial port was refused.
    #[error(transparent)]
    Serial(#[from] SerialError),
    /// A device was refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Two devices want the same addresses.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The initrd could not be opened.
    #[error("initrd {0} refused: {1}; check --initrd")]
    Initrd(std::path::PathBuf, #[source] std::io::Error),
    /// The number of processors is none that KVM can do.
    #[error("{0} CPUs refused: this host's KVM takes 1 to {1}; change --cpus")]
    Cpus(u8, u8),
    /// A thread could not be started.
    #[error("a thread was refused by the host: {0}")]
    Thread(#[from] std::io::Error),
    /// The vCPUs did not stop.
    #[error(transparent)]
    Stuck(#[from] Stuck),
}

impl From<LoadError> for MachineError {
    fn from(error: LoadError) -> Self {
        Self::Boot(error.into())
    }
}

/// How the life of a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The guest powered off, or it reset and was not to start again.
    PoweredOff,
    /// The guest panicked.
    Panicked,
    /// Somebody stopped it.
    Stopped,
    /// The hypervisor could not go on.
    Fault(FaultReport),
}

/// APIC ids have eight bits, and one of them is everybody's.
const MAX_CPUS: usize = 254;

/// A machine that is ready to be switched on.
#[derive(Debug)]
pub struct Machine {
    vm: Arc<Vm>,
    ram: GuestRam,
    board: acpi::Board,
    source: BootSource,
    power: Arc<Power>,
    serial: Option<Arc<SerialPort>>,
    devices: Devices,
    /// Behind the devices, so that it outlives the last words of theirs.
    console: Option<Bridge>,
    guest: Arc<Guest>,
    irqchip: crate::hv::chipset::ChipsetState,
    control: Control,
    messages: Receiver<Message>,
    vcpus: Vec<Vcpu>,
    reboot: bool,
}

impl Machine {
    /// Puts a machine together.
    pub fn new(config: &VmConfig) -> Result<Self, MachineError> {
        config.check()?;
        let source = open_source(config)?;
        let ends = Ends::open(&config.serial, config.serial_log.as_deref())?;
        let console_ends = Ends::open(&config.console, config.console_log.as_deref())?;
        let vm = Vm::new()?;
        let max = u8::try_from(vm.kvm().get_max_vcpus().min(MAX_CPUS)).expect("at most 254");
        if config.cpus == 0 || config.cpus > max {
            return Err(MachineError::Cpus(config.cpus, max));
        }
        kick::install().map_err(crate::hv::doing("get a signal handler"))?;

        let ram = if config.nodes.is_empty() {
            GuestRam::new(config.ram)?
        } else {
            let nodes: Vec<_> = config.nodes.iter().map(|node| node.ram).collect();
            GuestRam::with_nodes(&nodes, config.ram.hugepages)?
        };
        ram.announce(&*vm)?;
        let template = cpuid::Template::new(vm.kvm(), config.cpus)?;
        let vcpus = Vcpu::create(&vm, config.cpus, |id, tsc_khz| template.for_cpu(id, tsc_khz))?;

        let (control, messages) = Control::new();
        let pio = Arc::new(Bus::new());
        let mmio = Arc::new(Bus::new());
        let sink = ActionSink::new({
            let control = control.clone();
            move |action| control.tell(Message::Guest(action))
        });
        let power = Power::install(&pio, sink, LegacyIrq::new(vm.fd(), power::EVENT_GSI)?)?;
        let serial = match ends {
            Some(ends) => Some(install_serial(&vm, &pio, &control, ends)?),
            None => None,
        };
        let (console, console_end) = match console_ends {
            Some(ends) => {
                let leave = control.clone();
                let (bridge, end) = Bridge::new(ends, move || leave.request(Command::PowerOff))?;
                (Some(bridge), Some(end))
            }
            None => (None, None),
        };
        let ram_end = ram.regions.last().map_or(0, |r| r.guest_addr + r.len);
        let board = acpi::Board {
            cpus: config.cpus,
            mmio64: layout::pci_mmio64(ram_end),
            serial: serial.is_some(),
            nodes: nodes(config, &ram),
        };
        let place = Place {
            vm: &vm,
            ram: &ram,
            pio: &pio,
            mmio: &mmio,
            hot_plug: &HotPlug::new(Arc::clone(&power)),
        };
        let devices = Devices::new(config, place, board.mmio64.clone(), console_end)?;
        let report = control.clone();
        let guest = Arc::new(Guest {
            pio,
            mmio,
            report: Box::new(move |event| report.tell(Message::Vcpu(event))),
        });
        let irqchip = crate::hv::chipset::ChipsetState::save(vm.fd())?;
        let reboot = config.reboot;
        Ok(Self {
            vm,
            ram,
            board,
            source,
            power,
            serial,
            devices,
            console,
            guest,
            irqchip,
            control,
            messages,
            vcpus,
            reboot,
        })
    }

    /// A handle for speaking to the machine while it runs.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The devices of the host that the guest has.
    pub fn passthrough(&self) -> &Arc<Passthrough> {
        self.devices.passthrough()
    }

    /// The serial port, if there is one.
    pub fn serial(&self) -> Option<&Arc<SerialPort>> {
        self.serial.as_ref()
    }

    /// The virtio console's other end, if there is one.
    pub fn console(&self) -> Option<&Bridge> {
        self.console.as_ref()
    }

    /// Tells others what the machine is and does, for as long as they like.
    pub fn info_source(&self, config: &VmConfig) -> InfoSource {
        let control = self.control.clone();
        let serial_pty = self.serial.as_ref().and_then(|s| s.pty().cloned());
        let console_pty = self.console.as_ref().and_then(|c| c.pty().cloned());
        let nics = self.devices.nics().to_vec();
        let passthrough = Arc::clone(self.devices.passthrough());
        let (name, cpus, memory) = (config.name.clone(), config.cpus, config.ram.size);
        Arc::new(move || VmInfo {
            name: name.clone(),
            pid: std::process::id(),
            state: control.state(),
            cpus,
            memory,
            resets: control.resets(),
            serial_pty: serial_pty.clone(),
            console_pty: console_pty.clone(),
            nics: nics.iter().map(Nic::info).collect(),
            devices: passthrough.list(),
        })
    }

    /// Switches the machine on and stays with it to its end.
    pub fn run(mut self) -> Result<Ending, MachineError> {
        let ending = self.live();
        self.control.status().state = State::Ended;
        ending
    }

    fn live(&mut self) -> Result<Ending, MachineError> {
        loop {
            let entry = self.source.prepare(&self.ram, &self.board)?;
            if let Some(first) = self.vcpus.first() {
                entry.apply(first)?;
            }
            let threads = VcpuThreads::start(std::mem::take(&mut self.vcpus), &self.guest)?;
            self.control.status().state = State::Running;
            let next = self.watch(&threads);
            self.vcpus = threads.stop()?;
            match next {
                Next::End(ending) => return Ok(ending),
                Next::Reset => self.reset()?,
            }
        }
    }

    /// Everything that can happen while the vCPUs run.
    fn watch(&self, threads: &VcpuThreads) -> Next {
        while let Ok(message) = self.messages.recv() {
            match message {
                Message::Guest(GuestAction::PowerOff) => return Next::End(Ending::PoweredOff),
                Message::Guest(GuestAction::Panic) => return Next::End(Ending::Panicked),
                Message::Guest(GuestAction::Reset) | Message::Vcpu(VcpuEvent::Shutdown) => {
                    return self.after_reset();
                }
                Message::Vcpu(VcpuEvent::Fault(fault)) => {
                    return Next::End(Ending::Fault(self.with_instruction(fault)));
                }
                Message::Command(command, done) => {
                    let (result, next) = self.obey(command, threads);
                    if let Some(done) = done {
                        // Whoever asked may have gone.
                        let _ = done.try_send(result);
                    }
                    if let Some(next) = next {
                        return next;
                    }
                }
            }
        }
        Next::End(Ending::Stopped)
    }

    fn after_reset(&self) -> Next {
        let serial = self.serial.as_ref().is_some_and(|serial| serial.panic_seen());
        if serial || self.console.as_ref().is_some_and(Bridge::panic_seen) {
            return Next::End(Ending::Panicked);
        }
        if self.reboot {
            Next::Reset
        } else {
            Next::End(Ending::PoweredOff)
        }
    }

    fn obey(&self, command: Command, threads: &VcpuThreads) -> (Result<(), String>, Option<Next>) {
        match command {
            Command::Shutdown => self.power.press_button(),
            Command::PowerOff => return (Ok(()), Some(Next::End(Ending::Stopped))),
            Command::Reset => return (Ok(()), Some(Next::Reset)),
            Command::Pause => {
                if let Err(stuck) = threads.pause() {
                    return (Err(stuck.to_string()), None);
                }
                // With nobody left to give them work, devices stop for good.
                self.devices.pause();
                self.control.status().state = State::Paused;
            }
            Command::Resume => {
                self.devices.resume();
                threads.resume();
                self.control.status().state = State::Running;
            }
        }
        (Ok(()), None)
    }

    /// Back to the state after power-on, with the same vCPUs, memory and connections.
    fn reset(&mut self) -> Result<(), MachineError> {
        self.control.status().state = State::Starting;
        // The last words of the life that has ended. Commands stay: whoever gave one waits.
        let commands: Vec<_> = self
            .messages
            .try_iter()
            .filter(|m| matches!(m, Message::Command(..)))
            .collect();
        self.irqchip.restore(self.vm.fd())?;
        for vcpu in &self.vcpus {
            vcpu.reset()?;
        }
        if let Some(serial) = &self.serial {
            serial.reset();
        }
        if let Some(console) = &self.console {
            console.reset();
        }
        // Before memory is cleared: from here on no device uses it.
        self.devices.reset();
        self.power.reset();
        self.ram.clear(self.devices.passthrough().pins_memory())?;
        self.control.status().resets += 1;
        for command in commands {
            self.control.tell(command);
        }
        Ok(())
    }

    /// Adds the bytes of the instruction from guest memory where KVM did not tell them.
    fn with_instruction(&self, mut fault: FaultReport) -> FaultReport {
        use vm_memory::{Bytes, GuestAddress};
        const LONGEST: usize = 15;
        if fault.instruction.is_empty()
            && let Some(at) = fault.instruction_at
        {
            let mut bytes = [0; LONGEST];
            if let Ok(n) = self.ram.mem.read(&mut bytes, GuestAddress(at)) {
                fault.instruction = bytes[..n.min(LONGEST)].to_vec();
            }
        }
        fault
    }
}

#[derive(Debug)]
enum Next {
    End(Ending),
    Reset,
}

/// The NUMA nodes that the guest is told of.
fn nodes(config: &VmConfig, ram: &GuestRam) -> Vec<acpi::Node> {
    let node = |(node, memory): (&config::NodeConfig, _)| acpi::Node {
        cpus: node.cpus.clone(),
        memory,
    };
    config.nodes.iter().zip(ram.nodes()).map(node).collect()
}

fn open_source(config: &VmConfig) -> Result<BootSource, MachineError> {
    let initrd = match &config.initrd {
        Some(path) => Some(std::fs::File::open(path).map_err(|e| MachineError::Initrd(path.clone(), e))?),
        None => None,
    };
    Ok(BootSource {
        kernel: Kernel::open(&config.kernel)?,
        initrd,
        cmdline: config.cmdline.clone(),
    })
}

fn install_serial(
    vm: &Arc<Vm>,
    pio: &Bus,
    control: &Control,
    ends: Ends,
) -> Result<Arc<SerialPort>, MachineError> {
    let leave = control.clone();
    let line = LegacyIrq::new(vm.fd(), layout::SERIAL_GSI)?;
    let serial = SerialPort::new(ends, line, move || leave.request(Command::PowerOff))?;
    let first = u64::from(layout::SERIAL_PORT);
    pio.insert(
        first..first + 8,
        Arc::clone(&serial) as Arc<dyn crate::bus::BusDevice>,
    )?;
    Ok(serial)
}
