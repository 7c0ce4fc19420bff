use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::control::{Event, Message};
use super::{Channel, Console, ConsoleError, F_MULTIPORT};
use crate::virtio::testing::{DriverRing, Guest, NEEDS_RESET, VERSION_1, WRITE};

const CONTROL_RX: u16 = 2;
const CONTROL_TX: u16 = 3;
/// Bytes of each buffer that the driver gives.
const BUFFER: u32 = 256;
const SIZE: u16 = 16;

/// A driver of a console device with the channels `one` and `two`, and a console.
struct Driver {
    guest: Guest,
    rings: Vec<DriverRing>,
    /// Where the control message came that was taken last.
    slot: u32,
    dir: TempDir,
    console: UnixStream,
}

fn queue_memory(queue: u16) -> u64 {
    0x1_0000 + 0x1000 * u64::from(queue)
}

fn buffer(queue: u16, slot: u32) -> u64 {
    0x10_0000 + 0x1_0000 * u64::from(queue) + u64::from(slot) * u64::from(BUFFER)
}

fn channel(dir: &TempDir, name: &str) -> Channel {
    Channel {
        name: name.to_owned(),
        socket: dir.path().join(name),
    }
}

impl Driver {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (console, device_end) = UnixStream::pair().unwrap();
        device_end.set_nonblocking(true).unwrap();
        let device = Console::new(Some(device_end), &[channel(&dir, "one"), channel(&dir, "two")]);
        let guest = Guest::new(Box::new(device.unwrap()));
        let mut driver = Self {
            guest,
            rings: Vec::new(),
            slot: 3,
            dir,
            console,
        };
        driver.start(F_MULTIPORT);
        driver
    }

    /// Resets and sets up all queues; those that the device fills get a few buffers.
    fn start(&mut self, features: u64) {
        assert!(self.guest.negotiate(VERSION_1 | features));
        self.slot = 3;
        self.rings.clear();
        for queue in 0..8 {
            let base = queue_memory(queue);
            self.guest
                .ram
                .mem
                .write_slice(&[0; 0x1000], GuestAddress(base))
                .unwrap();
            self.rings.push(DriverRing::new(
                &self.guest.ram,
                self.guest.set_up_queue(queue, SIZE, base),
            ));
        }
        self.guest.write16(16, 8);
        assert_eq!(self.guest.driver_ok() & NEEDS_RESET, 0);
        for slot in 0..4 {
            self.give(CONTROL_RX, slot);
        }
    }

    fn give(&mut self, queue: u16, slot: u32) {
        self.rings[usize::from(queue)].give_buffer(buffer(queue, slot), BUFFER, WRITE);
        self.guest.kick(queue);
    }

    fn say(&mut self, port: u32, event: Event, value: bool) {
        self.send(CONTROL_TX, &Message { port, event, value }.encode());
    }

    /// Sends bytes and waits until the device is done with them.
    fn send(&mut self, queue: u16, bytes: &[u8]) {
        self.post(queue, bytes);
        self.rings[usize::from(queue)].wait_for_used(&self.guest.platform, queue);
    }

    fn post(&mut self, queue: u16, bytes: &[u8]) {
        let addr = buffer(queue, 0);
        self.guest.ram.mem.write_slice(bytes, GuestAddress(addr)).unwrap();
        let len = u32::try_from(bytes.len()).unwrap();
        self.rings[usize::from(queue)].give_buffer(addr, len, 0);
        self.guest.kick(queue);
    }

    /// What the device put into the next buffer of `queue`.
    fn take(&mut self, queue: u16) -> Vec<u8> {
        let (head, len) = self.rings[usize::from(queue)].wait_for_used(&self.guest.platform, queue);
        let at = queue_memory(queue) + 16 * u64::from(head);
        let addr: u64 = self.guest.ram.mem.read_obj(GuestAddress(at)).unwrap();
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        self.guest
            .ram
            .mem
            .read_slice(&mut bytes, GuestAddress(addr))
            .unwrap();
        bytes
    }

    fn expect(&mut self, port: u32, event: Event, value: bool) -> String {
        let bytes = self.take(CONTROL_RX);
        self.slot = (self.slot + 1) % 4;
        self.give(CONTROL_RX, self.slot);
        let (head, name) = bytes.split_at(8);
        assert_eq!(
            Message::decode(head.try_into().unwrap()),
            Some(Message { port, event, value })
        );
        String::from_utf8(name.to_vec()).unwrap()
    }

    /// Everything up to ports that programs can open.
    fn set_up_ports(&mut self) {
        self.say(0, Event::DeviceReady, true);
        for port in 0..3 {
            self.expect(port, Event::DeviceAdd, true);
        }
        self.say(0, Event::PortReady, true);
        self.expect(0, Event::ConsolePort, true);
        self.expect(0, Event::PortOpen, true);
        for (port, name) in [(1, "one"), (2, "two")] {
            self.say(port, Event::PortReady, true);
            assert_eq!(self.expect(port, Event::PortName, true), name);
        }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn client(&self, name: &str) -> UnixStream {
        let client = UnixStream::connect(self.socket(name)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client
    }
}

/// The queues of a port: the one that the device fills, and the one that the driver fills.
fn queues(port: u16) -> (u16, u16) {
    if port == 0 {
        (0, 1)
    } else {
        (2 + 2 * port, 3 + 2 * port)
    }
}

#[test]
fn configuration_names_the_number_of_ports() {
    let driver = Driver::new();
    assert_eq!(
        driver.guest.read::<12>(0x2000),
        [0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(driver.guest.read16(18), 8, "queues");
}

#[test]
fn ports_are_announced_with_their_names() {
    let mut driver = Driver::new();
    driver.set_up_ports();
    driver.say(77, Event::PortReady, true);
    driver.say(u32::MAX, Event::PortOpen, true);
    driver.send(CONTROL_TX, &[1, 2, 3]);
    driver.send(CONTROL_TX, &[0xff; 8]);
    driver.say(2, Event::PortReady, true);
    assert_eq!(driver.expect(2, Event::PortName, true), "two", "it still listens");
}

#[test]
fn bytes_go_both_ways_and_hang_ups_are_seen() {
    let mut driver = Driver::new();
    driver.set_up_ports();
    driver.say(1, Event::PortOpen, true);
    let (rx, tx) = queues(1);
    for round in 0..3 {
        let mut client = driver.client("one");
        driver.expect(1, Event::PortOpen, true);
        client.write_all(b"to the guest").unwrap();
        driver.give(rx, 0);
        assert_eq!(driver.take(rx), b"to the guest", "round {round}");
        driver.send(tx, b"to the host");
        let mut got = [0; 11];
        client.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"to the host");
        client.write_all(b"last words").unwrap();
        drop(client);
        driver.give(rx, 1);
        assert_eq!(driver.take(rx), b"last words", "before the hang-up");
        driver.expect(1, Event::PortOpen, false);
        driver.send(tx, b"to nobody");
    }
}

#[test]
fn one_client_at_a_time() {
    let mut driver = Driver::new();
    driver.set_up_ports();
    driver.say(1, Event::PortOpen, true);
    let (rx, tx) = queues(1);
    let first = driver.client("one");
    let mut second = driver.client("one");
    driver.expect(1, Event::PortOpen, true);
    second.write_all(b"second").unwrap();
    driver.give(rx, 0);
    driver.send(tx, b"for the first");
    second.set_nonblocking(true).unwrap();
    let mut byte = [0];
    assert_eq!(second.read(&mut byte).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(first);
    driver.expect(1, Event::PortOpen, false);
    driver.expect(1, Event::PortOpen, true);
    assert_eq!(driver.take(rx), b"second");
}

#[test]
fn what_the_guest_has_no_room_for_stays_in_the_socket() {
    let mut driver = Driver::new();
    driver.set_up_ports();
    let (rx, _) = queues(1);
    driver.give(rx, 0);
    let mut client = driver.client("one");
    driver.expect(1, Event::PortOpen, true);
    client.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while let Ok(count) = client.write(&[b'.'; 4096]) {
        sent += count;
        assert!(sent < 64 << 20, "somebody buffers without a bound");
    }
    assert!(
        driver.rings[usize::from(rx)].used().is_none(),
        "no program has the port open"
    );
    // Another port goes on.
    driver.say(2, Event::PortOpen, true);
    let mut other = driver.client("two");
    driver.expect(2, Event::PortOpen, true);
    other.write_all(b"hello").unwrap();
    driver.give(queues(2).0, 0);
    assert_eq!(driver.take(queues(2).0), b"hello");

    driver.say(1, Event::PortOpen, true);
    let mut got = driver.take(rx).len();
    drop(client);
    while got < sent {
        driver.give(rx, 0);
        let bytes = driver.take(rx);
        assert!(bytes.iter().all(|byte| *byte == b'.'));
        got += bytes.len();
    }
    driver.expect(1, Event::PortOpen, false);
}

#[test]
fn what_a_client_does_not_read_stays_with_the_guest() {
    let mut driver = Driver::new();
    driver.set_up_ports();
    let (_, tx) = queues(1);
    let mut client = driver.client("one");
    driver.expect(1, Event::PortOpen, true);
    // More than a socket holds, in one buffer.
    let (addr, len) = (0x20_0000, 2 << 20);
    driver
        .guest
        .ram
        .mem
        .write_slice(&vec![b'!'; len], GuestAddress(addr))
        .unwrap();
    driver.rings[usize::from(tx)].give_buffer(addr, u32::try_from(len).unwrap(), 0);
    driver.guest.kick(tx);
    let mut first = [0; 4096];
    client.read_exact(&mut first).unwrap();
    assert!(
        driver.rings[usize::from(tx)].used().is_none(),
        "not done before the client has it"
    );
    // Another port goes on.
    let other = driver.client("two");
    driver.expect(2, Event::PortOpen, true);
    drop(other);
    driver.expect(2, Event::PortOpen, false);
    let mut rest = vec![0; len - first.len()];
    client.read_exact(&mut rest).unwrap();
    assert!(first.iter().chain(&rest).all(|byte| *byte == b'!'));
    driver.rings[usize::from(tx)].wait_for_used(&driver.guest.platform, tx);

    driver.rings[usize::from(tx)].give_buffer(addr, u32::try_from(len).unwrap(), 0);
    driver.guest.kick(tx);
    client.read_exact(&mut first).unwrap();
    drop(client);
    driver.rings[usize::from(tx)].wait_for_used(&driver.guest.platform, tx);
    driver.expect(1, Event::PortOpen, false);
}

#[test]
fn a_client_that_leaves_undeliverable_bytes_does_not_stay() {
    let mut driver = Driver::new();
    driver.set_up_ports();
    let mut client = driver.client("one");
    driver.expect(1, Event::PortOpen, true);
    client.write_all(b"nobody is there").unwrap();
    drop(client);
    driver.expect(1, Event::PortOpen, false);
    // A program that is there, but does not read, gets them until it closes the port.
    driver.say(1, Event::PortOpen, true);
    let mut client = driver.client("one");
    driver.expect(1, Event::PortOpen, true);
    client.write_all(b"nobody reads").unwrap();
    drop(client);
    driver.say(1, Event::PortOpen, false);
    driver.expect(1, Event::PortOpen, false);
}

#[test]
fn a_reset_disconnects_channels_and_keeps_the_console() {
    let mut driver = Driver::new();
    driver.set_up_ports();
    let mut one = driver.client("one");
    driver.expect(1, Event::PortOpen, true);
    let mut console = driver.console.try_clone().unwrap();
    driver.start(F_MULTIPORT);
    assert_eq!(one.read(&mut [0]).unwrap(), 0);
    driver.set_up_ports();
    driver.send(queues(0).1, b"login: ");
    let mut got = [0; 7];
    console.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"login: ");
}

#[test]
fn a_driver_without_multiport_has_the_console() {
    let mut driver = Driver::new();
    driver.start(0);
    let mut client = driver.console.try_clone().unwrap();
    driver.give(0, 0);
    client.write_all(b"root\n").unwrap();
    assert_eq!(driver.take(0), b"root\n");
    driver.send(1, b"# ");
    let mut got = [0; 2];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"# ");
}

#[test]
fn a_broken_ring_asks_for_a_reset() {
    let mut driver = Driver::new();
    driver.rings[usize::from(CONTROL_TX)].set_avail_index(500);
    driver.guest.kick(CONTROL_TX);
    driver.guest.platform.wait_for_interrupt(8);
    assert_eq!(driver.guest.status() & NEEDS_RESET, NEEDS_RESET);
    driver.start(F_MULTIPORT);
    driver.set_up_ports();
}

#[test]
fn bad_channels_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |channels: &[Channel]| Console::new(None, channels).unwrap_err();
    for name in ["", "a b", "a/b", &"x".repeat(64)] {
        assert!(matches!(
            refused(&[Channel {
                name: name.to_owned(),
                ..channel(&dir, "s")
            }]),
            ConsoleError::Name(_)
        ));
    }
    assert!(matches!(
        refused(&[channel(&dir, "s"), channel(&dir, "s")]),
        ConsoleError::Twice(_)
    ));
    assert!(matches!(
        refused(&vec![channel(&dir, "s"); 32]),
        ConsoleError::TooMany(32)
    ));
    assert!(!dir.path().join("s").exists(), "nothing is left behind");
    std::fs::write(dir.path().join("file"), "").unwrap();
    assert!(matches!(
        refused(&[channel(&dir, "file")]),
        ConsoleError::Socket(_)
    ));
}

#[test]
fn with_event_idx_a_driver_that_kicks_only_when_asked_loses_nothing() {
    const EVENT_IDX: u64 = 1 << 29;
    let mut driver = Driver::new();
    driver.start(F_MULTIPORT | EVENT_IDX);
    let mut client = driver.console.try_clone().unwrap();
    driver.say(0, Event::DeviceReady, true);
    driver.say(0, Event::PortReady, true);
    driver.say(0, Event::PortOpen, true);
    for round in 0..100u8 {
        let (rx, tx) = (0, 1);
        driver
            .guest
            .ram
            .mem
            .write_obj(round, GuestAddress(buffer(tx, 0)))
            .unwrap();
        driver.rings[1].give_buffer(buffer(tx, 0), 1, 0);
        if driver.rings[1].wants_kick() {
            driver.guest.kick(tx);
        }
        let mut got = [0];
        client.read_exact(&mut got).unwrap();
        assert_eq!(got, [round]);
        while driver.rings[1].used().is_none() {
            std::thread::yield_now();
        }
        driver.rings[0].give_buffer(buffer(rx, 0), BUFFER, WRITE);
        if driver.rings[0].wants_kick() {
            driver.guest.kick(rx);
        }
        client.write_all(&[round]).unwrap();
        assert_eq!(driver.take(rx), [round]);
    }
}
