//! Back-ends that go away, at any moment, and come back, or something else does.

use std::time::{Duration, Instant};

use super::script::{
    Act, Backend, Offer, SET_FEATURES, SET_MEM_TABLE, SET_VRING_BASE, SET_VRING_CALL, SET_VRING_ENABLE,
    SET_VRING_KICK, Stage,
};
use super::{Guest, SOON, drive, link_up, options, patient, wait_for};
use crate::vhost_user::{NicOptions, Timeouts, VhostUserNet, features};
use crate::virtio::device::VirtioDevice;

/// A NIC with a running guest, and the back-end that serves it.
fn running(stage: &Stage, timeouts: Timeouts) -> (VhostUserNet, Guest, Backend) {
    let options = NicOptions {
        timeouts,
        ..options(&stage.path)
    };
    let (mut nic, backend) = std::thread::scope(|scope| {
        let nic = scope.spawn(|| VhostUserNet::new(options).unwrap());
        let backend = stage.good();
        (nic.join().unwrap(), backend)
    });
    let mut guest = Guest::new(5);
    drive(&mut guest, &mut nic);
    for _ in 0..4 {
        backend.wait_for(SET_VRING_ENABLE);
    }
    assert!(nic.monitor().wait_for(SOON, |s| s.link_up));
    (nic, guest, backend)
}

/// Waits until the guest has been told of a link state.
fn link_becomes(nic: &VhostUserNet, guest: &Guest, up: bool) {
    while link_up(nic) != up {
        wait_for(&guest.config_interrupt);
    }
}

#[test]
fn the_guest_sees_the_link_go_and_return() {
    let stage = Stage::new();
    let (nic, guest, backend) = running(&stage, patient());
    let generation = guest.events.generation();
    backend.kill();
    link_becomes(&nic, &guest, false);
    assert_ne!(guest.events.generation(), generation);
    assert!(nic.monitor().status().last_error.is_some());

    let (stage, ()) = stage.closed_while(|_| assert!(!link_up(&nic)));
    let backend = stage.good();
    link_becomes(&nic, &guest, true);
    backend.wait_for(SET_MEM_TABLE);
    let status = nic.monitor().status();
    assert_eq!(
        (status.connected, status.disconnects, status.last_error),
        (true, 1, None)
    );
}

#[test]
fn rings_go_on_at_the_first_buffer_that_was_not_completed() {
    let stage = Stage::new();
    let (nic, guest, backend) = running(&stage, patient());
    // Buffers posted and kicked for; the back-end dies having completed some of them.
    for (queue, used) in guest.queues.iter().zip([7_u16, 0, 3, 0xfffe]) {
        let _ = queue.kick.read();
        let _ = queue.interrupt.read();
        queue.set_used_index(used);
    }
    backend.kill();
    let backend = stage.good();
    for (index, base) in [(0, 7), (1, 0), (2, 3), (3, 0xfffe)] {
        assert_eq!(backend.wait_for(SET_VRING_BASE).state(), (index, base));
    }
    link_becomes(&nic, &guest, true);
    // No notification of either side is lost with the back-end that took it.
    for queue in &guest.queues[..4] {
        wait_for(&queue.kick);
        wait_for(&queue.interrupt);
    }
}

#[test]
fn it_may_die_at_any_message() {
    let stage = Stage::new();
    let (nic, guest, backend) = running(&stage, patient());
    backend.kill();
    let backend = stage.good();
    link_becomes(&nic, &guest, true);
    let messages = backend.kill().len();
    assert!(messages > 30, "only {messages} messages");
    for at in 0..messages {
        let act = move |n, _| if n == at { Act::Die } else { Act::Answer };
        assert_eq!(stage.play(Offer::default(), act).until_end().len(), at + 1);
    }
    let _backend = stage.good();
    link_becomes(&nic, &guest, true);
}

#[test]
fn it_may_fall_silent_at_any_message() {
    let stage = Stage::new();
    let short = Duration::from_millis(30);
    let timeouts = Timeouts {
        negotiate: short,
        start: short,
        change: short,
        ..patient()
    };
    let (nic, guest, backend) = running(&stage, timeouts);
    backend.kill();
    // Every kind of message once; those of the second ring are those of the first.
    for at in 0..20 {
        let act = move |n: usize, _| if n >= at { Act::FallSilent } else { Act::Answer };
        stage.play(Offer::default(), act).until_end();
    }
    let _backend = stage.good();
    link_becomes(&nic, &guest, true);
}

#[test]
fn it_may_refuse_any_message() {
    let stage = Stage::new();
    let (nic, guest, backend) = running(&stage, patient());
    backend.kill();
    for code in [
        SET_FEATURES,
        SET_MEM_TABLE,
        SET_VRING_CALL,
        SET_VRING_KICK,
        SET_VRING_ENABLE,
    ] {
        let act = move |_, c| if c == code { Act::Refuse } else { Act::Answer };
        stage.play(Offer::default(), act).until_end();
        assert!(!link_up(&nic));
    }
    let _backend = stage.good();
    link_becomes(&nic, &guest, true);
}

#[test]
fn a_back_end_without_the_guests_features_is_not_used() {
    let stage = Stage::new();
    let (mut nic, mut guest, backend) = running(&stage, patient());
    backend.kill();
    let mut poor = Offer::default();
    poor.features &= !(features::MRG_RXBUF | features::EVENT_IDX);
    let backend = stage.play(poor, |_, _| Act::Answer);
    let monitor = nic.monitor();
    let says =
        |what: &str| monitor.wait_for(SOON, |s| s.last_error.as_ref().is_some_and(|e| e.contains(what)));
    assert!(says("MRG_RXBUF, EVENT_IDX"));
    assert!(!link_up(&nic));

    // A guest that starts anew takes what there is.
    nic.reset();
    assert!(link_up(&nic));
    let features = drive(&mut guest, &mut nic);
    assert_eq!(features & (features::MRG_RXBUF | features::EVENT_IDX), 0);
    backend.wait_for(SET_VRING_KICK);
    assert!(monitor.wait_for(SOON, |s| s.link_up));

    // And one pair is not enough for a guest that was told of two.
    backend.kill();
    let offer = Offer {
        queues: 2,
        ..Offer::default()
    };
    let backend = stage.play(offer, |_, _| Act::Answer);
    assert!(says("in use by the guest: MQ"));
    backend.kill();
    let _backend = stage.good();
    link_becomes(&nic, &guest, true);
}

#[test]
fn a_guest_may_start_before_any_back_end() {
    let (stage, mut nic) = Stage::new().closed_while(|path| {
        let options = NicOptions {
            wait: Duration::ZERO,
            ..options(path)
        };
        VhostUserNet::new(options).unwrap()
    });
    let mut guest = Guest::new(5);
    assert!(!link_up(&nic));
    drive(&mut guest, &mut nic);
    guest.queues[0].kick.write(1).unwrap();
    let backend = stage.good();
    link_becomes(&nic, &guest, true);
    // Nobody has served these rings: they begin at the beginning.
    assert_eq!(backend.wait_for(SET_VRING_BASE).state(), (0, 0));
}

#[test]
fn the_guest_is_asked_to_announce_itself_when_the_link_returns() {
    let stage = Stage::new();
    let (nic, guest, backend) = running(&stage, patient());
    backend.kill();
    let _backend = stage.good();
    let announce = || {
        let mut status = [0; 2];
        nic.read_config(6, &mut status);
        status[0] & 2 != 0
    };
    while !announce() {
        wait_for(&guest.config_interrupt);
    }
    assert!(link_up(&nic));
}

#[test]
fn a_hundred_reconnects_leak_nothing() {
    let stage = Stage::new();
    let (nic, guest, mut backend) = running(&stage, patient());
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut before = 0;
    for n in 0..100 {
        backend.kill();
        backend = stage.play(Offer::default(), |_, _| Act::Answer);
        link_becomes(&nic, &guest, true);
        for _ in 0..4 {
            drop(backend.wait_for(SET_VRING_ENABLE));
        }
        if n == 0 {
            before = open();
        }
    }
    // The NIC drops its end of a channel that the back-end has dropped when it gets round to it.
    let end = Instant::now() + SOON;
    while open() > before {
        assert!(
            Instant::now() < end,
            "{before} descriptors before, {} after",
            open()
        );
        std::thread::yield_now();
    }
}
