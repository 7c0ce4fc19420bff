//! The devices on the PCI bus: network cards, disks, entropy, channels.

use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::config::{self, VmConfig};
use super::passthrough::{Passthrough, PassthroughError};
use crate::api::NicInfo;
use crate::board::hot_plug::HotPlug;
use crate::board::layout;
use crate::bus::{Bus, BusError};
use crate::hv::Vm;
use crate::memory::GuestRam;
use crate::pci::config_access::{ConfigPorts, Ecam, PORTS_BASE, PORTS_LEN};
use crate::pci::{PciError, Root, Windows};
use crate::vhost_user::{NicError, NicMonitor, NicOptions, SocketMode, VhostUserNet};
use crate::virtio::blk::{Blk, DiskError, DiskOptions};
use crate::virtio::console::{Channel, Console, ConsoleError};
use crate::virtio::device::VirtioDevice;
use crate::virtio::pci::{TransportError, VirtioPci};
use crate::virtio::rng::Rng;

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A range of addresses is taken.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The bus has no room.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// A virtio device did not get what it needs.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A network card was refused.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// A channel was refused.
    #[error(transparent)]
    Channel(#[from] ConsoleError),
    /// A disk was refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A device of the host was refused.
    #[error(transparent)]
    Passthrough(#[from] PassthroughError),
}

/// More than that do not make a disk faster.
const MAX_DISK_QUEUES: u16 = 8;

/// Where devices are put.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The hypervisor.
    pub vm: &'a Arc<Vm>,
    /// Guest memory.
    pub ram: &'a GuestRam,
    /// Ports.
    pub pio: &'a Arc<Bus>,
    /// Memory addresses.
    pub mmio: &'a Arc<Bus>,
    /// How the guest hears of functions that come and go.
    pub hot_plug: &'a Arc<HotPlug>,
}

/// All devices on the bus.
#[derive(Debug)]
pub struct Devices {
    root: Arc<Root>,
    nics: Vec<Nic>,
    passthrough: Arc<Passthrough>,
}

/// What is shown of a network card.
#[derive(Debug, Clone)]
pub struct Nic {
    config: config::NetConfig,
    monitor: NicMonitor,
}

impl Devices {
    /// Makes the bus and puts the devices of `config` on it, network cards first. The virtio console's other end is
    /// `console`.
    pub fn new(
        config: &VmConfig,
        place: Place<'_>,
        mmio64: Range<u64>,
        console: Option<UnixStream>,
    ) -> Result<Self, DeviceError> {
        let windows = Windows {
            mmio32: layout::PCI_MMIO32,
            mmio64,
            ports: layout::PCI_PORTS,
        };
        let root = Root::new(Arc::clone(place.mmio), Arc::clone(place.pio), windows);
        let ecam = layout::ECAM_BASE..layout::ECAM_BASE + layout::ECAM_LEN;
        place.mmio.insert(ecam, Arc::new(Ecam::new(&root)))?;
        place.pio.insert(
            PORTS_BASE..PORTS_BASE + PORTS_LEN,
            Arc::new(ConfigPorts::new(&root)),
        )?;
        let passthrough = Passthrough::new(place.vm, place.ram, &root, place.hot_plug);
        let owner = Arc::downgrade(&passthrough);
        place.hot_plug.install(place.pio, move |slot| {
            if let Some(passthrough) = owner.upgrade() {
                passthrough.ejected(slot);
            }
        })?;
        let mut devices = Self {
            root,
            nics: Vec::new(),
            passthrough,
        };

        for (index, net) in config.nets.iter().enumerate() {
            let nic = VhostUserNet::new(nic_options(index, net))?;
            devices.nics.push(Nic {
                config: net.clone(),
                monitor: nic.monitor(),
            });
            devices.add(Box::new(nic), place)?;
        }
        for disk in &config.disks {
            let options = DiskOptions {
                readonly: disk.readonly,
                queues: u16::from(config.cpus).min(MAX_DISK_QUEUES),
                ..DiskOptions::new(&disk.path)
            };
            devices.add(Box::new(Blk::new(options)?), place)?;
        }
        devices.add(Box::new(Rng::new()), place)?;
        if console.is_some() || !config.channels.is_empty() {
            let channels: Vec<_> = config
                .channels
                .iter()
                .map(|c| Channel {
                    name: c.name.clone(),
                    socket: c.socket.clone(),
                })
                .collect();
            devices.add(Box::new(Console::new(console, &channels)?), place)?;
        }
        devices.passthrough.add(&config.devices)?;
        Ok(devices)
    }

    fn add(&self, device: Box<dyn VirtioDevice>, place: Place<'_>) -> Result<(), DeviceError> {
        let function = VirtioPci::new(device, place.ram.clone(), Arc::clone(place.vm) as _)?;
        self.root.add(Arc::new(function))?;
        Ok(())
    }

    /// Has all devices keep away from guest memory.
    pub fn pause(&self) {
        self.root.pause();
    }

    /// Lets all devices go on.
    pub fn resume(&self) {
        self.root.resume();
    }

    /// Back to the state after power-on; connections stay.
    pub fn reset(&self) {
        self.passthrough.reset();
        self.root.reset();
    }

    /// The devices of the host among them.
    pub fn passthrough(&self) -> &Arc<Passthrough> {
        &self.passthrough
    }

    /// The network cards.
    pub fn nics(&self) -> &[Nic] {
        &self.nics
    }
}

impl Nic {
    /// What it is and does now.
    pub fn info(&self) -> NicInfo {
        let status = self.monitor.status();
        NicInfo {
            socket: self.config.socket.clone(),
            mac: self
                .config
                .mac
                .map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":")),
            queue_pairs: self.config.queues,
            link_up: status.link_up,
            connected: status.connected,
        }
    }
}

fn nic_options(index: usize, net: &config::NetConfig) -> NicOptions {
    NicOptions {
        mode: match net.mode {
            config::SocketMode::Client => SocketMode::Client,
            config::SocketMode::Server => SocketMode::Server,
        },
        mac: net.mac,
        queue_pairs: net.queues,
        ..NicOptions::new(format!("net{index}"), &net.socket)
    }
}
