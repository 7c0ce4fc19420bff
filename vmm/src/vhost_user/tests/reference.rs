//! The NIC against an implementation that is not ours: the `vhost-user-backend` crate's daemon.

use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use vhost::vhost_user::Listener;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{ShutdownHandle, VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueOwnedT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::{Guest, SOON, drive, link_up, options, wait_for};
use crate::vhost_user::{VhostUserNet, features};
use crate::virtio::device::VirtioDevice;

const FRAME: &[u8] = b"\0\0\0\0\0\0\0\0\0\0\x01\0a frame behind its header";

/// A network back-end that sends every frame of a pair's transmit queue back on its receive queue.
struct Echo {
    mem: GuestMemoryAtomic<GuestMemoryMmap>,
    seen: Arc<Mutex<Seen>>,
    exit: Mutex<Option<(EventConsumer, EventNotifier)>>,
}

/// What the back-end was told.
#[derive(Debug, Default)]
struct Seen {
    features: u64,
    event_idx: bool,
}

impl Echo {
    fn echo(&self, tx: &VringRwLock, rx: &VringRwLock) -> std::io::Result<()> {
        let mem = self.mem.memory();
        loop {
            // Both rings first: a frame without a buffer to receive it waits.
            let mut rx_state = rx.get_mut();
            let mut tx_state = tx.get_mut();
            let Some(room) = rx_state.get_queue_mut().pop(&mem) else {
                break;
            };
            let Some(frame) = tx_state.get_queue_mut().pop(&mem) else {
                rx_state.get_queue_mut().go_to_previous_position();
                break;
            };
            let mut bytes = [0; 64];
            mem.read_slice(&mut bytes[..frame.2], frame.1)
                .map_err(std::io::Error::other)?;
            mem.write_slice(&bytes[..frame.2], room.1)
                .map_err(std::io::Error::other)?;
            drop((rx_state, tx_state));
            let length = u32::try_from(frame.2).unwrap();
            rx.add_used(room.0, length).map_err(std::io::Error::other)?;
            tx.add_used(frame.0, 0).map_err(std::io::Error::other)?;
            rx.signal_used_queue()?;
            tx.signal_used_queue()?;
        }
        Ok(())
    }
}

/// The next chain's head, and the place and length of its one buffer.
trait Pop {
    fn pop(&mut self, mem: &GuestMemoryMmap) -> Option<(u16, GuestAddress, usize)>;
}

impl Pop for virtio_queue::Queue {
    fn pop(&mut self, mem: &GuestMemoryMmap) -> Option<(u16, GuestAddress, usize)> {
        // The other ring of a pair may not have been handed over yet; its own kick comes when it is.
        let mut chain = self.iter(mem).ok()?.next()?;
        let head = chain.head_index();
        let buffer = chain.next()?;
        Some((head, buffer.addr(), buffer.len() as usize))
    }
}

impl VhostUserBackendMut for Echo {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        4
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        features::VERSION_1
            | features::MRG_RXBUF
            | features::EVENT_IDX
            | features::MQ
            | features::MAC
            | features::PROTOCOL_FEATURES
    }

    fn acked_features(&mut self, features: u64) {
        self.seen.lock().unwrap().features = features;
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&mut self, enabled: bool) {
        self.seen.lock().unwrap().event_idx = enabled;
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = [2, 9, 9, 9, 9, 9, 1, 0, 2, 0, 0, 0];
        config[offset as usize..(offset + size) as usize].to_vec()
    }

    fn update_memory(&mut self, mem: GuestMemoryAtomic<GuestMemoryMmap>) -> std::io::Result<()> {
        self.mem = mem;
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit.lock().unwrap().take()
    }

    fn handle_event(
        &mut self,
        event: u16,
        _events: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> std::io::Result<()> {
        let pair = usize::from(event / 2);
        match vrings.get(pair * 2..pair * 2 + 2) {
            Some([rx, tx]) => self.echo(tx, rx),
            _ => Ok(()),
        }
    }
}

/// A daemon that serves one connection.
struct Daemon {
    seen: Arc<Mutex<Seen>>,
    shutdown: ShutdownHandle,
    thread: JoinHandle<()>,
}

impl Daemon {
    /// Serves the next connection to `path`.
    fn start(path: &Path) -> mpsc::Receiver<Self> {
        let mut listener = Listener::new(path, true).unwrap();
        let (started, daemon) = mpsc::channel();
        std::thread::spawn(move || {
            let mem = GuestMemoryAtomic::new(GuestMemoryMmap::new());
            let seen = Arc::new(Mutex::new(Seen::default()));
            let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap();
            let backend = Echo {
                mem: mem.clone(),
                seen: Arc::clone(&seen),
                exit: Mutex::new(Some(exit)),
            };
            let backend = Arc::new(std::sync::RwLock::new(backend));
            let mut daemon = VhostUserDaemon::new("echo".to_owned(), backend, mem).unwrap();
            daemon.start(&mut listener).unwrap();
            let shutdown = daemon.shutdown_handle().unwrap();
            let thread = std::thread::spawn(move || {
                // It calls a peer that leaves an error.
                let _ = daemon.wait();
            });
            started
                .send(Self {
                    seen,
                    shutdown,
                    thread,
                })
                .unwrap();
        });
        daemon
    }

    fn kill(self) {
        self.shutdown.shutdown();
        self.thread.join().unwrap();
    }
}

/// Sends a frame on a pair and receives it back: the `n`-th on it since the driver started.
fn round_trip(guest: &mut Guest, pair: usize, n: u16) {
    let (rx, tx) = (pair * 2, pair * 2 + 1);
    let (to, from) = (guest.queues[rx].buffer(), guest.queues[tx].buffer());
    guest.ram.mem.write_slice(&[0; 64], GuestAddress(to)).unwrap();
    guest.ram.mem.write_slice(FRAME, GuestAddress(from)).unwrap();
    let length = u32::try_from(FRAME.len()).unwrap();
    guest.queues[rx].post(&[(to, 64, true)]);
    guest.queues[tx].post(&[(from, length, false)]);
    assert_eq!(guest.queues[rx].wait_used(n).1, length);
    guest.queues[tx].wait_used(n);
    let mut received = vec![0; FRAME.len()];
    guest.ram.mem.read_slice(&mut received, GuestAddress(to)).unwrap();
    assert_eq!(received, FRAME);
}

#[test]
fn frames_go_through_on_every_pair_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nic.sock");
    let started = Daemon::start(&path);
    let options = crate::vhost_user::NicOptions {
        mac: None,
        ..options(&path)
    };
    let mut nic = VhostUserNet::new(options).unwrap();
    let daemon = started.recv_timeout(SOON).unwrap();
    let mut mac = [0; 6];
    nic.read_config(0, &mut mac);
    assert_eq!(mac, [2, 9, 9, 9, 9, 9]);

    let mut guest = Guest::new(5);
    let acked = drive(&mut guest, &mut nic);
    assert_eq!(acked & features::INDIRECT_DESC, 0);
    assert!(nic.monitor().wait_for(SOON, |s| s.link_up));
    round_trip(&mut guest, 0, 1);
    {
        let seen = daemon.seen.lock().unwrap();
        let expected = acked & (features::BACKEND | features::MAC) | features::PROTOCOL_FEATURES;
        assert_eq!((seen.features, seen.event_idx), (expected, true));
    }

    // The second pair runs when the guest asks for it.
    let control = guest.queues[4].buffer();
    guest
        .ram
        .mem
        .write_slice(&[4, 0, 2, 0], GuestAddress(control))
        .unwrap();
    guest.queues[4].post(&[(control, 4, false), (control + 8, 1, true)]);
    guest.queues[4].wait_used(1);
    round_trip(&mut guest, 1, 1);

    daemon.kill();
    assert!(nic.monitor().wait_for(SOON, |s| !s.link_up));
    while link_up(&nic) {
        wait_for(&guest.config_interrupt);
    }
    let started = Daemon::start(&path);
    let daemon = started.recv_timeout(SOON).unwrap();
    round_trip(&mut guest, 0, 2);
    round_trip(&mut guest, 1, 2);

    // A new driver on the same connection.
    nic.reset();
    drive(&mut guest, &mut nic);
    round_trip(&mut guest, 0, 1);
    drop(nic);
    daemon.kill();
}
