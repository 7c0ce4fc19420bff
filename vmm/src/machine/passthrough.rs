//! The devices of the host that the guest has, and how they come and go.
//!
//! ```text
//!            add                     eject by the guest, or its reset,
//!   (host) ───────► working ──────────────────────────────┐  or taken by force
//!                    │    │ device del, or the host wants  ▼
//!                    │    └─────────────► leaving ──────► (host)
//!                    └─ error ──► failed, or no answer any more ──► gone ──► (host), by force or when the host wants it
//! ```

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::board::hot_plug::HotPlug;
use crate::hv::Vm;
use crate::memory::GuestRam;
use crate::pci::{Function, PciError, Root};
use crate::vfio::dma::{Attached, DmaSpaces};
use crate::vfio::host::HostDevice;
use crate::vfio::watch::{Notice, Watch};
use crate::vfio::{OpenError, Source, VfioFunction};

mod slots;

/// How long the guest may take to let go.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a device could not come or go.
#[derive(Debug, thiserror::Error)]
pub enum PassthroughError {
    /// It could not be had.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The bus has no room.
    #[error("device {0}: {1}")]
    Pci(Source, #[source] PciError),
    /// The guest has it.
    #[error("device {0} refused: this VM has it already")]
    Twice(Source),
    /// The host has refused a thread.
    #[error("device {0} refused by the host: {1}")]
    Watch(Source, #[source] std::io::Error),
    /// There is no such device.
    #[error("this VM has no device {0}; `vmm device list` shows those that it has")]
    Unknown(String),
    /// The guest has not let go of it.
    #[error(
        "the guest has not let go of {0} within {limit} s; it still may, and --force takes it away",
        limit = PATIENCE.as_secs()
    )]
    Kept(String),
}

/// How a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// The guest has it.
    Working,
    /// The guest has been asked to let go of it.
    Leaving,
    /// It has reported an error that it does not recover from, and was stopped. Take it out.
    Failed,
    /// It does not answer any more: it was pulled out, or its link is down. Take it out.
    Gone,
}

/// What a device is and does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeviceInfo {
    /// Its PCI address on the host, or the descriptor that it came as.
    pub device: String,
    /// Its PCI address in the guest.
    pub guest_address: String,
    /// How it is.
    pub state: DeviceState,
    /// The host wants it back.
    pub wanted: bool,
}

#[derive(Debug)]
struct Device {
    name: String,
    /// Those of one slot come and go together.
    slot: u8,
    /// Its number in the slot.
    number: u8,
    state: DeviceState,
    /// Since when the host wants it back.
    wanted: Option<Instant>,
    function: Arc<VfioFunction>,
    // Dropped in this order: nobody listens to a device that is gone, and it goes before its address space.
    _watch: Watch,
    _attached: Attached,
}

#[derive(Debug, Default)]
struct Inner {
    spaces: DmaSpaces,
    devices: Vec<Device>,
    /// Names of devices that are being given back.
    closing: Vec<String>,
    /// Slots whose device was taken away, which the guest has not noticed yet: what came into them would pass for the old one.
    stale: Vec<u8>,
}

impl Inner {
    /// The guest is being asked for what is in `slot`.
    fn leave(&mut self, slot: u8) {
        for device in &mut self.devices {
            if device.slot == slot && device.state == DeviceState::Working {
                device.state = DeviceState::Leaving;
            }
        }
    }
}

/// The devices of the host that a VM has.
#[derive(Debug)]
pub struct Passthrough {
    vm: Arc<Vm>,
    ram: GuestRam,
    root: Arc<Root>,
    hot_plug: Arc<HotPlug>,
    inner: Mutex<Inner>,
    gone: Condvar,
}

impl Passthrough {
    /// No devices yet.
    pub fn new(vm: &Arc<Vm>, ram: &GuestRam, root: &Arc<Root>, hot_plug: &Arc<HotPlug>) -> Arc<Self> {
        Arc::new(Self {
            vm: Arc::clone(vm),
            ram: ram.clone(),
            root: Arc::clone(root),
            hot_plug: Arc::clone(hot_plug),
            inner: Mutex::default(),
            gone: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts devices before a guest that runs, and tells it so. On failure none is there.
    pub fn plug(self: &Arc<Self>, sources: &[Source]) -> Result<(), PassthroughError> {
        for slot in self.add(sources)? {
            self.hot_plug.plugged(slot);
        }
        Ok(())
    }

    /// Puts devices into slots, which are returned: functions of one device into one. On failure none is there.
    pub fn add(self: &Arc<Self>, sources: &[Source]) -> Result<Vec<u8>, PassthroughError> {
        // The host may offer a device again before the VM has seen the end of giving it back.
        let names: Vec<String> = sources.iter().map(Source::name).collect();
        let closing = |inner: &mut Inner| inner.closing.iter().any(|name| names.contains(name));
        let (mut inner, _) = self
            .gone
            .wait_timeout_while(self.lock(), PATIENCE, closing)
            .unwrap_or_else(PoisonError::into_inner);
        let mut slots = Vec::new();
        let mut devices = Vec::new();
        let result = self.fill(&mut inner, sources, &mut slots, &mut devices);
        if result.is_ok() {
            inner.devices.append(&mut devices);
        } else {
            for slot in &slots {
                // It was put there just now, and nobody else has had it.
                let _ = self.root.remove(*slot);
            }
        }
        // What is left ends when nobody waits for the lock: a device may be saying something.
        drop(inner);
        result.map(|()| slots)
    }

    fn fill(
        self: &Arc<Self>,
        inner: &mut Inner,
        sources: &[Source],
        slots: &mut Vec<u8>,
        devices: &mut Vec<Device>,
    ) -> Result<(), PassthroughError> {
        for mates in slots::share(sources, slots::is_virtual) {
            let first = devices.len();
            for &(number, source) in &mates {
                let name = source.name();
                let known = inner.devices.iter().chain(&*devices).map(|device| &device.name);
                if known.chain(&inner.closing).any(|known| *known == name) {
                    return Err(PassthroughError::Twice(source.clone()));
                }
                devices.push(self.open(inner, source, name, number)?);
            }
            let functions = devices[first..]
                .iter()
                .map(|device| (device.number, Arc::clone(&device.function) as Arc<dyn Function>));
            let slot = self
                .root
                .add_hot_plug(functions.collect(), &inner.stale)
                .map_err(|error| PassthroughError::Pci(mates[0].1.clone(), error))?;
            slots.push(slot);
            for device in &mut devices[first..] {
                device.slot = slot;
            }
        }
        Ok(())
    }

    /// Opens a device, which has no slot yet.
    fn open(
        self: &Arc<Self>,
        inner: &mut Inner,
        source: &Source,
        name: String,
        number: u8,
    ) -> Result<Device, PassthroughError> {
        let attached = inner.spaces.attach(source, &self.vm, &self.ram)?;
        let Some(device) = attached.device().map(Arc::clone) else {
            return Err(PassthroughError::Unknown(name));
        };
        let function = VfioFunction::new(Arc::clone(&device) as _, Arc::clone(&self.vm) as _)
            .map_err(|reason| OpenError::Unsupported(source.clone(), reason))?;
        let watch = Watch::start(&*device as &dyn HostDevice, self.listener(name.clone()))
            .map_err(|error| PassthroughError::Watch(source.clone(), error))?;
        Ok(Device {
            name,
            slot: 0,
            number,
            state: DeviceState::Working,
            wanted: None,
            function: Arc::new(function),
            _watch: watch,
            _attached: attached,
        })
    }

    fn listener(self: &Arc<Self>, name: String) -> impl Fn(Notice) + Send + 'static {
        let this: Weak<Self> = Arc::downgrade(self);
        move |notice| {
            if let Some(this) = this.upgrade() {
                this.hear(&name, notice);
            }
        }
    }

    /// Takes a device from the guest, and what shares its slot, when the guest has let go of it or by force. When this returns
    /// well, the host has it.
    pub fn remove(&self, name: &str, force: bool) -> Result<(), PassthroughError> {
        let unknown = || PassthroughError::Unknown(name.to_owned());
        let mut inner = self.lock();
        let device = inner.devices.iter().find(|device| device.name == name);
        let slot = device.ok_or_else(unknown)?.slot;
        if force {
            drop(inner);
            self.take_away(slot);
            return Ok(());
        }
        inner.leave(slot);
        self.hot_plug.ask_for(slot);
        let there = |inner: &mut Inner| {
            let closing = inner.closing.iter().any(|closing| closing == name);
            closing || inner.devices.iter().any(|device| device.name == name)
        };
        let (_inner, waited) = self
            .gone
            .wait_timeout_while(inner, PATIENCE, there)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(PassthroughError::Kept(name.to_owned()));
        }
        Ok(())
    }

    /// The guest has let go of what is in `slot`.
    pub fn ejected(&self, slot: u8) {
        self.lock().stale.retain(|stale| *stale != slot);
        self.take_out(slot);
    }

    /// Everything that the guest has been asked for goes when it starts again.
    pub fn reset(&self) {
        self.hot_plug.reset();
        let mut inner = self.lock();
        inner.stale.clear();
        let leaving: Vec<u8> = inner
            .devices
            .iter()
            .filter(|device| device.state == DeviceState::Leaving)
            .map(|device| device.slot)
            .collect();
        drop(inner);
        for slot in leaving {
            self.take_out(slot);
        }
    }

    /// True if guest RAM must stay where it is.
    pub fn pins_memory(&self) -> bool {
        self.lock().spaces.in_use()
    }

    /// What there is, and how it is now: nobody tells when a device is pulled out.
    pub fn list(&self) -> Vec<DeviceInfo> {
        let mut inner = self.lock();
        let mut gone = Vec::new();
        for device in &mut inner.devices {
            if device.state == DeviceState::Working && !device.function.answers() {
                tracing::error!(
                    device.name,
                    "the device does not answer; it waits to be taken out"
                );
                device.state = DeviceState::Gone;
                gone.push(Arc::clone(&device.function));
            }
        }
        drop(inner);
        for function in gone {
            function.quiesce();
        }
        let info = |device: &Device| DeviceInfo {
            device: device.name.clone(),
            guest_address: format!("0000:00:{:02x}.{}", device.slot, device.number),
            state: device.state,
            wanted: device.wanted.is_some(),
        };
        self.lock().devices.iter().map(info).collect()
    }

    fn hear(&self, name: &str, notice: Notice) {
        let mut inner = self.lock();
        let Some(device) = inner.devices.iter_mut().find(|device| device.name == name) else {
            return;
        };
        match notice {
            Notice::Failed => {
                tracing::error!(
                    name,
                    "the device has failed; it is stopped, and waits to be taken out"
                );
                device.state = DeviceState::Failed;
                let function = Arc::clone(&device.function);
                drop(inner);
                function.quiesce();
            }
            Notice::Wanted => {
                let since = *device.wanted.get_or_insert_with(Instant::now);
                let slot = device.slot;
                if !device.function.answers() {
                    tracing::error!(
                        name,
                        "the device does not answer and the host wants it back; it is taken away"
                    );
                    drop(inner);
                    self.take_away(slot);
                } else if since.elapsed() < PATIENCE {
                    tracing::warn!(
                        name,
                        "the host wants the device back; the guest is asked to let go of it"
                    );
                    inner.leave(slot);
                    drop(inner);
                    self.hot_plug.ask_for(slot);
                } else {
                    tracing::error!(name, "the guest does not let go of the device; it is taken away");
                    drop(inner);
                    self.take_away(slot);
                }
            }
        }
    }

    /// Takes a device out without the guest's consent, and has the guest let go of what it still believes to be there.
    fn take_away(&self, slot: u8) {
        self.lock().stale.push(slot);
        self.take_out(slot);
        self.hot_plug.ask_for(slot);
    }

    fn take_out(&self, slot: u8) {
        let mut inner = self.lock();
        let (taken, kept) = inner
            .devices
            .drain(..)
            .partition::<Vec<_>, _>(|device| device.slot == slot);
        inner.devices = kept;
        if taken.is_empty() {
            return;
        }
        let names: Vec<String> = taken.iter().map(|device| device.name.clone()).collect();
        inner.closing.extend_from_slice(&names);
        drop(inner);
        for device in &taken {
            device.function.quiesce();
        }
        if let Err(error) = self.root.remove(slot) {
            tracing::error!(slot, %error, "a device that is taken out was not on the bus");
        }
        drop(taken);
        self.lock().closing.retain(|closing| !names.contains(closing));
        self.gone.notify_all();
    }
}
