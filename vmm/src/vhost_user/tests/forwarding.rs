//! A back-end that serves the guest's control queue itself.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::script::{
    Act, GET_VRING_BASE, Offer, SET_BACKEND_REQ_FD, SET_CONFIG, SET_VRING_BASE, SET_VRING_ENABLE,
    SET_VRING_NUM, Stage,
};
use super::{Guest, SOON, connected, drive, features, link_up, wait_for};
use crate::vhost_user::VhostUserNet;
use crate::virtio::device::VirtioDevice;

fn offer(queues: u64) -> Offer {
    let mut offer = Offer::default();
    offer.features |= features::CONTROL | features::CTRL_VQ | features::STATUS;
    offer.queues = queues;
    offer.link = Some(Arc::new(AtomicBool::new(true)));
    offer
}

#[test]
fn the_control_queue_is_handed_over_behind_all_pairs_of_the_back_end() {
    for queues in [5, 9] {
        let stage = Stage::new();
        let (mut nic, backend) = connected(&stage, offer(queues));
        let mut guest = Guest::new(5);
        let acked = drive(&mut guest, &mut nic);
        assert_eq!(acked & features::CONTROL, features::CONTROL);
        let message = backend.wait_for(SET_CONFIG);
        assert_eq!(
            message.body[..8],
            [0, 0, 0, 0, 6, 0, 0, 0],
            "the address, first of all"
        );
        assert_eq!(message.body[12..], [2, 0, 0, 0, 0, 1]);
        let control = u32::try_from(queues - 1).unwrap();
        let indices = [0, 1, 2, 3, control];
        for index in indices {
            assert_eq!(backend.wait_for(SET_VRING_NUM).state().0, index);
        }
        for index in indices {
            let told = backend.wait_for(SET_VRING_ENABLE).state();
            assert_eq!(
                told,
                (index, 1),
                "which pairs are in use is the back-end's to know"
            );
        }
        // It is given back, and started anew, like any other.
        nic.reset_queue(4);
        assert_eq!(backend.wait_for(GET_VRING_BASE).state().0, control);
        nic.start_queue(guest.queues[4].activate()).unwrap();
        assert_eq!(backend.wait_for(SET_VRING_NUM).state().0, control);
        assert_eq!(backend.wait_for(SET_VRING_ENABLE).state(), (control, 1));
        nic.reset();
        for index in indices {
            assert_eq!(backend.wait_for(GET_VRING_BASE).state().0, index);
        }
    }
}

#[test]
fn a_back_end_that_only_offers_some_of_it_leaves_the_control_queue_to_us() {
    // DPDK counts pairs where others count queues, and offers a control queue and its receive modes.
    for (bits, queues) in [
        (features::CTRL_VQ | features::CTRL_RX, 5),
        (features::CONTROL | features::CTRL_VQ, 4),
    ] {
        let stage = Stage::new();
        let offer = Offer {
            features: Offer::default().features | bits,
            queues,
            ..Offer::default()
        };
        let (nic, _backend) = connected(&stage, offer);
        assert_eq!(nic.features() & features::CONTROL, features::GUEST_ANNOUNCE);
    }
}

#[test]
fn what_receive_side_scaling_can_do_is_the_back_ends_to_say() {
    let stage = Stage::new();
    let mut offer = offer(5);
    // Asked for twelve octets from the twelfth on, it answers with these.
    offer.config = [0, 0, 0, 0, 0, 40, 0, 0, 0x3f, 0, 0, 0];
    let (nic, _backend) = connected(&stage, offer);
    let mut bytes = [0; 7];
    nic.read_config(17, &mut bytes);
    assert_eq!(bytes[0], 40);
    assert_eq!(bytes[3], 0x3f);
}

#[test]
fn the_next_back_end_has_to_serve_it_too() {
    let stage = Stage::new();
    let (mut nic, backend) = connected(&stage, offer(5));
    let mut guest = Guest::new(5);
    drive(&mut guest, &mut nic);
    for _ in 0..5 {
        backend.wait_for(SET_VRING_ENABLE);
    }
    guest.queues[4].set_used_index(3);
    backend.kill();
    let poor = stage.good();
    let monitor = nic.monitor();
    let says =
        |what: &str| monitor.wait_for(SOON, |s| s.last_error.as_ref().is_some_and(|e| e.contains(what)));
    assert!(says("CTRL_VQ"));
    assert!(!link_up(&nic));
    poor.kill();
    let backend = stage.play(offer(5), |_, _| Act::Answer);
    for base in [(0, 0), (1, 0), (2, 0), (3, 0), (4, 3)] {
        assert_eq!(
            backend.wait_for(SET_VRING_BASE).state(),
            base,
            "and goes on with it"
        );
    }
    assert!(monitor.wait_for(SOON, |s| s.link_up));
}

#[test]
fn the_back_end_asks_for_announcements() {
    let stage = Stage::new();
    let announce = Arc::new(AtomicBool::new(false));
    let mut offer = offer(5);
    offer.announce = Some(Arc::clone(&announce));
    let (mut nic, backend) = connected(&stage, offer);
    let mut channel = backend
        .wait_for(SET_BACKEND_REQ_FD)
        .fds
        .pop()
        .map(UnixStream::from)
        .unwrap();
    let mut guest = Guest::new(5);
    drive(&mut guest, &mut nic);
    assert!(nic.monitor().wait_for(SOON, |s| s.link_up));
    let asked = |nic: &VhostUserNet| {
        let mut status = [0; 2];
        nic.read_config(6, &mut status);
        status[0] & 2 != 0
    };
    for state in [true, false] {
        announce.store(state, Ordering::Release);
        channel.write_all(&[2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        while asked(&nic) != state {
            wait_for(&guest.config_interrupt);
        }
    }
}
