//! A switch in the process of a test or a measurement, with guests on it.
//!
//! - [`Net`]: the switch.
//! - [`mac`], [`frame`], [`udp`]: what guests send each other.
//! - [`worker_time`]: what the switch's workers cost.
#![forbid(unsafe_code)]

mod worker_time;

use std::path::PathBuf;

use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::{Guest, wait_for};
use netyard_testkit::tcp::Segment;
use virtio::net::NetHeader;
use vswitch::config::{BridgeConfig, BridgeSettings};
use vswitch::mac::MacAddr;
use vswitch::model::{NewPort, PortState, PortView};
use vswitch::switch::Switch;

pub use worker_time::worker_time;

/// A switch whose ports have their sockets in a folder of its own.
#[derive(Debug)]
pub struct Net {
    /// The switch.
    pub switch: Switch,
    folder: tempfile::TempDir,
}

impl Default for Net {
    fn default() -> Self {
        Self::with(BridgeSettings::default())
    }
}

impl Net {
    /// A switch with every setting as it is without one.
    pub fn new() -> Self {
        Self::default()
    }

    /// A switch with so many workers.
    pub fn with_workers(workers: u16) -> Self {
        Self::with(BridgeSettings {
            workers,
            ..BridgeSettings::default()
        })
    }

    /// A switch with these settings.
    pub fn with(settings: BridgeSettings) -> Self {
        let config = BridgeConfig {
            settings,
            ..BridgeConfig::default()
        };
        Self {
            switch: Switch::start("test", config, None).unwrap(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// The socket of the port with this name.
    pub fn socket(&self, port: &str) -> PathBuf {
        self.folder.path().join(port)
    }

    /// What the port with this name is added by.
    pub fn new_port(&self, name: &str, pairs: u16) -> NewPort {
        NewPort {
            socket: Some(self.socket(name)),
            queues: pairs,
            ..NewPort::new(name)
        }
    }

    /// Adds a port and connects a guest to it.
    pub fn guest(&self, name: &str) -> Guest {
        self.guest_with(name, Options::default())
    }

    /// Adds a port and connects a guest like this to it.
    pub fn guest_with(&self, name: &str, options: Options) -> Guest {
        self.switch.add_port(&self.new_port(name, options.pairs)).unwrap();
        self.connect(name, options)
    }

    /// Connects a guest to a port that is there.
    pub fn connect(&self, name: &str, options: Options) -> Guest {
        let pairs = options.pairs;
        let guest = Guest::connect(&self.socket(name), options);
        wait_for("all queue pairs", || self.port(name).enabled_queue_pairs == pairs);
        guest
    }

    /// What the switch shows of a port.
    pub fn port(&self, name: &str) -> PortView {
        self.switch.port_view(name).unwrap()
    }

    /// Whether a guest is connected to the port, and can receive.
    pub fn is_up(&self, name: &str) -> bool {
        self.port(name).state == PortState::Up
    }

    /// Frames to and from the port that were dropped for this reason.
    pub fn drops(&self, name: &str, reason: &str) -> u64 {
        self.port(name).counters.drops.get(reason).copied().unwrap_or(0)
    }

    /// Frames to and from the port that were dropped.
    pub fn total_drops(&self, name: &str) -> u64 {
        self.port(name).counters.drops.values().sum()
    }

    /// The port that an address is known on.
    pub fn known(&self, mac: MacAddr) -> Option<String> {
        self.switch
            .fdb_entries()
            .into_iter()
            .find(|entry| entry.mac == mac)
            .map(|entry| entry.port)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.switch.stop();
    }
}

/// The address of guest number `n`.
pub fn mac(n: u8) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, 0, n])
}

/// The address of everybody.
pub const BROADCAST: MacAddr = MacAddr::new([0xff; 6]);

/// A frame of `len` bytes whose payload tells it from others.
pub fn frame(to: MacAddr, from: MacAddr, tag: u8, len: usize) -> Vec<u8> {
    let mut frame = [&to.octets()[..], &from.octets(), &[0x88, 0xb5]].concat();
    let payload = len.saturating_sub(frame.len());
    frame.extend((0..payload).map(|at| tag.wrapping_add(u8::try_from(at % 251).unwrap())));
    frame
}

/// A UDP datagram over IPv4, for flows told apart by their ports.
pub fn udp(to: u8, from: u8, ports: [u16; 2], tag: u8) -> Vec<u8> {
    let mut frame = [&mac(to).octets()[..], &mac(from).octets(), &[8, 0]].concat();
    frame.extend([
        0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, from, 10, 0, 0, to,
    ]);
    frame.extend(ports[0].to_be_bytes());
    frame.extend(ports[1].to_be_bytes());
    frame.extend([0, 26, 0, 0]);
    frame.extend([tag; 18]);
    frame
}

/// The next UDP datagram that a guest receives: its IP header and what follows.
pub fn next_udp(guest: &mut Guest) -> Vec<u8> {
    loop {
        let (_, received) = guest.receive();
        // The host says other things of its own accord.
        if received.frame[12..14] == [8, 0] && received.frame[23] == 17 {
            return received.frame;
        }
    }
}

/// The same datagram on its way back, from the station with this address.
pub fn udp_answer(datagram: &[u8], from: MacAddr) -> Vec<u8> {
    let mut answer = datagram.to_vec();
    answer[..6].copy_from_slice(&datagram[6..12]);
    answer[6..12].copy_from_slice(&from.octets());
    answer[26..30].copy_from_slice(&datagram[30..34]);
    answer[30..34].copy_from_slice(&datagram[26..30]);
    answer[34..36].copy_from_slice(&datagram[36..38]);
    answer[36..38].copy_from_slice(&datagram[34..36]);
    answer
}

/// A TCP segment of the first guest for the second, and its header.
///
/// # Panics
/// When the payload is longer than an IPv4 datagram.
pub fn tcp(payload: usize) -> (NetHeader, Vec<u8>) {
    let payload: Vec<u8> = (0..payload).map(|at| u8::try_from(at % 251).unwrap()).collect();
    Segment {
        macs: [mac(2).octets(), mac(1).octets()],
        addresses: [[10, 0, 0, 1], [10, 0, 0, 2]],
        ports: [12345, 5201],
        flags: 0x18,
        payload: &payload,
    }
    .build()
}
