//! A port that is an interface of this host.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vhost_net_backend::config::{OFFLOADS, USO};
use vhost_net_backend::netlink::{NetlinkError, set_up};
use vhost_net_backend::tap::{Tap, TapError, TapKeeper, TapQueue};

use super::Port;
use crate::bridge::Bridge;
use crate::config::LinkSetting;
use crate::worker::WorkerShared;

/// How long a worker's last burst to the interface is waited for, in steps of a millisecond.
const LAST_BURST: u32 = 200;

/// The interface could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TapPortError {
    /// There is no such tap.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// It stays down.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Its descriptors cannot be watched.
    #[error("interface '{0}' cannot be watched: {1}")]
    Watch(String, #[source] std::io::Error),
}

/// The interface behind a port, for as long as the port is there.
#[derive(Debug)]
pub struct TapPort {
    users: Users,
    keeper: Mutex<Option<TapKeeper>>,
}

/// The port and its workers.
#[derive(Debug, Clone)]
struct Users {
    port: Arc<Port>,
    bridge: Arc<Bridge>,
    workers: Vec<(Arc<WorkerShared>, u64)>,
}

impl TapPort {
    /// Makes the interface, or attaches to it, sets it up, and gives its queues to the workers of `port`. From then
    /// on the port follows its link, and is attached again when the interface was deleted and another one of the name
    /// appears.
    pub fn open(
        port: Arc<Port>,
        bridge: Arc<Bridge>,
        interface: &str,
        workers: Vec<(Arc<WorkerShared>, u64)>,
    ) -> Result<Self, TapPortError> {
        let tap = Tap::open(interface, port.settings().queue_pairs)?;
        set_up(interface, port.settings().mtu)?;
        Self::on(&tap, port, bridge, workers)
    }

    /// Goes on with the queues of an interface that another process had attached and set up.
    pub fn resume(
        port: Arc<Port>,
        bridge: Arc<Bridge>,
        interface: &str,
        workers: Vec<(Arc<WorkerShared>, u64)>,
        queues: Vec<OwnedFd>,
    ) -> Result<Self, TapPortError> {
        let tap = Tap::take_over(interface, queues);
        Self::on(&tap, port, bridge, workers)
    }

    fn on(
        tap: &Tap,
        port: Arc<Port>,
        bridge: Arc<Bridge>,
        workers: Vec<(Arc<WorkerShared>, u64)>,
    ) -> Result<Self, TapPortError> {
        // What the host can be sent and sends: everything that its taps know.
        let offloads = if tap.takes_uso() {
            OFFLOADS
        } else {
            OFFLOADS & !USO
        };
        tap.set_offload(offloads)?;
        let mtu = port.settings().mtu;
        port.features.store(offloads, Ordering::Relaxed);
        let opened = Self {
            users: Users {
                port,
                bridge,
                workers,
            },
            keeper: Mutex::default(),
        };
        for (pair, queue) in tap.queues().iter().enumerate() {
            opened
                .attach(pair, Arc::clone(queue))
                .map_err(|error| TapPortError::Watch(tap.name().to_owned(), error))?;
        }
        opened.users.set_link(true);
        opened.set_carrier(opened.users.port.link());
        let users = opened.users.clone();
        let keeper = TapKeeper::start(tap, mtu, move |up| users.set_link(up))?;
        *opened.keeper() = Some(keeper);
        Ok(opened)
    }

    fn keeper(&self) -> MutexGuard<'_, Option<TapKeeper>> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attach(&self, pair: usize, queue: Arc<TapQueue>) -> std::io::Result<()> {
        let Users { port, workers, .. } = &self.users;
        let (Some(queues), Some((worker, number))) = (port.pairs().get(pair), workers.get(pair)) else {
            return Ok(());
        };
        worker.watch(&*queue, *number)?;
        *queues.tap.lock() = Some(queue);
        Ok(())
    }

    /// Lets the host see what the port's link was set to.
    pub fn set_carrier(&self, link: LinkSetting) {
        let queue = self
            .users
            .port
            .pairs()
            .first()
            .and_then(|pair| pair.tap.lock().clone());
        if let Some(queue) = queue
            && let Err(error) = queue.set_carrier(link == LinkSetting::Up)
        {
            tracing::warn!("the host does not see the link of its interface: {error}");
        }
    }

    /// Lets go of the interface, which stays: another process goes on with its queues.
    pub fn hand_over(&self) -> std::io::Result<Vec<OwnedFd>> {
        let queues = self.users.port.pairs().iter();
        let queues = queues.filter_map(|pair| pair.tap.lock().clone());
        let fds = queues.map(|queue| queue.as_fd().try_clone_to_owned()).collect();
        self.close();
        fds
    }

    /// Lets go of the interface. When this returns, one that the port made is gone.
    pub fn close(&self) {
        // It holds the queues too.
        drop(self.keeper().take());
        let Users { port, workers, .. } = &self.users;
        port.connected.store(false, Ordering::Relaxed);
        for (pair, (queues, (worker, _))) in port.pairs().iter().zip(workers).enumerate() {
            port.set_ready(pair, false);
            let Some(queue) = queues.tap.lock().take() else {
                continue;
            };
            worker.unwatch(&*queue);
            for _ in 0..LAST_BURST {
                if Arc::strong_count(&queue) == 1 {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Users {
    /// The interface's link went up or down.
    fn set_link(&self, up: bool) {
        self.port.connected.store(up, Ordering::Relaxed);
        for (pair, (queues, (worker, _))) in self.port.pairs().iter().zip(&self.workers).enumerate() {
            self.port.set_ready(pair, up);
            if up {
                // The host may have sent something before anybody looked.
                queues.ingress.want_attention();
                worker.wake();
            }
        }
        if !up {
            self.bridge.fdb().flush(Some(self.port.id()));
        }
    }
}

impl Drop for TapPort {
    fn drop(&mut self) {
        self.close();
    }
}
