//! What is sent from where to where.

use super::frame::{self, Template};

/// Sizes of a stream's frames in octets, frame check sequence not counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sizes {
    /// All alike.
    Fixed(usize),
    /// Seven of 60, four of 590, one of 1514: the simple Internet mix.
    Imix,
}

impl Sizes {
    /// The sizes in the order in which they are sent, again and again.
    pub fn cycle(&self) -> Vec<usize> {
        match self {
            Self::Fixed(size) => vec![*size],
            // Spread, so that no burst holds only one size.
            Self::Imix => vec![60, 590, 60, 60, 590, 60, 1514, 60, 590, 60, 60, 590],
        }
    }
}

/// Who a stream's frames are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// One port.
    Port(u16),
    /// Every port but the sender.
    Broadcast,
    /// An address that is not a port's, expected at that port.
    Address {
        /// The address.
        mac: [u8; 6],
        /// Where it was learned.
        port: u16,
    },
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
            Destination::Port(to) | Destination::Address { port: to, .. } => to == port,
            Destination::Broadcast => self.from != port,
        }
    }

    /// One frame of each combination of flow and size, in sending order.
    pub fn templates(&self) -> Vec<Template> {
        let destination = match self.to {
            Destination::Port(port) => frame::mac(port),
            Destination::Broadcast => [0xff; 6],
            Destination::Address { mac, .. } => mac,
        };
        let sizes = self.sizes.cycle();
        let count = usize::from(self.flows.max(1)).max(sizes.len());
        let flows = (0..self.flows.max(1)).cycle();
        let sizes = sizes.into_iter().cycle();
        let pairs = flows.zip(sizes).take(count);
        pairs
            .map(|(flow, size)| Template::new(frame::mac(self.from), destination, flow, size))
            .collect()
    }
}
