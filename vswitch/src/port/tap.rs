//! A port that is an interface of this host.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vhost_net_backend::netlink::{NetlinkError, set_up};
use vhost_net_backend::tap::{Tap, TapError, TapQueue};
use virtio::features as f;

use super::Port;
use crate::worker::WorkerShared;

/// What the host can be sent and sends: everything that a tap knows.
const OFFLOADS: u64 = f::NET_F_CSUM
    | f::NET_F_GUEST_CSUM
    | f::NET_F_HOST_TSO4
    | f::NET_F_HOST_TSO6
    | f::NET_F_HOST_ECN
    | f::NET_F_GUEST_TSO4
    | f::NET_F_GUEST_TSO6
    | f::NET_F_GUEST_ECN;
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
    port: Arc<Port>,
    workers: Vec<(Arc<WorkerShared>, u64)>,
}

impl TapPort {
    /// Makes the interface, or attaches to it, sets it up, and gives its queues to the workers of `port`.
    pub fn open(
        port: Arc<Port>,
        interface: &str,
        workers: Vec<(Arc<WorkerShared>, u64)>,
    ) -> Result<Self, TapPortError> {
        let tap = Tap::open(interface, port.settings().queue_pairs)?;
        tap.set_offload(OFFLOADS)?;
        set_up(interface, port.settings().mtu)?;
        port.features.store(OFFLOADS, Ordering::Relaxed);
        let opened = Self { port, workers };
        for (pair, queue) in tap.into_queues().into_iter().enumerate() {
            opened
                .attach(pair, queue)
                .map_err(|error| TapPortError::Watch(interface.to_owned(), error))?;
        }
        opened.port.connected.store(true, Ordering::Relaxed);
        Ok(opened)
    }

    fn attach(&self, pair: usize, queue: TapQueue) -> std::io::Result<()> {
        let (Some(queues), Some((worker, number))) = (self.port.pairs().get(pair), self.workers.get(pair))
        else {
            return Ok(());
        };
        let queue = Arc::new(queue);
        worker.watch(&*queue, *number)?;
        *queues.tap.lock() = Some(queue);
        self.port.set_ready(pair, true);
        queues.ingress.want_attention();
        worker.wake();
        Ok(())
    }

    /// Lets go of the interface. When this returns, one that the port made is gone.
    pub fn close(&self) {
        self.port.connected.store(false, Ordering::Relaxed);
        for (queues, (worker, _)) in self.port.pairs().iter().zip(&self.workers) {
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
        self.port.ready.store(0, Ordering::Relaxed);
    }
}

impl Drop for TapPort {
    fn drop(&mut self) {
        self.close();
    }
}
