//! The control plane of one bridge: adds and deletes ports and entries, and answers for their state.

mod error;
mod pass;
#[cfg(test)]
mod tests;
mod view;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost_net_backend::{DevicePlane, PortConfig, Session, SessionHandle, SocketConfig};

use crate::bridge::Bridge;
use crate::clock::Clock;
use crate::config::{
    BridgeConfig, BridgeSettings, LinkSetting, MAX_MTU, MAX_QUEUE_PAIRS, MAX_SOURCE_MACS, MIN_MTU, PortKind,
    PortSettings, StaticEntry,
};
use crate::mac::MacAddr;
use crate::model::{BridgeView, FdbEntryView, NewFdbEntry, NewPort, PortChange, PortView};
use crate::port::{Port, PortPlane, TapPort};
use crate::port_id::PortId;
use crate::run_dir::{BridgeDir, check_name, check_socket_path};
use crate::worker::Workers;

pub use error::SwitchError;
use pass::Before;

/// A running bridge.
///
/// Every change takes the control lock for its whole length, so that changes happen one after the other and
/// each is kept on disk before the next begins. Workers never take that lock.
#[derive(Debug)]
pub struct Switch {
    name: String,
    dir: Option<BridgeDir>,
    bridge: Arc<Bridge>,
    workers: Workers,
    control: Mutex<Control>,
}

#[derive(Debug)]
struct Control {
    config: BridgeConfig,
    links: HashMap<PortId, Link>,
}

/// What a port is connected by.
#[derive(Debug)]
enum Link {
    Session(SessionHandle),
    Tap(TapPort),
}

impl Switch {
    /// Starts a bridge with the ports of `config`. With `dir`, changes are kept there and ports get their
    /// default sockets there. A port that cannot be had any more is left out, with a warning.
    pub fn start(name: &str, config: BridgeConfig, dir: Option<BridgeDir>) -> Result<Self, SwitchError> {
        let BridgeConfig { settings, ports, fdb } = config;
        let switch = Self::empty(name, settings, Clock::new(), dir)?;
        for port in ports {
            let name = port.name.clone();
            if let Err(error) = switch.attach(&mut switch.control(), port, None) {
                tracing::warn!(port = name, "port left out: {error}");
            }
        }
        switch.set_statics(&mut switch.control(), fdb);
        switch.store(&switch.control())?;
        Ok(switch)
    }

    /// A bridge without ports.
    fn empty(
        name: &str,
        settings: BridgeSettings,
        clock: Clock,
        dir: Option<BridgeDir>,
    ) -> Result<Self, SwitchError> {
        check_name(name, "bridge")?;
        let bridge = Arc::new(Bridge::with_clock(&settings, clock));
        let workers = Workers::start(&bridge, &settings).map_err(SwitchError::Workers)?;
        let config = BridgeConfig {
            settings,
            ..BridgeConfig::default()
        };
        Ok(Self {
            name: name.to_owned(),
            dir,
            bridge,
            workers,
            control: Mutex::new(Control {
                config,
                links: HashMap::new(),
            }),
        })
    }

    fn set_statics(&self, control: &mut Control, entries: Vec<StaticEntry>) {
        for entry in entries {
            let mac = entry.mac;
            if let Err(error) = self.set_static(control, entry) {
                tracing::warn!(%mac, "static entry left out: {error}");
            }
        }
    }

    /// The bridge's data plane.
    pub fn bridge(&self) -> &Arc<Bridge> {
        &self.bridge
    }

    /// Ends the ports' connections and the workers.
    pub fn stop(&self) {
        let mut control = self.control();
        for port in self.bridge.ports().iter() {
            self.detach(&mut control, port);
        }
        self.workers.stop();
    }

    /// Moves a queue to another worker if the load of the workers has been uneven since the last two calls. Left for
    /// the next time if ports are just being changed. True if there was anything to do for the workers since.
    pub fn balance(&self) -> bool {
        self.control
            .try_lock()
            .is_ok_and(|_control| self.workers.balance(&self.bridge.ports()))
    }

    /// Adds a port.
    pub fn add_port(&self, new: &NewPort) -> Result<PortView, SwitchError> {
        let settings = self.settings_of(new)?;
        let mut control = self.control();
        let port = self.attach(&mut control, settings, None)?;
        if let Err(error) = self.store(&control) {
            control.config.ports.retain(|settings| settings.name != new.name);
            self.detach(&mut control, &port);
            return Err(error);
        }
        tracing::info!(port = new.name, "port added");
        Ok(view::port(&port))
    }

    /// Deletes a port, its connection and its addresses.
    pub fn delete_port(&self, name: &str) -> Result<(), SwitchError> {
        let mut control = self.control();
        let port = self.find(name)?;
        self.detach(&mut control, &port);
        control.config.ports.retain(|settings| settings.name != name);
        control.config.fdb.retain(|entry| entry.port != name);
        self.store(&control)?;
        tracing::info!(port = name, "port deleted");
        Ok(())
    }

    /// Changes a port. What the switch cannot keep on disk is not done.
    pub fn set_port(&self, name: &str, change: &PortChange) -> Result<PortView, SwitchError> {
        let mut control = self.control();
        let port = self.find(name)?;
        let settings = &mut control.config.ports;
        let Some(at) = settings.iter().position(|settings| settings.name == name) else {
            return Err(self.no_port(name));
        };
        let before = settings[at].clone();
        let changed = PortSettings {
            link: change.link.unwrap_or(before.link),
            source_macs: match change.anti_spoof {
                None if change.allow_macs.is_empty() => before.source_macs.clone(),
                held => source_macs(name, before.mac, held == Some(true), &change.allow_macs)?,
            },
            ..before.clone()
        };
        settings[at] = changed.clone();
        if let Err(error) = self.store(&control) {
            control.config.ports[at] = before;
            return Err(error);
        }
        if changed.source_macs != before.source_macs {
            let held = !changed.source_macs.is_empty();
            port.sources().set(changed.source_macs);
            if held {
                // It may have been learned with addresses that it is not allowed.
                port.outlast_bursts();
                self.bridge.fdb().flush(Some(port.id()));
            }
            tracing::info!(port = name, held, "allowed source addresses set");
        }
        let link = changed.link;
        if link != before.link {
            port.set_link(link);
            if link == LinkSetting::Down {
                port.outlast_bursts();
                self.bridge.fdb().flush(Some(port.id()));
            }
            match control.links.get(&port.id()) {
                Some(Link::Session(session)) => session.set_link(link == LinkSetting::Up),
                Some(Link::Tap(tap)) => tap.set_carrier(link),
                None => {}
            }
            tracing::info!(port = name, ?link, "link set");
        }
        Ok(view::port(&port))
    }

    /// Adds or replaces a static entry of the forwarding database.
    pub fn add_fdb(&self, new: &NewFdbEntry) -> Result<(), SwitchError> {
        let mut control = self.control();
        let entry = StaticEntry {
            mac: new.mac,
            vlan: new.vlan,
            port: new.port.clone(),
        };
        self.set_static(&mut control, entry)?;
        self.store(&control)
    }

    /// Deletes an entry of the forwarding database, learned or static.
    pub fn delete_fdb(&self, mac: MacAddr, vlan: u16) -> Result<(), SwitchError> {
        let mut control = self.control();
        if !self.bridge.fdb().remove(mac, vlan) {
            return Err(SwitchError::NoFdbEntry(mac));
        }
        control
            .config
            .fdb
            .retain(|entry| (entry.mac, entry.vlan) != (mac, vlan));
        self.store(&control)
    }

    /// Forgets learned entries, of one port or all; returns how many.
    pub fn flush_fdb(&self, port: Option<&str>) -> Result<usize, SwitchError> {
        let id = port
            .map(|name| self.find(name))
            .transpose()?
            .map(|port| port.id());
        Ok(self.bridge.fdb().flush(id))
    }

    /// The forwarding database.
    pub fn fdb_entries(&self) -> Vec<FdbEntryView> {
        view::fdb_entries(&self.bridge)
    }

    /// The bridge with its ports.
    pub fn view(&self) -> BridgeView {
        let settings = self.control().config.settings.clone();
        BridgeView {
            queue_moves: self.workers.moves(),
            worker_counters: self
                .workers
                .all()
                .iter()
                .map(|worker| view::worker(worker))
                .collect(),
            ..view::bridge(&self.name, &settings, &self.bridge)
        }
    }

    /// One port.
    pub fn port_view(&self, name: &str) -> Result<PortView, SwitchError> {
        Ok(view::port(&*self.find(name)?))
    }

    fn find(&self, name: &str) -> Result<Arc<Port>, SwitchError> {
        self.bridge.port_named(name).ok_or_else(|| self.no_port(name))
    }

    fn no_port(&self, name: &str) -> SwitchError {
        SwitchError::NoPort {
            bridge: self.name.clone(),
            port: name.to_owned(),
        }
    }

    /// Checks what a new port asks for, and fills in what it leaves open.
    fn settings_of(&self, new: &NewPort) -> Result<PortSettings, SwitchError> {
        check_name(&new.name, "port")?;
        if !(1..=MAX_QUEUE_PAIRS).contains(&new.queues) {
            return Err(SwitchError::Settings(format!(
                "port {} cannot have {} queue pairs: ask for 1 to {MAX_QUEUE_PAIRS}",
                new.name, new.queues
            )));
        }
        if let Some(mtu) = new.mtu.filter(|mtu| !(MIN_MTU..=MAX_MTU).contains(mtu)) {
            return Err(SwitchError::Settings(format!(
                "port {} cannot have an MTU of {mtu}: ask for {MIN_MTU} to {MAX_MTU}",
                new.name
            )));
        }
        if let Some(mac) = new.mac.filter(|mac| !mac.is_valid_source()) {
            return Err(SwitchError::Settings(format!(
                "port {} cannot offer {mac}: a guest needs the address of one station, not a group or zero",
                new.name
            )));
        }
        if new.tap.is_some() && new.control_queue {
            return Err(SwitchError::Settings(format!(
                "port {} is an interface of this host, which has no control queue: leave the option out",
                new.name
            )));
        }
        let kind = match (&new.tap, &new.socket) {
            (Some(_), Some(_)) => {
                return Err(SwitchError::Settings(format!(
                    "port {} cannot be both a socket and a tap: give one of them",
                    new.name
                )));
            }
            (Some(interface), None) => PortKind::Tap {
                interface: interface.clone(),
            },
            (None, socket) => PortKind::VhostUser {
                socket: self.socket_for(&new.name, socket.as_deref())?,
                client: new.client,
            },
        };
        Ok(PortSettings {
            name: new.name.clone(),
            kind,
            queue_pairs: new.queues,
            mac: new.mac,
            mtu: new.mtu,
            link: LinkSetting::Up,
            control_queue: new.control_queue,
            source_macs: source_macs(&new.name, new.mac, new.anti_spoof, &new.allow_macs)?,
        })
    }

    fn socket_for(&self, port: &str, given: Option<&Path>) -> Result<PathBuf, SwitchError> {
        let socket = match (given, &self.dir) {
            (Some(path), _) if path.is_absolute() => path.to_owned(),
            (Some(path), _) => {
                return Err(SwitchError::Settings(format!(
                    "port {port} cannot have the socket {}: give its absolute path",
                    path.display()
                )));
            }
            (None, Some(dir)) => dir.port_socket(port),
            (None, None) => {
                return Err(SwitchError::Settings(format!(
                    "port {port} needs a socket: give its path"
                )));
            }
        };
        check_socket_path(&socket)?;
        Ok(socket)
    }

    /// Makes a port part of the bridge and of the configuration in memory.
    fn attach(
        &self,
        control: &mut Control,
        settings: PortSettings,
        before: Option<Before>,
    ) -> Result<Arc<Port>, SwitchError> {
        for other in &control.config.ports {
            if other.name == settings.name {
                return Err(SwitchError::PortExists {
                    bridge: self.name.clone(),
                    port: settings.name,
                });
            }
            if other.kind == settings.kind {
                return Err(match settings.kind {
                    PortKind::VhostUser { socket, .. } => SwitchError::SocketTaken {
                        socket,
                        port: other.name.clone(),
                    },
                    PortKind::Tap { interface } => SwitchError::TapTaken {
                        interface,
                        port: other.name.clone(),
                    },
                });
            }
        }
        let port = self.bridge.add_port(settings.clone())?;
        match self.connect(&port, before) {
            Ok(link) => control.links.insert(port.id(), link),
            Err(error) => {
                self.workers.remove(&port);
                self.bridge.remove_port(&port);
                return Err(error);
            }
        };
        control.config.ports.push(settings);
        Ok(port)
    }

    /// Gives the port's queues to the workers, and opens its socket or interface, or goes on with what it had.
    fn connect(&self, port: &Arc<Port>, before: Option<Before>) -> Result<Link, SwitchError> {
        let settings = port.settings();
        let workers = self.workers.add(port);
        let (socket, client) = match &settings.kind {
            PortKind::VhostUser { socket, client } => (socket, *client),
            PortKind::Tap { interface } => {
                let bridge = Arc::clone(&self.bridge);
                let port = Arc::clone(port);
                return Ok(Link::Tap(match before {
                    Some(before) => TapPort::resume(port, bridge, interface, workers, before.fds)?,
                    None => TapPort::open(port, bridge, interface, workers)?,
                }));
            }
        };
        let plane = PortPlane::new(Arc::clone(port), Arc::clone(&self.bridge));
        let socket = if client {
            SocketConfig::client(socket)
        } else {
            SocketConfig::server(socket)
        };
        let device = PortConfig {
            queue_pairs: settings.queue_pairs,
            mac: settings.mac.map(MacAddr::octets),
            mtu: settings.mtu,
            link_up: settings.link == LinkSetting::Up,
            control_queue: settings.control_queue,
            ..PortConfig::new(&settings.name)
        };
        let plane = Arc::new(plane);
        Ok(Link::Session(match before.and_then(Before::session) {
            Some(handover) => Session::resume(socket, device, plane, handover)?,
            None => Session::spawn(socket, device, plane)?,
        }))
    }

    /// Takes a port out of the bridge. When this returns no worker uses it.
    fn detach(&self, control: &mut Control, port: &Arc<Port>) {
        match control.links.remove(&port.id()) {
            Some(Link::Session(session)) => {
                let ended = session.stop();
                if !ended {
                    // What it would have done.
                    PortPlane::new(Arc::clone(port), Arc::clone(&self.bridge)).disconnected();
                }
            }
            Some(Link::Tap(tap)) => tap.close(),
            None => {}
        }
        self.workers.remove(port);
        self.bridge.remove_port(port);
    }

    fn set_static(&self, control: &mut Control, entry: StaticEntry) -> Result<(), SwitchError> {
        let port = self.find(&entry.port)?;
        self.bridge
            .fdb()
            .add_static(entry.mac, entry.vlan, port.id(), self.bridge.clock().now())?;
        control
            .config
            .fdb
            .retain(|other| (other.mac, other.vlan) != (entry.mac, entry.vlan));
        control.config.fdb.push(entry);
        Ok(())
    }

    fn store(&self, control: &Control) -> Result<(), SwitchError> {
        match &self.dir {
            Some(dir) => Ok(control.config.store(dir)?),
            None => Ok(()),
        }
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The addresses that a port may send from which is `held` to its own and those allowed.
fn source_macs(
    port: &str,
    mac: Option<MacAddr>,
    held: bool,
    allowed: &[MacAddr],
) -> Result<Vec<MacAddr>, SwitchError> {
    let macs: Vec<MacAddr> = mac.into_iter().chain(allowed.iter().copied()).collect();
    let refused = |why: String| SwitchError::Settings(format!("port {port} {why}"));
    match (held, macs.iter().find(|mac| !mac.is_valid_source())) {
        (false, _) if !allowed.is_empty() => Err(refused(
            "cannot be held to addresses: ask for anti-spoofing as well".to_owned(),
        )),
        (false, _) => Ok(Vec::new()),
        (true, Some(mac)) => Err(refused(format!(
            "cannot send from {mac}: allow the addresses of stations, not a group or zero"
        ))),
        (true, None) if macs.is_empty() || macs.len() > MAX_SOURCE_MACS => Err(refused(format!(
            "cannot be held to {} addresses: give its MAC, or 1 to {MAX_SOURCE_MACS} allowed ones",
            macs.len()
        ))),
        (true, None) => Ok(macs),
    }
}
