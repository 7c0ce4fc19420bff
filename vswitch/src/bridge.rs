//! What the workers of one bridge share: the ports, published as a whole, and the forwarding database.

use std::sync::{Arc, Mutex, PoisonError};

use crate::clock::Clock;
use crate::config::{BridgeSettings, PortSettings};
use crate::fdb::{Fdb, FdbConfig};
use crate::port::Port;
use crate::port_id::PortId;
use crate::published::Published;
use crate::switch::SwitchError;

/// The ports at one moment, each in the place of its number.
#[derive(Debug, Default)]
pub struct PortTable(Vec<Option<Arc<Port>>>);

impl PortTable {
    /// The port with this number.
    #[inline]
    pub fn get(&self, id: PortId) -> Option<&Arc<Port>> {
        self.0.get(id.index())?.as_ref()
    }

    /// Every port.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Port>> {
        self.0.iter().flatten()
    }
}

/// The data plane of one bridge.
#[derive(Debug)]
pub struct Bridge {
    clock: Clock,
    fdb: Fdb,
    ports: Arc<Published<PortTable>>,
    change: Mutex<()>,
}

impl Bridge {
    /// A bridge without ports.
    pub fn new(settings: &BridgeSettings) -> Self {
        Self::with_clock(settings, Clock::new())
    }

    /// A bridge without ports, with a clock that may have run before.
    pub fn with_clock(settings: &BridgeSettings, clock: Clock) -> Self {
        Self {
            clock,
            fdb: Fdb::new(FdbConfig {
                size: settings.fdb_size,
                ageing: settings.ageing,
                on_full: settings.on_full,
            }),
            ports: Arc::default(),
            change: Mutex::new(()),
        }
    }

    /// The bridge's clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The forwarding database.
    pub fn fdb(&self) -> &Fdb {
        &self.fdb
    }

    /// Where the ports are published, for workers that look often.
    pub(crate) fn published(&self) -> &Arc<Published<PortTable>> {
        &self.ports
    }

    /// The ports now.
    pub fn ports(&self) -> Arc<PortTable> {
        self.ports.load()
    }

    /// The port with this number.
    pub fn port(&self, id: PortId) -> Option<Arc<Port>> {
        self.ports.load().get(id).cloned()
    }

    /// The port with this name.
    pub fn port_named(&self, name: &str) -> Option<Arc<Port>> {
        self.ports
            .load()
            .iter()
            .find(|port| port.settings().name == name)
            .cloned()
    }

    /// Adds a port in the first free place.
    pub fn add_port(&self, settings: PortSettings) -> Result<Arc<Port>, SwitchError> {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = self.ports.load().0.clone();
        let place = table.iter().position(Option::is_none).unwrap_or(table.len());
        let id = PortId::from_index(place).ok_or(SwitchError::TooManyPorts)?;
        let port = Arc::new(Port::new(id, settings));
        if place == table.len() {
            table.push(None);
        }
        table[place] = Some(Arc::clone(&port));
        self.ports.store(PortTable(table));
        Ok(port)
    }

    /// Takes a port out and forgets its addresses.
    pub fn remove_port(&self, port: &Port) {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = self.ports.load().0.clone();
        if let Some(place) = table.get_mut(port.id().index()) {
            *place = None;
        }
        self.ports.store(PortTable(table));
        self.fdb.forget_port(port.id());
    }
}
