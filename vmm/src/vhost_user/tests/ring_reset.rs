//! A guest that resets single rings (`VIRTIO_F_RING_RESET`): what the back-end hears of it.

use vm_memory::{Bytes, GuestAddress};

use super::script::{
    Backend, GET_VRING_BASE, Offer, SET_VRING_BASE, SET_VRING_ENABLE, SET_VRING_KICK, SET_VRING_NUM, Stage,
};
use super::{Guest, SOON, connected, drive, features};
use crate::vhost_user::VhostUserNet;
use crate::virtio::device::{ActiveQueue, VirtioDevice};

fn running(stage: &Stage) -> (VhostUserNet, Guest, Backend) {
    let (mut nic, backend) = connected(stage, Offer::default());
    let mut guest = Guest::new(5);
    assert_ne!(drive(&mut guest, &mut nic) & features::RING_RESET, 0);
    for _ in 0..4 {
        backend.wait_for(SET_VRING_ENABLE);
    }
    (nic, guest, backend)
}

fn smaller(guest: &mut Guest, index: usize) -> ActiveQueue {
    ActiveQueue {
        size: 8,
        ..guest.queues[index].activate()
    }
}

#[test]
fn one_ring_is_stopped_and_started_and_the_others_run_on() {
    let stage = Stage::new();
    let (mut nic, mut guest, backend) = running(&stage);
    nic.reset_queue(1);
    assert_eq!(backend.wait_for(GET_VRING_BASE).state().0, 1);
    assert_eq!(backend.wait_for(SET_VRING_ENABLE).state(), (1, 0));
    nic.start_queue(smaller(&mut guest, 1)).unwrap();
    assert_eq!(backend.wait_for(SET_VRING_NUM).state(), (1, 8));
    assert_eq!(backend.wait_for(SET_VRING_BASE).state(), (1, 0));
    assert_eq!(backend.wait_for(SET_VRING_ENABLE).state(), (1, 1));
    assert_eq!(backend.wait_for(SET_VRING_KICK).fds.len(), 1);
    assert!(nic.monitor().status().link_up);
    drop(nic);
    let stopped = backend.until_end();
    let stopped = stopped.iter().filter(|m| m.code == GET_VRING_BASE).count();
    assert_eq!(stopped, 4, "each of them once more");
}

#[test]
fn a_back_end_that_comes_later_has_the_rings_that_there_are() {
    let stage = Stage::new();
    let (mut nic, mut guest, backend) = running(&stage);
    nic.reset_queue(0);
    backend.kill();
    assert!(nic.monitor().wait_for(SOON, |s| !s.connected));
    let backend = stage.good();
    assert_eq!(backend.wait_for(SET_VRING_NUM).state().0, 1, "not the first ring");
    for index in 1..4 {
        assert_eq!(backend.wait_for(SET_VRING_ENABLE).state().0, index);
    }
    nic.start_queue(smaller(&mut guest, 0)).unwrap();
    assert_eq!(backend.wait_for(SET_VRING_NUM).state(), (0, 8));
    assert_eq!(backend.wait_for(SET_VRING_ENABLE).state(), (0, 1));
}

#[test]
fn the_control_queue_starts_anew() {
    let stage = Stage::new();
    let (mut nic, mut guest, backend) = running(&stage);
    let at = guest.queues[4].buffer();
    let mem = guest.ram.mem.clone();
    nic.reset_queue(4);
    for pairs in [2_u8, 1] {
        nic.start_queue(guest.queues[4].activate()).unwrap();
        mem.write_slice(&[4, 0, pairs, 0, 0xee], GuestAddress(at))
            .unwrap();
        guest.queues[4].post(&[(at, 4, false), (at + 4, 1, true)]);
        assert_eq!(guest.queues[4].wait_used(1), (0, 1));
        assert_eq!(
            backend.wait_for(SET_VRING_ENABLE).state(),
            (2, u32::from(pairs == 2))
        );
        backend.wait_for(SET_VRING_ENABLE);
        nic.reset_queue(4);
    }
}
