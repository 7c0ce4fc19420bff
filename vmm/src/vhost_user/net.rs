//! The NIC as the PCI transport sees it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{info, warn};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::control::ControlQueue;
use super::features;
use super::link::Timeouts;
use super::rings::{ActiveNic, Ring};
use super::shared::{NicStatus, Shared};
use super::socket::{Connector, SocketMode};
use super::supervisor::{Command, Supervisor};
use super::watchdog::{Cutter, Watchdog};
use crate::listener::SocketError;
use crate::memory::{GuestRam, MemoryObserver, RamRegion};
use crate::virtio::device::{ActivateError, Activation, ActiveQueue, ConfigIrq, VirtioDevice};
use crate::virtio::worker::Worker;

/// The device type number of a network device.
const DEVICE_TYPE: u32 = 1;
/// Queue pairs that a NIC may have.
pub const MAX_QUEUE_PAIRS: u16 = 16;
const RING_SIZE: u16 = 1024;
const CONTROL_RING_SIZE: u16 = 64;
/// How long a guest waits for a back-end to let go of its rings before the connection is cut instead.
const PATIENCE: Duration = Duration::from_secs(1);

/// How to make a NIC.
#[derive(Clone, Debug)]
pub struct NicOptions {
    /// What messages call it.
    pub name: String,
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// Who listens on it.
    pub mode: SocketMode,
    /// The guest's MAC address; without one, the back-end's, or the guest makes one up.
    pub mac: Option<[u8; 6]>,
    /// The most queue pairs that the guest may use.
    pub queue_pairs: u16,
    /// How long the VM's start waits for the back-end, so that the guest can be offered just what it has.
    pub wait: Duration,
    /// How long a back-end may take over its answers.
    pub timeouts: Timeouts,
}

impl NicOptions {
    /// One queue pair on a back-end that listens on `socket`.
    pub fn new(name: impl Into<String>, socket: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            socket: socket.into(),
            mode: SocketMode::Client,
            mac: None,
            queue_pairs: 1,
            wait: Duration::from_secs(2),
            timeouts: Timeouts::default(),
        }
    }
}

/// Why a NIC cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// The socket is of no use.
    #[error("NIC {name}: {source}")]
    Socket {
        /// The NIC.
        name: String,
        /// What is wrong with it.
        source: SocketError,
    },
    /// More queue pairs than a NIC can have, or none.
    #[error("NIC {name}: {pairs} queue pairs are refused; give 1 to {MAX_QUEUE_PAIRS}")]
    QueuePairs {
        /// The NIC.
        name: String,
        /// What was asked for.
        pairs: u16,
    },
    /// A group address cannot be a NIC's own.
    #[error("NIC {name}: its MAC address is a group address; clear the lowest bit of its first byte")]
    GroupAddress {
        /// The NIC.
        name: String,
    },
    /// The operating system refused something.
    #[error("NIC {name}: {source}")]
    Os {
        /// The NIC.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// A virtio-net device whose rings are served by a vhost-user back-end.
#[derive(Debug)]
pub struct VhostUserNet {
    name: String,
    shared: Arc<Shared>,
    commands: Sender<Command>,
    cutter: Cutter,
    supervisor: Option<JoinHandle<()>>,
    control: Option<Worker>,
    /// While the guest's driver is ready: what queues need that it sets up anew.
    terms: Option<Terms>,
    queue_sizes: Vec<u16>,
    acked: u64,
}

/// What an activation gives besides the queues.
#[derive(Debug)]
struct Terms {
    ram: GuestRam,
    config_irq: ConfigIrq,
    control_index: u16,
    /// The back-end serves the control queue.
    forwards: bool,
}

/// Reads a NIC's state, from any thread, for as long as anybody wants to know.
#[derive(Clone, Debug)]
pub struct NicMonitor(Arc<Shared>);

impl NicMonitor {
    /// The state now.
    pub fn status(&self) -> NicStatus {
        self.0.lock().status.clone()
    }

    /// Waits until the state is as `wanted`; false if it is not in time.
    pub fn wait_for(&self, limit: Duration, mut wanted: impl FnMut(&NicStatus) -> bool) -> bool {
        self.0.wait_until(limit, |state| wanted(&state.status))
    }
}

/// Tells a NIC's back-end of changes to the guest's memory.
#[derive(Clone, Debug)]
pub struct NicMemory {
    shared: Arc<Shared>,
    commands: Sender<Command>,
}

impl VhostUserNet {
    /// Makes the NIC and looks for its back-end, for a while. A back-end that is not there is no error: the guest
    /// sees its link down until there is one.
    pub fn new(options: NicOptions) -> Result<Self, NicError> {
        let NicOptions {
            name,
            socket,
            mode,
            mac,
            queue_pairs,
            wait,
            timeouts,
        } = options;
        if !(1..=MAX_QUEUE_PAIRS).contains(&queue_pairs) {
            return Err(NicError::QueuePairs {
                name,
                pairs: queue_pairs,
            });
        }
        if mac.is_some_and(|mac| mac[0] & 1 != 0) {
            return Err(NicError::GroupAddress { name });
        }
        let connector = match Connector::new(&socket, mode) {
            Ok(connector) => connector,
            Err(source) => return Err(NicError::Socket { name, source }),
        };
        let os = |source| NicError::Os {
            name: name.clone(),
            source,
        };
        let wake = EventFd::new(EFD_NONBLOCK).map_err(os)?;
        let shared = Arc::new(Shared::new(mac, queue_pairs, wake));
        let watchdog = Watchdog::new(&name).map_err(os)?;
        let cutter = watchdog.cutter();
        let (commands, received) = channel();
        let supervisor = Supervisor::new(
            name.clone(),
            Arc::clone(&shared),
            received,
            connector,
            watchdog,
            timeouts,
        );
        let supervisor = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || supervisor.run())
            .map_err(os)?;

        if !shared.wait_until(wait, |state| state.seen.is_some()) {
            warn!(
                "{name}: no back-end on {} yet: the guest starts with its link down",
                socket.display()
            );
        }
        shared.renew_offer();
        let mut queue_sizes = vec![RING_SIZE; usize::from(queue_pairs) * 2];
        queue_sizes.push(CONTROL_RING_SIZE);
        Ok(Self {
            name,
            shared,
            commands,
            cutter,
            supervisor: Some(supervisor),
            control: None,
            terms: None,
            queue_sizes,
            acked: 0,
        })
    }

    /// A view of the NIC's state.
    pub fn monitor(&self) -> NicMonitor {
        NicMonitor(Arc::clone(&self.shared))
    }

    /// Where to report changes to the guest's memory.
    pub fn memory(&self) -> NicMemory {
        NicMemory {
            shared: Arc::clone(&self.shared),
            commands: self.commands.clone(),
        }
    }

    fn send(&self, command: Command) {
        send(&self.commands, &self.shared, command);
    }

    /// Sends what takes the rings away from the back-end, and waits until it has.
    fn send_and_wait(&self, command: impl FnOnce(SyncSender<()>) -> Command) {
        let (done, answer) = sync_channel(1);
        self.send(command(done));
        while let Err(RecvTimeoutError::Timeout) = answer.recv_timeout(PATIENCE) {
            // A back-end that runs rings is given its full time to stop them. Anything else that it has not
            // answered is no reason to keep a guest waiting: cut off, it has to begin anew.
            if !self.shared.lock().rings_running {
                self.cutter.cut();
            }
        }
    }

    /// Serves the control queue, if the guest's driver makes use of it.
    fn start_control(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        if let Some(terms) = &self.terms
            && self.acked & features::CTRL_VQ != 0
        {
            self.control = Some(ControlQueue::start(
                &self.name,
                queue,
                &terms.ram,
                self.acked,
                terms.control_index / 2,
                Arc::clone(&self.shared),
                terms.config_irq.clone(),
            )?);
        }
        Ok(())
    }

    /// The control queue comes behind the last queue pair that the guest knows of.
    fn control_index(&self) -> u16 {
        if self.acked & features::MQ == 0 {
            2
        } else {
            self.shared.lock().config.pairs * 2
        }
    }
}

fn send(commands: &Sender<Command>, shared: &Shared, command: Command) {
    // The supervisor ends after the device only.
    let _ = commands.send(command);
    let _ = shared.wake.write(1);
}

impl VirtioDevice for VhostUserNet {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.shared.lock().offered
    }

    fn ack_features(&mut self, features: u64) -> bool {
        self.acked = features;
        features::with_requirements(features) == features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.shared.lock().config;
        config.read(offset, data);
    }

    /// Everything in it is the device's to say.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            mem,
            mut queues,
            features: acked,
            config_irq,
        } = activation;
        self.acked = acked;
        let control_index = self.control_index();
        let forwards = self.shared.lock().forwards && acked & features::CTRL_VQ != 0;
        let control = queues
            .iter()
            .position(|q| q.index == control_index && !forwards)
            .map(|at| queues.remove(at));
        // Queues that the guest was not told of carry nothing.
        queues.retain(|q| q.index < control_index + u16::from(forwards));
        self.terms = Some(Terms {
            ram: mem.clone(),
            config_irq: config_irq.clone(),
            control_index,
            forwards,
        });
        let forwarded = forwards.then_some(control_index);
        let nic = Box::new(ActiveNic::new(acked, mem, queues, config_irq, forwarded)?);
        if let Some(queue) = control {
            self.start_control(queue)?;
        }
        info!(
            "{}: driver ready, features {}",
            self.name,
            features::FeatureNames(acked)
        );
        self.send(Command::Activate(nic));
        Ok(())
    }

    fn pause(&mut self) {
        if let Some(control) = &self.control {
            control.hold();
        }
        self.send_and_wait(Command::Pause);
    }

    fn resume(&mut self) {
        self.send(Command::Resume);
        if let Some(control) = &self.control {
            control.release();
        }
    }

    fn reset(&mut self) {
        self.control = None;
        self.terms = None;
        self.acked = 0;
        self.send_and_wait(Command::Reset);
    }

    fn reset_queue(&mut self, index: u16) {
        let ours = self.terms.as_ref().filter(|terms| !terms.forwards);
        if ours.map(|terms| terms.control_index) == Some(index) {
            self.control = None;
        } else {
            self.send_and_wait(|done| Command::ResetRing(index, done));
        }
    }

    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        let Some(terms) = &self.terms else {
            return Err(ActivateError::MissingQueue(queue.index));
        };
        if queue.index == terms.control_index && !terms.forwards {
            return self.start_control(queue);
        }
        // Queues that the guest was not told of carry nothing.
        if queue.index < terms.control_index + u16::from(terms.forwards) {
            let ring = Ring::new(queue, &terms.ram.regions, self.acked)?;
            self.send(Command::StartRing(Box::new(ring)));
        }
        Ok(())
    }

    fn queue_irq_changed(&mut self, index: u16) {
        self.send(Command::RenewCall(index));
    }
}

impl Drop for VhostUserNet {
    fn drop(&mut self) {
        self.reset();
        self.send(Command::Close);
        if let Some(thread) = self.supervisor.take() {
            let _ = thread.join();
        }
    }
}

impl MemoryObserver for NicMemory {
    fn name(&self) -> &'static str {
        "a vhost-user back-end"
    }

    /// Never refused: a back-end that cannot take the region loses its link, the guest keeps its memory.
    fn ram_added(&self, region: &RamRegion) -> Result<(), String> {
        send(&self.commands, &self.shared, Command::AddMemory(region.clone()));
        Ok(())
    }

    fn ram_removed(&self, region: &RamRegion) {
        let (done, answer) = sync_channel(1);
        send(
            &self.commands,
            &self.shared,
            Command::RemoveMemory(region.clone(), done),
        );
        // Without a supervisor there is no back-end either.
        let _ = answer.recv();
    }
}
