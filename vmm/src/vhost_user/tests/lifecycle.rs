//! Negotiation, start, stop, and what the guest sees of them.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::script::{
    ADD_MEM_REG, Act, Backend, GET_VRING_BASE, Offer, REM_MEM_REG, SET_BACKEND_REQ_FD, SET_FEATURES,
    SET_MEM_TABLE, SET_OWNER, SET_VRING_BASE, SET_VRING_CALL, SET_VRING_ENABLE, SET_VRING_ERR,
    SET_VRING_KICK, Stage,
};
use super::{Guest, SOON, connected, drive, link_up, options, patient, wait_for};
use crate::memory::{GuestRam, MemoryObserver, RamNode};
use crate::vhost_user::{NicOptions, SocketMode, Timeouts, VhostUserNet, features};
use crate::virtio::device::{Activation, ActiveQueue, VirtioDevice};

#[test]
fn the_guest_is_offered_what_both_sides_have() {
    let stage = Stage::new();
    let config = [2, 0, 0, 0, 0, 7, 1, 0, 9, 0, 0xdc, 5];
    let features = features::VERSION_1
        | features::MRG_RXBUF
        | features::MTU
        | features::GUEST_TSO4
        | features::GUEST_USO4
        | features::CSUM
        | features::HOST_USO
        | features::IN_ORDER
        | features::RING_RESET
        | features::PROTOCOL_FEATURES
        | 1 << 34;
    let (nic, _backend) = connected(
        &stage,
        Offer {
            features,
            queues: 2,
            config,
            link: None,
            announce: None,
        },
    );
    // No packed ring, for we have none; no TSO or USO without the checksum that it stands on; no MQ on one pair.
    let expected = features::VERSION_1
        | features::MRG_RXBUF
        | features::MTU
        | features::MAC
        | features::CSUM
        | features::HOST_USO
        | features::IN_ORDER
        | features::RING_RESET
        | features::STATUS
        | features::CTRL_VQ
        | features::GUEST_ANNOUNCE;
    assert_eq!(nic.features(), expected);
    let mut bytes = [0; 12];
    nic.read_config(0, &mut bytes);
    assert_eq!(
        bytes,
        [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0xdc, 5],
        "our MAC, link up, one pair, the back-end's MTU"
    );
}

#[test]
fn the_back_ends_link_state_is_the_guests() {
    let stage = Stage::new();
    let mut offer = Offer::default();
    offer.features |= features::STATUS;
    let (nic, _backend) = connected(&stage, offer);
    assert!(!link_up(&nic));
    assert!(nic.monitor().status().connected);
}

#[test]
fn a_change_of_the_back_ends_link_state_reaches_the_guest() {
    let stage = Stage::new();
    let up = Arc::new(AtomicBool::new(true));
    let shown = Arc::clone(&up);
    let mut offer = Offer {
        link: Some(shown),
        ..Offer::default()
    };
    offer.features |= features::STATUS;
    let (mut nic, backend) = connected(&stage, offer);
    let mut channel = backend
        .wait_for(SET_BACKEND_REQ_FD)
        .fds
        .pop()
        .map(UnixStream::from)
        .unwrap();
    let mut guest = Guest::new(5);
    drive(&mut guest, &mut nic);
    for state in [false, true] {
        up.store(state, Ordering::Release);
        channel.write_all(&[2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        while link_up(&nic) != state {
            wait_for(&guest.config_interrupt);
        }
    }
    // A back-end that cannot say so, or does not, is asked.
    drop(channel);
    backend.kill();
    up.store(false, Ordering::Release);
    let mut offer = Offer {
        link: Some(Arc::clone(&up)),
        ..Offer::default()
    };
    offer.features |= features::STATUS;
    let _backend = stage.play(offer, |_, _| Act::Answer);
    assert!(nic.monitor().wait_for(SOON, |s| s.connected && !s.link_up));
    up.store(true, Ordering::Release);
    while !link_up(&nic) {
        wait_for(&guest.config_interrupt);
    }
}

#[test]
fn rings_are_handed_over_in_order_and_taken_back() {
    let stage = Stage::new();
    let (mut nic, backend) = connected(&stage, Offer::default());
    let mut guest = Guest::new(5);
    let features = drive(&mut guest, &mut nic);
    let told = backend.wait_for(SET_FEATURES).value();
    assert_eq!(
        told,
        (features & features::BACKEND) | features::PROTOCOL_FEATURES,
        "no bits of our own"
    );
    let table = backend.wait_for(SET_MEM_TABLE);
    assert_eq!(table.fds.len(), 1);
    for index in 0..4 {
        assert_eq!(backend.wait_for(SET_VRING_BASE).state(), (index, 0));
    }
    // The guest starts with one pair, and no ring runs before all are enabled that shall be.
    for index in 0..4 {
        assert_eq!(
            backend.wait_for(SET_VRING_ENABLE).state(),
            (index, u32::from(index < 2))
        );
    }
    for _ in 0..4 {
        backend.wait_for(SET_VRING_KICK);
    }
    nic.reset();
    for index in 0..4 {
        assert_eq!(backend.wait_for(GET_VRING_BASE).state().0, index);
    }
    // A second driver: the same connection, no new memory, rings from the start.
    drive(&mut guest, &mut nic);
    backend.wait_for(SET_FEATURES);
    for index in 0..4 {
        assert_eq!(backend.wait_for(SET_VRING_BASE).state(), (index, 0));
    }
    drop(nic);
    let rest = backend.until_end();
    assert!(rest.iter().all(|m| m.code != SET_MEM_TABLE));
    assert_eq!(
        rest.iter().filter(|m| m.code == GET_VRING_BASE).count(),
        4,
        "stopped before it was left"
    );
}

#[test]
fn every_node_of_the_guest_is_a_file_of_its_own_to_the_back_end() {
    let stage = Stage::new();
    let (mut nic, backend) = connected(&stage, Offer::default());
    let node = RamNode {
        size: 2 << 20,
        host_node: None,
    };
    let ram = GuestRam::with_nodes(&[node, node], false).unwrap();
    let features = nic.features() | features::VERSION_1;
    assert!(nic.ack_features(features));
    let activation = Activation {
        mem: ram.clone(),
        ..Guest::new(5).activation(features)
    };
    nic.activate(activation).unwrap();
    let table = backend.wait_for(SET_MEM_TABLE);
    let inode = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
    let told: Vec<_> = table.fds.iter().map(|fd| inode(fd.as_fd())).collect();
    let ours: Vec<_> = ram.regions.iter().map(|region| inode(region.fd())).collect();
    assert_eq!(told, ours);
    assert_ne!(told[0], told[1]);
}

#[test]
fn a_paused_nic_has_its_rings_back_and_goes_on_where_it_was() {
    let stage = Stage::new();
    let (mut nic, backend) = connected(&stage, Offer::default());
    let mut guest = Guest::new(5);
    drive(&mut guest, &mut nic);
    for index in 0..4 {
        assert_eq!(backend.wait_for(SET_VRING_ENABLE).state().0, index);
    }
    nic.pause();
    for index in 0..4 {
        assert_eq!(backend.wait_for(GET_VRING_BASE).state().0, index);
    }
    guest.queues[1].set_used_index(3);
    // The control queue is our own: it keeps still as well.
    let control = guest.queues[4].buffer();
    guest
        .ram
        .mem
        .write_slice(&[4, 0, 2, 0, 0xff], GuestAddress(control))
        .unwrap();
    guest.queues[4].post(&[(control, 4, false), (control + 4, 1, true)]);
    // A back-end that comes in the meantime does not get the rings either.
    backend.kill();
    assert!(nic.monitor().wait_for(SOON, |s| !s.connected));
    let backend = stage.play(Offer::default(), |_, _| Act::Answer);
    assert!(nic.monitor().wait_for(SOON, |s| s.connected));
    assert_eq!(guest.queues[4].used_index(), 0);
    nic.resume();
    for (index, base) in [(0, 0), (1, 3), (2, 0), (3, 0)] {
        assert_eq!(backend.wait_for(SET_VRING_BASE).state(), (index, base));
    }
    guest.queues[4].wait_used(1);
    assert!(nic.monitor().wait_for(SOON, |s| s.link_up && s.queue_pairs == 2));
}

#[test]
fn a_driver_without_mq_has_its_control_queue_behind_one_pair() {
    let stage = Stage::new();
    let (mut nic, backend) = connected(&stage, Offer::default());
    let mut guest = Guest::new(3);
    let features = nic.features() & !features::MQ;
    assert!(nic.ack_features(features));
    nic.activate(guest.activation(features)).unwrap();
    for index in 0..2 {
        assert_eq!(backend.wait_for(SET_VRING_ENABLE).state(), (index, 1));
    }
    let queue = &mut guest.queues[2];
    let buffer = queue.buffer();
    guest
        .ram
        .mem
        .write_slice(&[4, 0, 1, 0, 0xff], GuestAddress(buffer))
        .unwrap();
    queue.post(&[(buffer, 4, false), (buffer + 4, 1, true)]);
    queue.wait_used(1);
    assert_eq!(
        guest.ram.mem.read_obj::<u8>(GuestAddress(buffer + 4)).unwrap(),
        1,
        "no MQ, no pairs to set"
    );
}

#[test]
fn features_that_contradict_each_other_are_refused() {
    let stage = Stage::new();
    let (mut nic, _backend) = connected(&stage, Offer::default());
    assert!(!nic.ack_features(features::VERSION_1 | features::MQ));
    assert!(nic.ack_features(features::VERSION_1));
}

#[test]
fn a_nic_may_listen_for_its_back_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nic.sock");
    let options = NicOptions {
        mode: SocketMode::Server,
        wait: Duration::ZERO,
        ..NicOptions::new("net0", &path)
    };
    let nic = VhostUserNet::new(options).unwrap();
    assert!(!link_up(&nic));
    for _ in 0..2 {
        let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let backend = Backend::on(stream, Offer::default(), |_, _| Act::Answer);
        backend.wait_for(SET_OWNER);
        assert!(nic.monitor().wait_for(SOON, |s| s.link_up));
        backend.kill();
        assert!(nic.monitor().wait_for(SOON, |s| !s.link_up && !s.connected));
    }
}

#[test]
fn another_vector_for_a_queue_reaches_the_back_end() {
    let stage = Stage::new();
    let (mut nic, backend) = connected(&stage, Offer::default());
    let mut guest = Guest::new(5);
    drive(&mut guest, &mut nic);
    for _ in 0..4 {
        backend.wait_for(SET_VRING_ENABLE);
    }
    let new = EventFd::new(EFD_NONBLOCK).unwrap();
    guest.queues[1].vector.set(Some(new.try_clone().unwrap()));
    nic.queue_irq_changed(1);
    let mut message = backend.wait_for(SET_VRING_CALL);
    assert_eq!(message.body[0], 1);
    // What was underway to the old vector is not lost.
    wait_for(&new);
    rustix::io::write(message.fds.pop().unwrap(), &1_u64.to_ne_bytes()).unwrap();
    wait_for(&new);
}

#[test]
fn a_ring_that_the_back_end_finds_broken_asks_for_a_reset() {
    let stage = Stage::new();
    let (mut nic, backend) = connected(&stage, Offer::default());
    let mut guest = Guest::new(5);
    drive(&mut guest, &mut nic);
    let mut message = backend.wait_for(SET_VRING_ERR);
    rustix::io::write(message.fds.pop().unwrap(), &1_u64.to_ne_bytes()).unwrap();
    while !guest.events.needs_reset() {
        wait_for(&guest.config_interrupt);
    }
}

#[test]
fn a_ring_outside_of_memory_is_refused() {
    let stage = Stage::new();
    let (mut nic, _backend) = connected(&stage, Offer::default());
    let mut guest = Guest::new(5);
    let features = nic.features();
    for break_it in [
        |queue: &mut ActiveQueue| queue.used = u64::MAX - 2,
        |queue: &mut ActiveQueue| queue.desc = (4 << 20) - 16,
        |queue: &mut ActiveQueue| queue.avail = 1 << 40,
    ] {
        let mut activation = guest.activation(features);
        break_it(&mut activation.queues[1]);
        assert!(nic.activate(activation).is_err());
        nic.reset();
    }
    drive(&mut guest, &mut nic);
    assert!(nic.monitor().wait_for(SOON, |s| s.link_up));
}

#[test]
fn a_back_end_that_never_stops_its_rings_does_not_hold_the_guest() {
    let stage = Stage::new();
    let short = Duration::from_millis(50);
    let timeouts = Timeouts {
        change: short,
        ..patient()
    };
    let options = NicOptions {
        timeouts,
        ..options(&stage.path)
    };
    let (mut nic, backend) = std::thread::scope(|scope| {
        let nic = scope.spawn(|| VhostUserNet::new(options).unwrap());
        let backend = stage.play(Offer::default(), |_, code| match code {
            GET_VRING_BASE => Act::FallSilent,
            _ => Act::Answer,
        });
        (nic.join().unwrap(), backend)
    });
    let mut guest = Guest::new(5);
    drive(&mut guest, &mut nic);
    backend.wait_for(SET_VRING_ENABLE);
    nic.reset();
    assert!(
        nic.monitor().wait_for(SOON, |s| !s.connected),
        "it is taken for gone"
    );
}

#[test]
fn a_back_end_that_hangs_in_the_negotiation_does_not_hold_a_reset() {
    let stage = Stage::new();
    let hour = Duration::from_hours(1);
    let timeouts = Timeouts {
        negotiate: hour,
        ..patient()
    };
    let options = NicOptions {
        timeouts,
        wait: Duration::ZERO,
        ..options(&stage.path)
    };
    let mut nic = VhostUserNet::new(options).unwrap();
    let backend = stage.play(Offer::default(), |_, _| Act::FallSilent);
    backend.wait_for(SET_OWNER);
    let before = Instant::now();
    nic.reset();
    assert!(before.elapsed() < hour);
}

#[test]
fn memory_that_comes_and_goes_is_told_to_the_back_end() {
    let stage = Stage::new();
    let (mut nic, backend) = connected(&stage, Offer::default());
    let memory = nic.memory();
    let mut guest = Guest::new(5);
    // Before a driver runs there is nothing to tell.
    let mut region = guest.ram.regions[0].clone();
    memory.ram_added(&region).unwrap();
    drive(&mut guest, &mut nic);
    assert_eq!(backend.wait_for(SET_MEM_TABLE).fds.len(), 1);
    region.guest_addr = 1 << 32;
    memory.ram_added(&region).unwrap();
    let added = backend.wait_for(ADD_MEM_REG);
    assert_eq!(
        (added.body[8..16].to_vec(), added.fds.len()),
        ((1_u64 << 32).to_le_bytes().to_vec(), 1)
    );
    memory.ram_removed(&region);
    assert_eq!(
        backend.wait_for(REM_MEM_REG).body[8..16],
        (1_u64 << 32).to_le_bytes()
    );
    assert!(nic.monitor().status().link_up);
}
