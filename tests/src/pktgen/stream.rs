//! What is sent from where to where.

use super::frame::{self, Template};

/// Sizes of a stream's frames in octets, frame check sequence not counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sizes {
    /// All alike.
    Fixed(usize),
    /// Seven of 60, four of 590, one of 1514: the simple Internet mix.
    Imix,
    /// TCP super-frames of 64 KiB, for whoever segments them.
    Super,
}

impl Sizes {
    /// The sizes in the order in which they are sent, again and again.
    pub fn cycle(&self) -> Vec<usize> {
        match self {
            Self::Fixed(size) => vec![*size],
            // Spread, so that no burst holds only one size.
            Self::Imix => vec![60, 590, 60, 60, 590, 60, 1514, 60, 590, 60, 60, 590],
            Self::Super => vec![frame::SUPER],
        }
    }

    /// The longest of them.
    pub fn longest(&self) -> usize {
        self.cycle().into_iter().max().unwrap_or(frame::SHORTEST)
    }
}

/// Who a stream's frames are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// One port.
    Port(u16),
    /// Every port but the sender.
    Broadcast,
}

/// Addresses that take turns from frame to frame, in place of the ports' own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The first of the senders' addresses; none where the sender keeps its own.
    pub sources: Option<u32>,
    /// The first of the receivers' addresses; none where the receiver keeps its own.
    pub destinations: Option<u32>,
    /// How many take turns.
    pub count: u32,
}

/// One stream.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Sending port.
    pub from: u16,
    /// Receiving port or ports.
    pub to: Destination,
    /// Frame sizes.
    pub sizes: Sizes,
    /// How many flows (UDP source ports) it is spread over.
    pub flows: u16,
    /// Addresses that take turns.
    pub addresses: Option<Addresses>,
    /// Frames a second; none for as many as go.
    pub rate: Option<f64>,
    /// Stop after so many frames.
    pub limit: Option<u64>,
}

impl Stream {
    /// A stream of one flow between two ports, as fast as it goes.
    pub fn between(from: u16, to: u16, size: usize) -> Self {
        Self {
            from,
            to: Destination::Port(to),
            sizes: Sizes::Fixed(size),
            flows: 1,
            addresses: None,
            rate: None,
            limit: None,
        }
    }

    /// The same at `rate` frames a second.
    #[must_use]
    pub fn at(mut self, rate: Option<f64>) -> Self {
        self.rate = rate;
        self
    }

    /// Whether a frame of this stream belongs at `port`.
    pub fn expects(&self, port: u16) -> bool {
        match self.to {
            Destination::Port(to) => to == port,
            Destination::Broadcast => self.from != port,
        }
    }

    /// The frame for the transmit slot of number `index`: flows and sizes take turns from slot to slot.
    pub fn template(&self, index: usize) -> Template {
        let destination = match self.to {
            Destination::Port(port) => frame::mac(port),
            Destination::Broadcast => [0xff; 6],
        };
        let source = frame::mac(self.from);
        let flows = usize::from(self.flows.max(1));
        let sizes = self.sizes.cycle();
        let size = sizes[index % sizes.len()];
        let flow = u16::try_from(index % flows).unwrap_or(0);
        if self.sizes == Sizes::Super {
            Template::super_frame(source, destination, flow, size)
        } else {
            Template::new(source, destination, flow, size)
        }
    }
}
