//! The console device: named channels between guest programs and Unix sockets, and optionally a console.
//!
//! Each channel has a socket on which this process listens; a client of the socket is what the guest sees as the other
//! end of the port. One client is served at a time, others wait in the backlog. The guest sees a port close when its
//! client goes: reads end, writes wait or fail. The data of a client that came before is delivered first.
//!
//! Nothing is buffered here: bytes go from the socket straight into a buffer that the guest has posted, and out of a
//! guest buffer into the socket; who is slow makes the other side wait. Bytes for which there is no client are
//! dropped.
//!
//! The next client's bytes go to whatever program has the port open by then. One that closes the port because of a
//! hang-up loses what has come for it in the meantime, as the guest's driver drops it; one that serves several clients
//! keeps the port open.
//!
//! When the guest resets the device, as it does on reboot, clients of channels are disconnected: whoever they talked
//! to is gone. The console's other end, of which there is one for good, stays.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::debug;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use self::endpoint::Endpoint;
use self::service::{Queues, Service};
use super::device::{ActivateError, Activation, VirtioDevice};
use super::worker::{Poller, Worker};
use crate::listener::SocketError;

mod control;
mod endpoint;
mod port;
mod service;
#[cfg(test)]
mod tests;

/// The device type number of a console.
const DEVICE_TYPE: u32 = 3;
const F_MULTIPORT: u64 = 1 << 1;
const QUEUE_SIZE: u16 = 64;
/// Ports that the device can have, the console's included.
pub const MAX_PORTS: usize = 32;

/// A port with a name, which the guest finds as `/dev/virtio-ports/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Its name.
    pub name: String,
    /// The socket to listen on.
    pub socket: PathBuf,
}

/// Why a console device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// More channels than the device has ports.
    #[error("{0} channels are refused: there can be {max}; leave some out", max = MAX_PORTS - 1)]
    TooMany(usize),
    /// A name that a guest could not use.
    #[error("channel name {0:?} is refused: give 1 to 63 printable characters without blanks and slashes")]
    Name(String),
    /// Two channels of the same name.
    #[error("channel name {0:?} is given twice; choose another name")]
    Twice(String),
    /// A socket cannot be listened on.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// A virtio console device.
#[derive(Debug)]
pub struct Console {
    queue_sizes: Vec<u16>,
    /// Of each port; port 0 is the console. While the device runs, its thread holds the lock.
    endpoints: Arc<Mutex<Vec<Option<Endpoint>>>>,
    worker: Option<Worker>,
}

impl Console {
    /// A device with a port for each of `channels`, and with the console of the guest on the stream `console`, which must
    /// not block.
    pub fn new(console: Option<UnixStream>, channels: &[Channel]) -> Result<Self, ConsoleError> {
        if channels.len() >= MAX_PORTS {
            return Err(ConsoleError::TooMany(channels.len()));
        }
        let mut endpoints = vec![console.map(Endpoint::console)];
        for (index, Channel { name, socket }) in channels.iter().enumerate() {
            let usable = (1..64).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
            if !usable {
                return Err(ConsoleError::Name(name.clone()));
            }
            if channels[..index].iter().any(|other| other.name == *name) {
                return Err(ConsoleError::Twice(name.clone()));
            }
            endpoints.push(Some(Endpoint::channel(name, socket)?));
        }
        // Two queues for each port, and two for control messages.
        let queue_sizes = vec![QUEUE_SIZE; 2 * endpoints.len() + 2];
        Ok(Self {
            queue_sizes,
            endpoints: Arc::new(Mutex::new(endpoints)),
            worker: None,
        })
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        F_MULTIPORT | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn ack_features(&mut self, _features: u64) -> bool {
        true
    }

    /// Columns, rows, number of ports, emergency write.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let ports = u32::try_from(self.queue_sizes.len() / 2 - 1).unwrap_or_default();
        let mut config = [0; 12];
        config[4..8].copy_from_slice(&ports.to_le_bytes());
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
        for (to, from) in data.iter_mut().zip(&config[start..]) {
            *to = *from;
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            mem,
            queues,
            features,
            config_irq,
        } = activation;
        let multiport = features & F_MULTIPORT != 0;
        let queues = Queues::new(queues, &mem, features)?;
        let endpoints = Arc::clone(&self.endpoints);
        let run = move |mut poller: Poller| {
            let mut endpoints = endpoints.lock().unwrap_or_else(PoisonError::into_inner);
            let service = Service::new(queues, &mut endpoints, multiport);
            if let Err(error) = service.run(&mut poller) {
                debug!(%error, "console device stops");
                config_irq.needs_reset();
                poller.wait_for_end();
            }
        };
        self.worker = Some(Worker::spawn("console", run)?);
        Ok(())
    }

    fn pause(&mut self) {
        if let Some(worker) = &self.worker {
            worker.hold();
        }
    }

    fn resume(&mut self) {
        if let Some(worker) = &self.worker {
            worker.release();
        }
    }

    fn reset(&mut self) {
        // Dropping the worker waits for its thread.
        if self.worker.take().is_some() {
            let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
            endpoints.iter_mut().flatten().for_each(Endpoint::guest_reset);
        }
    }
}
