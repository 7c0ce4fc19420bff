//! One port: bytes between the guest's buffers and the client of its socket.

use std::io::{self, ErrorKind, Read, Write};

use vmm_sys_util::epoll::EventSet;

use super::control::{Event, Message};
use super::endpoint::Endpoint;
use crate::virtio::ring::{BrokenRing, Chain, Ring, ServeError};
use crate::virtio::worker::Poller;

/// Bytes moved at once, and how often before other ports and the order to stop get a look.
pub(super) const CHUNK: usize = 16 << 10;
const CHUNKS: usize = 64;

/// Tokens of what a port waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tokens {
    pub(super) rx: u64,
    pub(super) tx: u64,
    pub(super) listener: u64,
    pub(super) client: u64,
}

/// What the guest was told and what it said.
#[derive(Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one message sent or received"
)]
struct Guest {
    /// It has set the port up.
    ready: bool,
    /// A program has the port open.
    open: bool,
    /// It knows that there is a client.
    told_open: bool,
    tell_add: bool,
    tell_console: bool,
    tell_name: bool,
}

/// A port while the device runs.
#[derive(Debug)]
pub(super) struct Port<'a> {
    id: u32,
    tokens: Tokens,
    /// Buffers that the guest wants filled.
    rx: Option<Ring>,
    /// Buffers that the guest filled.
    tx: Option<Ring>,
    endpoint: Option<&'a mut Endpoint>,
    guest: Guest,
    /// A buffer of which the client took a part only.
    half_sent: Option<(Chain, usize)>,
    /// The client has gone, and left bytes that the guest has no room for.
    client_gone: bool,
    /// What the poller waits for on the client, if it does.
    interest: Option<EventSet>,
    listening: bool,
}

impl<'a> Port<'a> {
    /// A port without control messages is open at all times as far as the guest is concerned: `always_open`.
    pub(super) fn new(
        id: u32,
        tokens: Tokens,
        rx: Option<Ring>,
        tx: Option<Ring>,
        endpoint: Option<&'a mut Endpoint>,
        always_open: bool,
    ) -> Self {
        let guest = Guest {
            open: always_open,
            ..Guest::default()
        };
        Self {
            id,
            tokens,
            rx,
            tx,
            endpoint,
            guest,
            half_sent: None,
            client_gone: false,
            interest: None,
            listening: false,
        }
    }

    /// Waits for the guest's notifications.
    pub(super) fn start(&self, poller: &Poller) -> io::Result<()> {
        for (ring, token) in [(&self.rx, self.tokens.rx), (&self.tx, self.tokens.tx)] {
            if let Some(ring) = ring {
                poller.add(ring.kick(), token, EventSet::IN)?;
            }
        }
        Ok(())
    }

    /// Takes the guest's notifications, before looking at what they are about.
    pub(super) fn take_kicks(&self) {
        for ring in [&self.rx, &self.tx].into_iter().flatten() {
            // No notification is as good.
            let _ = ring.kick().read();
        }
    }

    /// The guest said something about this port.
    pub(super) fn heard(&mut self, event: Event, value: bool) {
        let Some(endpoint) = &self.endpoint else { return };
        match event {
            Event::DeviceReady => {
                self.guest = Guest {
                    tell_add: value,
                    ..Guest::default()
                }
            }
            Event::PortReady => {
                self.guest = Guest {
                    ready: value,
                    tell_console: endpoint.is_console(),
                    tell_name: !endpoint.is_console(),
                    ..Guest::default()
                }
            }
            Event::PortOpen => self.guest.open = value,
            Event::DeviceAdd | Event::ConsolePort | Event::PortName => {}
        }
    }

    /// What the guest has to be told next, and the name that goes with it.
    pub(super) fn message(&self) -> Option<(Message, &str)> {
        let endpoint = self.endpoint.as_ref()?;
        let say = |event, value| Message {
            port: self.id,
            event,
            value,
        };
        let connected = endpoint.client.is_some();
        let guest = &self.guest;
        let (message, name) = match &endpoint.name {
            _ if guest.tell_add => (say(Event::DeviceAdd, true), ""),
            _ if !guest.ready => return None,
            _ if guest.tell_console => (say(Event::ConsolePort, true), ""),
            Some(name) if guest.tell_name => (say(Event::PortName, true), name.as_str()),
            _ if guest.told_open != connected => (say(Event::PortOpen, connected), ""),
            _ => return None,
        };
        Some((message, name))
    }

    /// The guest was told `message`.
    pub(super) fn told(&mut self, message: Message) {
        match message.event {
            Event::DeviceAdd => self.guest.tell_add = false,
            Event::ConsolePort => self.guest.tell_console = false,
            Event::PortName => self.guest.tell_name = false,
            Event::PortOpen => self.guest.told_open = message.value,
            Event::DeviceReady | Event::PortReady => {}
        }
    }

    /// Something happened on the client's socket.
    pub(super) fn client_event(&mut self, events: EventSet, poller: &Poller) -> Result<(), ServeError> {
        let hang_up = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
        if events.intersects(hang_up) && !self.client_gone && !self.can_deliver()? {
            if self.guest.open && self.has_unread() {
                // Its last bytes are for the guest, when it has room again. Waiting for the socket would not wait.
                self.client_gone = true;
            } else {
                self.hang_up(poller)?;
            }
        }
        Ok(())
    }

    /// Moves what can be moved, and then waits for just that which can change something.
    pub(super) fn serve(&mut self, scratch: &mut [u8], poller: &Poller) -> Result<(), ServeError> {
        if self.accepts()
            && let Some(endpoint) = &mut self.endpoint
        {
            endpoint.accept();
        }
        self.deliver(scratch, poller)?;
        if self.client_gone && !(self.guest.open && self.has_unread()) {
            self.hang_up(poller)?;
        }
        self.drain(scratch, poller)?;
        for ring in [&mut self.rx, &mut self.tx].into_iter().flatten() {
            ring.announce()?;
        }
        self.wait(poller)
    }

    /// The guest has to know of the end of one client before the next one comes.
    fn accepts(&self) -> bool {
        !self.guest.told_open
            && self
                .endpoint
                .as_ref()
                .is_some_and(|endpoint| endpoint.client.is_none() && endpoint.listener.is_some())
    }

    fn can_deliver(&mut self) -> Result<bool, BrokenRing> {
        match &mut self.rx {
            Some(rx) if self.guest.open => rx.has_buffers(),
            _ => Ok(false),
        }
    }

    fn has_unread(&self) -> bool {
        self.endpoint
            .as_ref()
            .is_some_and(|endpoint| endpoint.has_unread())
    }

    /// From the client to the guest.
    fn deliver(&mut self, scratch: &mut [u8], poller: &Poller) -> Result<(), ServeError> {
        for _ in 0..CHUNKS {
            let (Some(rx), true) = (&mut self.rx, self.guest.open) else {
                return Ok(());
            };
            let Some(client) = self
                .endpoint
                .as_mut()
                .and_then(|endpoint| endpoint.client.as_mut())
            else {
                return Ok(());
            };
            let Some(chain) = rx.pop()? else { return Ok(()) };
            let room = chain.writable().min(CHUNK);
            if room == 0 {
                rx.complete(&chain, 0)?;
                continue;
            }
            match client.read(&mut scratch[..room]) {
                Ok(count @ 1..) => {
                    let written = rx.write(&chain, &scratch[..count]);
                    rx.complete(&chain, written)?;
                }
                other => {
                    rx.put_back(chain);
                    match other {
                        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        _ => return self.hang_up(poller).map_err(Into::into),
                    }
                }
            }
        }
        Ok(())
    }

    /// From the guest to the client; to nowhere if there is none.
    fn drain(&mut self, scratch: &mut [u8], poller: &Poller) -> Result<(), ServeError> {
        for _ in 0..CHUNKS {
            let Some(tx) = &mut self.tx else { return Ok(()) };
            let (chain, sent) = match self.half_sent.take() {
                Some(half) => half,
                None => match tx.pop()? {
                    Some(chain) => (chain, 0),
                    None => return Ok(()),
                },
            };
            let left = chain.readable() - sent;
            let client = self
                .endpoint
                .as_mut()
                .and_then(|endpoint| endpoint.client.as_mut());
            let Some(client) = client.filter(|_| left > 0) else {
                tx.complete(&chain, 0)?;
                continue;
            };
            let count = tx.read(&chain, sent, &mut scratch[..left.min(CHUNK)]);
            match client.write(&scratch[..count]) {
                Ok(now) if now == left => tx.complete(&chain, 0)?,
                Ok(now) => self.half_sent = Some((chain, sent + now)),
                Err(error) => {
                    self.half_sent = Some((chain, sent));
                    match error.kind() {
                        ErrorKind::WouldBlock => return Ok(()),
                        ErrorKind::Interrupted => {}
                        _ => self.hang_up(poller)?,
                    }
                }
            }
        }
        if let Some(tx) = &self.tx {
            // There may be more: come back after a look at the other ports.
            let _ = tx.kick().write(1);
        }
        Ok(())
    }

    fn hang_up(&mut self, poller: &Poller) -> io::Result<()> {
        self.client_gone = false;
        let waited_for = self.interest.take().is_some();
        match self.endpoint.as_mut().and_then(|endpoint| endpoint.client.take()) {
            Some(client) if waited_for => poller.remove(&client),
            _ => Ok(()),
        }
    }

    fn wait(&mut self, poller: &Poller) -> Result<(), ServeError> {
        let readable = self.can_deliver()?;
        let accepts = self.accepts();
        let Some(endpoint) = &self.endpoint else {
            return Ok(());
        };
        if let Some(listener) = endpoint.listener.as_ref().filter(|_| accepts != self.listening) {
            if accepts {
                poller.add(&**listener, self.tokens.listener, EventSet::IN)?;
            } else {
                poller.remove(&**listener)?;
            }
            self.listening = accepts;
        }
        let Some(client) = &endpoint.client else {
            return Ok(());
        };
        let interest = if self.client_gone {
            // A hang-up is reported whatever one waits for; with bytes to send it is dealt with.
            self.half_sent.as_ref().map(|_| EventSet::OUT)
        } else {
            let readable = if readable { EventSet::IN } else { EventSet::empty() };
            let writable = if self.half_sent.is_some() {
                EventSet::OUT
            } else {
                EventSet::empty()
            };
            Some(EventSet::READ_HANG_UP | readable | writable)
        };
        match (self.interest, interest) {
            (now, wanted) if now == wanted => {}
            (None, Some(wanted)) => poller.add(client, self.tokens.client, wanted)?,
            (Some(_), Some(wanted)) => poller.change(client, self.tokens.client, wanted)?,
            (_, None) => poller.remove(client)?,
        }
        self.interest = interest;
        Ok(())
    }
}
