//! The NIC between a hand-made guest driver and back-ends that behave, misbehave and die.

mod control;
mod forwarding;
mod lifecycle;
mod peers;
mod reconnect;
mod reference;
mod ring_reset;
mod script;

use std::path::Path;
use std::time::Duration;

use self::script::{Act, Backend, Offer, Stage};
use super::{NicOptions, Timeouts, VhostUserNet, features};
use crate::virtio::device::VirtioDevice;
use crate::virtio::test_driver::{Guest, SOON, wait_for};

/// As by default, but quick to try again.
fn patient() -> Timeouts {
    Timeouts {
        longest_pause: Duration::from_millis(10),
        ..Timeouts::default()
    }
}

fn options(path: &Path) -> NicOptions {
    NicOptions {
        mac: Some([2, 0, 0, 0, 0, 1]),
        queue_pairs: 2,
        timeouts: patient(),
        ..NicOptions::new("net0", path)
    }
}

/// Makes a NIC while a well-behaved back-end comes up.
fn connected(stage: &Stage, offer: Offer) -> (VhostUserNet, Backend) {
    let options = options(&stage.path);
    std::thread::scope(|scope| {
        let nic = scope.spawn(|| VhostUserNet::new(options).unwrap());
        let backend = stage.play(offer, |_, _| Act::Answer);
        (nic.join().unwrap(), backend)
    })
}

/// Negotiates all that is offered and starts the NIC.
fn drive(guest: &mut Guest, nic: &mut VhostUserNet) -> u64 {
    let features = nic.features() | features::VERSION_1;
    assert!(nic.ack_features(features));
    nic.activate(guest.activation(features)).unwrap();
    features
}

/// The link state that the guest reads.
fn link_up(nic: &VhostUserNet) -> bool {
    let mut status = [0; 2];
    nic.read_config(6, &mut status);
    status[0] & 1 != 0
}
