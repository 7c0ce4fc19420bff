use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::*;
use crate::hv::Vm;

const LSR: u64 = 5;
const DATA_READY: u8 = 1;

fn port(config: &SerialConfig, log: Option<&std::path::Path>) -> Option<Arc<SerialPort>> {
    // Interrupt lines are KVM's; without it there is nothing to connect to.
    let vm = Vm::new().ok()?;
    let line = LegacyIrq::new(vm.fd(), 4).ok()?;
    let ends = Ends::open(config, log).unwrap().unwrap();
    Some(SerialPort::new(ends, line, || {}).unwrap())
}

fn read(port: &SerialPort, register: u64) -> u8 {
    let mut data = [0];
    port.read(0, register, &mut data);
    data[0]
}

fn write(port: &SerialPort, bytes: &[u8]) {
    for byte in bytes {
        port.write(0, 0, &[*byte]);
    }
}

/// Reads `want` bytes of input as a guest that polls.
fn guest_input(port: &SerialPort, want: usize) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut got = Vec::new();
    while got.len() < want && Instant::now() < deadline {
        if read(port, LSR) & DATA_READY == 0 {
            std::thread::yield_now();
        } else {
            got.push(read(port, 0));
        }
    }
    got
}

#[test]
fn a_socket_carries_both_ways_and_one_client_follows_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial");
    let log = folder.path().join("log");
    let Some(port) = port(&SerialConfig::Socket(path.clone()), Some(&log)) else {
        return;
    };
    write(&port, b"early ");
    for round in 0..2 {
        let mut client = UnixStream::connect(&path).unwrap();
        // More than the FIFO holds: the rest has to wait for the guest.
        client.write_all(&[b'a' + round; 300]).unwrap();
        assert_eq!(guest_input(&port, 300), vec![b'a' + round; 300]);
        write(&port, b"hello");
        let mut got = [0; 5];
        client.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
    }
    assert_eq!(std::fs::read(&log).unwrap(), b"early hellohello");
    drop(port);
    assert!(!path.exists(), "the socket is removed");
}

#[test]
fn a_client_that_reads_nothing_does_not_stop_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial");
    let Some(port) = port(&SerialConfig::Socket(path.clone()), None) else {
        return;
    };
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"x").unwrap();
    assert_eq!(guest_input(&port, 1), b"x");
    for _ in 0..1_000 {
        write(&port, &[0; 1024]);
    }
}

#[test]
fn a_pty_is_a_terminal() {
    let Some(port) = port(&SerialConfig::Pty, None) else {
        return;
    };
    let name = port.pty().unwrap().clone();
    for _ in 0..2 {
        let mut user = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&name)
            .unwrap();
        user.write_all(b"ls\r").unwrap();
        assert_eq!(guest_input(&port, 3), b"ls\r");
        write(&port, b"ok\n");
        let mut got = [0; 3];
        user.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"ok\n");
    }
}

#[test]
fn a_panic_on_the_console_is_seen_until_reset() {
    let folder = tempfile::tempdir().unwrap();
    let Some(port) = port(&SerialConfig::File(folder.path().join("out")), None) else {
        return;
    };
    write(&port, b"Kernel panic - not syncing: Attempted to kill init!");
    assert!(port.panic_seen());
    port.reset();
    assert!(!port.panic_seen());
}

/// A bridge and the device's end of it.
fn bridge(config: &SerialConfig) -> (Bridge, UnixStream) {
    let (bridge, device) = Bridge::new(Ends::open(config, None).unwrap().unwrap(), || {}).unwrap();
    device.set_nonblocking(false).unwrap();
    (bridge, device)
}

#[test]
fn a_console_on_a_socket_carries_both_ways_and_one_client_follows_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let (bridge, mut device) = bridge(&SerialConfig::Socket(path.clone()));
    for round in 0..2 {
        let mut client = UnixStream::connect(&path).unwrap();
        // More than the sockets in between hold.
        let sent = vec![b'a' + round; 4 << 20];
        let mut got = vec![0; sent.len()];
        std::thread::scope(|scope| {
            scope.spawn(|| client.write_all(&sent).unwrap());
            device.read_exact(&mut got).unwrap();
        });
        assert_eq!(got, sent);
        device.write_all(b"hello").unwrap();
        let mut got = [0; 5];
        client.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
    }
    // A guest that takes nothing does not keep it from ending.
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_nonblocking(true).unwrap();
    while client.write(&[0; 4096]).is_ok() {}
    drop(bridge);
    assert!(!path.exists(), "the socket is removed");
}

#[test]
fn a_console_on_a_pty_is_a_terminal() {
    let (bridge, mut device) = bridge(&SerialConfig::Pty);
    let mut user = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(bridge.pty().unwrap())
        .unwrap();
    user.write_all(b"ls\r").unwrap();
    let mut got = [0; 3];
    device.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ls\r");
    device.write_all(b"ok\n").unwrap();
    user.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ok\n");
}

#[test]
fn a_console_in_a_file_keeps_the_last_words_and_sees_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let (bridge, mut device) = bridge(&SerialConfig::File(path.clone()));
    device.write_all(b"Kernel panic - not syncing: x").unwrap();
    assert!(bridge.panic_seen());
    bridge.reset();
    assert!(!bridge.panic_seen());
    device.write_all(b"; good-bye").unwrap();
    drop((device, bridge));
    assert_eq!(
        std::fs::read_to_string(path).unwrap(),
        "Kernel panic - not syncing: x; good-bye"
    );
}
