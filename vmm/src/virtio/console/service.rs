//! The device's thread: waits for the guest's notifications and for the sockets, and serves the ports concerned.

use vmm_sys_util::epoll::EventSet;

use super::control::{self, Event, Message};
use super::endpoint::Endpoint;
use super::port::{self, Port, Tokens};
use crate::memory::GuestRam;
use crate::virtio::device::{ActivateError, ActiveQueue};
use crate::virtio::ring::{BrokenRing, Ring, ServeError};
use crate::virtio::worker::Poller;

/// The driver's queues: two of port 0, two for control messages, then two of each further port.
#[derive(Debug)]
pub(super) struct Queues {
    /// Each port's buffers to fill, and filled ones.
    ports: Vec<(Option<Ring>, Option<Ring>)>,
    control_rx: Option<Ring>,
    control_tx: Option<Ring>,
}

impl Queues {
    pub(super) fn new(
        queues: Vec<ActiveQueue>,
        ram: &GuestRam,
        features: u64,
    ) -> Result<Self, ActivateError> {
        let mut found = Self {
            ports: Vec::new(),
            control_rx: None,
            control_tx: None,
        };
        for queue in queues {
            let index = usize::from(queue.index);
            let ring = Some(Ring::new(queue, ram.mem.clone(), features)?);
            let port = match index / 2 {
                0 => 0,
                1 => {
                    *(if index == 2 {
                        &mut found.control_rx
                    } else {
                        &mut found.control_tx
                    }) = ring;
                    continue;
                }
                pair => pair - 1,
            };
            if found.ports.len() <= port {
                found.ports.resize_with(port + 1, Default::default);
            }
            let (rx, tx) = &mut found.ports[port];
            *(if index % 2 == 0 { rx } else { tx }) = ring;
        }
        Ok(found)
    }
}

/// What the thread waits for: the source in the lowest byte, the port above.
const CONTROL_RX: u64 = 0;
const CONTROL_TX: u64 = 1;
const PORT_RX: u64 = 2;
const PORT_TX: u64 = 3;
const LISTENER: u64 = 4;
const CLIENT: u64 = 5;

fn token(source: u64, port: usize) -> u64 {
    (port as u64) << 8 | source
}

/// All that the thread works on.
#[derive(Debug)]
pub(super) struct Service<'a> {
    ports: Vec<Port<'a>>,
    control_rx: Option<Ring>,
    control_tx: Option<Ring>,
    scratch: Vec<u8>,
}

impl<'a> Service<'a> {
    /// Ports without an endpoint are there for their queues only: the guest is never told of them.
    pub(super) fn new(queues: Queues, endpoints: &'a mut [Option<Endpoint>], multiport: bool) -> Self {
        let mut rings = queues.ports.into_iter();
        let port = |(index, endpoint): (usize, &'a mut Option<Endpoint>)| {
            let (rx, tx) = rings.next().unwrap_or_default();
            let tokens = Tokens {
                rx: token(PORT_RX, index),
                tx: token(PORT_TX, index),
                listener: token(LISTENER, index),
                client: token(CLIENT, index),
            };
            let id = u32::try_from(index).unwrap_or(u32::MAX);
            Port::new(id, tokens, rx, tx, endpoint.as_mut(), !multiport && index == 0)
        };
        Self {
            ports: endpoints.iter_mut().enumerate().map(port).collect(),
            control_rx: queues.control_rx,
            control_tx: queues.control_tx,
            scratch: vec![0; port::CHUNK],
        }
    }

    /// Serves until the order to stop comes.
    pub(super) fn run(mut self, poller: &mut Poller) -> Result<(), ServeError> {
        for (ring, token) in [(&self.control_rx, CONTROL_RX), (&self.control_tx, CONTROL_TX)] {
            if let Some(ring) = ring {
                poller.add(ring.kick(), token, EventSet::IN)?;
            }
        }
        for port in &self.ports {
            port.start(poller)?;
        }
        // The guest may have notified before anyone listened.
        let mut events = (0..self.ports.len())
            .map(|port| (token(PORT_RX, port), EventSet::IN))
            .collect();
        loop {
            self.handle(events, poller)?;
            match poller.wait()? {
                Some(more) => events = more,
                None => return Ok(()),
            }
        }
    }

    fn handle(&mut self, events: Vec<(u64, EventSet)>, poller: &Poller) -> Result<(), ServeError> {
        let mut concerned = vec![false; self.ports.len()];
        for (token, happened) in events {
            let Some(index) = usize::try_from(token >> 8)
                .ok()
                .filter(|index| *index < self.ports.len())
            else {
                continue;
            };
            match token & 0xff {
                CONTROL_RX | CONTROL_TX => continue,
                CLIENT => self.ports[index].client_event(happened, poller)?,
                _ => self.ports[index].take_kicks(),
            }
            concerned[index] = true;
        }
        self.hear(&mut concerned)?;
        for (port, _) in self
            .ports
            .iter_mut()
            .zip(&concerned)
            .filter(|(_, concerned)| **concerned)
        {
            port.serve(&mut self.scratch, poller)?;
        }
        self.tell(poller)
    }

    /// Takes the guest's messages.
    fn hear(&mut self, concerned: &mut [bool]) -> Result<(), BrokenRing> {
        let Some(ring) = &mut self.control_tx else {
            return Ok(());
        };
        let _ = ring.kick().read();
        for _ in 0..ring.size() {
            let Some(chain) = ring.pop()? else { break };
            let mut bytes = [0; control::LEN];
            let whole = ring.read(&chain, 0, &mut bytes) == bytes.len();
            ring.complete(&chain, 0)?;
            let Some(message) = Message::decode(bytes).filter(|_| whole) else {
                continue;
            };
            let index = usize::try_from(message.port).unwrap_or(usize::MAX);
            for (number, port) in self.ports.iter_mut().enumerate() {
                if message.event == Event::DeviceReady || number == index {
                    port.heard(message.event, message.value);
                    concerned[number] = true;
                }
            }
        }
        ring.announce()?;
        if ring.has_buffers()? {
            // Comes back here after a look at the ports.
            let _ = ring.kick().write(1);
        }
        Ok(())
    }

    /// Tells the guest what it has to know, as far as it has given buffers for that.
    fn tell(&mut self, poller: &Poller) -> Result<(), ServeError> {
        let Some(ring) = &mut self.control_rx else {
            return Ok(());
        };
        let _ = ring.kick().read();
        for port in &mut self.ports {
            let mut told = false;
            while let Some((message, name)) = port.message() {
                let Some(chain) = ring.pop()? else { break };
                let mut bytes = message.encode().to_vec();
                bytes.extend(name.bytes());
                let written = ring.write(&chain, &bytes);
                ring.complete(&chain, written)?;
                port.told(message);
                told = true;
            }
            if told {
                ring.announce()?;
                // Having told of the end of one client, the port takes the next one.
                port.serve(&mut self.scratch, poller)?;
            }
        }
        Ok(())
    }
}
