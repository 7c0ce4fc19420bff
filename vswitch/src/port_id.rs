//! Numbers of ports.

/// The most ports one bridge has.
pub const MAX_PORTS: usize = 1024;

/// A port's number: its place in the bridge's table, given again only after the port is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(u16);

impl PortId {
    /// The port in place `index` of the table.
    pub(crate) fn from_index(index: usize) -> Option<Self> {
        u16::try_from(index)
            .ok()
            .filter(|&raw| usize::from(raw) < MAX_PORTS)
            .map(Self)
    }

    /// The port's place in the table.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    pub(crate) const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }

    pub(crate) const fn raw(self) -> u16 {
        self.0
    }
}
