//! What a driver sets through the control queue (VIRTIO 1.3 §5.1.6.5), for back-ends that serve it themselves.
//!
//! A driver is an attacker here as everywhere: each command is read once, its length must be what it says it is, and what it
//! sets is bounded whatever it says.

mod command;
mod filter;
mod steering;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio::features as f;

pub(crate) use command::Command;
pub use filter::ReceiveFilter;
pub use steering::Steering;
use steering::{HashSettings, RssSettings};

/// The longest indirection table of receive-side scaling.
pub const MAX_TABLE: usize = 128;

/// Receive offloads, which a driver may switch while it runs.
const GUEST_OFFLOADS: u64 = f::NET_F_GUEST_CSUM
    | f::NET_F_GUEST_TSO4
    | f::NET_F_GUEST_TSO6
    | f::NET_F_GUEST_ECN
    | f::NET_F_GUEST_UFO
    | f::NET_F_GUEST_USO4
    | f::NET_F_GUEST_USO6;

/// Features that only a device that serves its control queue itself can have.
pub(crate) const FEATURES: u64 = f::NET_F_CTRL_RX
    | f::NET_F_CTRL_RX_EXTRA
    | f::NET_F_CTRL_VLAN
    | f::NET_F_CTRL_MAC_ADDR
    | f::NET_F_CTRL_GUEST_OFFLOADS
    | f::NET_F_GUEST_ANNOUNCE
    | f::NET_F_RSS
    | f::NET_F_HASH_REPORT;

/// Everything that a driver has set since it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ControlState {
    filter: ReceiveFilter,
    /// Queue pairs in use.
    pub(crate) pairs: u16,
    rss: Option<RssSettings>,
    hash: Option<HashSettings>,
    /// Receive offloads, if they were switched.
    offloads: Option<u64>,
}

/// What has to be done about a command that was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Other frames are wanted.
    Filter,
    /// They go to other queues, or are hashed in another way; other queues may be in use.
    Steering,
    /// Other offloads are wanted.
    Offloads,
    /// The driver has announced itself.
    Announced,
}

impl ControlState {
    /// A driver that negotiated `acked` and has said nothing yet. `pairs` it uses until it asks for others.
    pub(crate) fn new(acked: u64, mac: Option<[u8; 6]>, pairs: u16) -> Self {
        Self {
            filter: ReceiveFilter::new(mac, acked & f::NET_F_CTRL_VLAN != 0),
            pairs,
            rss: None,
            hash: None,
            offloads: None,
        }
    }

    /// A driver whose wishes were lost with a former back-end: nothing is kept from it.
    pub(crate) fn unknown(pairs: u16) -> Self {
        Self {
            filter: ReceiveFilter::unknown(),
            ..Self::new(0, None, pairs)
        }
    }

    /// Carries a command out; `None` refuses it, and then nothing has changed. The device has `max_pairs` queue pairs.
    pub(crate) fn apply(&mut self, command: &mut Command<'_>, acked: u64, max_pairs: u16) -> Option<Change> {
        let (needed, change) = match (command.class, command.number) {
            (0, 0 | 1) | (1, 0) => (f::NET_F_CTRL_RX, Change::Filter),
            (0, 2..=5) => (f::NET_F_CTRL_RX_EXTRA, Change::Filter),
            (1, 1) => (f::NET_F_CTRL_MAC_ADDR, Change::Filter),
            (2, 0 | 1) => (f::NET_F_CTRL_VLAN, Change::Filter),
            (3, 0) => (f::NET_F_GUEST_ANNOUNCE, Change::Announced),
            (4, 0) => (f::NET_F_MQ, Change::Steering),
            (4, 1) => (f::NET_F_RSS, Change::Steering),
            (4, 2) => (f::NET_F_HASH_REPORT, Change::Steering),
            (5, 0) => (f::NET_F_CTRL_GUEST_OFFLOADS, Change::Offloads),
            _ => return None,
        };
        if acked & needed == 0 {
            return None;
        }
        match change {
            Change::Filter => self.filter.apply(command)?,
            Change::Announced => command.end()?,
            Change::Steering => self.steer(command, max_pairs)?,
            Change::Offloads => {
                let offloads = u64::from_le_bytes(command.take()?);
                command.end()?;
                if offloads & !(acked & GUEST_OFFLOADS) != 0 {
                    return None;
                }
                self.offloads = Some(offloads);
            }
        }
        Some(change)
    }

    fn steer(&mut self, command: &mut Command<'_>, max_pairs: u16) -> Option<()> {
        match command.number {
            0 => {
                let pairs = u16::from_le_bytes(command.take()?);
                command.end()?;
                if !(1..=max_pairs).contains(&pairs) {
                    return None;
                }
                self.pairs = pairs;
                // Steering by the flows that the guest transmits is what this command stands for.
                self.rss = None;
            }
            1 => {
                let rss = RssSettings::read(command, max_pairs)?;
                self.pairs = rss.pairs();
                self.rss = Some(rss);
            }
            _ => self.hash = Some(HashSettings::read(command)?),
        }
        Some(())
    }

    /// Whether a driver could have set this on a device of so many queue pairs.
    pub(crate) fn is_sane(&self, max_pairs: u16) -> bool {
        (1..=max_pairs).contains(&self.pairs)
            && self.filter.is_sane()
            && self.hash.as_ref().is_none_or(HashSettings::is_sane)
            && self.rss.as_ref().is_none_or(|rss| rss.is_sane(max_pairs))
    }

    /// What the driver wants to receive; `None`: everything.
    pub(crate) fn filter(&self) -> Option<Arc<ReceiveFilter>> {
        (!self.filter.is_open()).then(|| Arc::new(self.filter.clone()))
    }

    /// How frames are to be spread and hashed, if the driver said.
    pub(crate) fn steering(&self) -> Option<Arc<Steering>> {
        match (&self.rss, &self.hash) {
            (Some(rss), _) => Some(Arc::new(rss.steering())),
            (None, Some(hash)) => Some(Arc::new(hash.steering())),
            (None, None) => None,
        }
    }

    /// The features to go by: those acknowledged, but for receive offloads that are switched off.
    pub(crate) fn features(&self, acked: u64) -> u64 {
        match self.offloads {
            Some(offloads) => acked & (!GUEST_OFFLOADS | offloads),
            None => acked,
        }
    }

    /// The device's own address is another, by the front-end's word.
    pub(crate) fn set_mac(&mut self, mac: Option<[u8; 6]>) {
        self.filter.set_mac(mac);
    }
}

#[cfg(test)]
mod tests;
