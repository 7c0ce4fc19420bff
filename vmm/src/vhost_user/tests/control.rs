//! The control queue through its ring: what the back-end hears of it, and what a hostile guest gets.

use vm_memory::{Bytes, GuestAddress};

use super::script::{Act, Backend, GET_FEATURES, Offer, SET_VRING_ENABLE, Stage};
use super::{Guest, SOON, connected, drive, wait_for};
use crate::vhost_user::VhostUserNet;
use crate::virtio::device::VirtioDevice;
use crate::virtio::test_driver::RING_SIZE;

const CONTROL: usize = 4;
const OK: u8 = 0;
const ERR: u8 = 1;
const UNTOUCHED: u8 = 0xee;

struct Setup {
    nic: VhostUserNet,
    guest: Guest,
    backend: Backend,
    stage: Stage,
    done: u16,
}

impl Setup {
    fn new() -> Self {
        let stage = Stage::new();
        let (mut nic, backend) = connected(&stage, Offer::default());
        let mut guest = Guest::new(5);
        drive(&mut guest, &mut nic);
        for _ in 0..4 {
            backend.wait_for(SET_VRING_ENABLE);
        }
        Self {
            nic,
            guest,
            backend,
            stage,
            done: 0,
        }
    }

    /// Waits until the guest is told that it broke its queue; its frames pass all the same.
    fn needs_reset(&self) {
        while !self.guest.events.needs_reset() {
            wait_for(&self.guest.config_interrupt);
        }
        assert!(self.nic.monitor().status().link_up);
    }

    /// Where a request is written to.
    fn buffer(&self) -> u64 {
        self.guest.queues[CONTROL].buffer()
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.guest.ram.mem.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    /// Posts a chain and returns the length used and the byte at the place for the answer.
    fn post(&mut self, chain: &[(u64, u32, bool)]) -> (u32, u8) {
        self.write(self.buffer() + 0x100, &[UNTOUCHED]);
        self.guest.queues[CONTROL].post(chain);
        self.done += 1;
        let (_, len) = self.guest.queues[CONTROL].wait_used(self.done);
        (
            len,
            self.guest
                .ram
                .mem
                .read_obj(GuestAddress(self.buffer() + 0x100))
                .unwrap(),
        )
    }

    /// A request as Linux makes it: header, data, answer.
    fn request(&mut self, class: u8, command: u8, data: &[u8]) -> u8 {
        let at = self.buffer();
        self.write(at, &[class, command]);
        self.write(at + 2, data);
        let len = u32::try_from(data.len()).unwrap();
        let (used, ack) = self.post(&[(at, 2, false), (at + 2, len, false), (at + 0x100, 1, true)]);
        assert_eq!(used, 1);
        ack
    }
}

#[test]
fn the_guests_choice_of_pairs_reaches_the_back_end() {
    let mut setup = Setup::new();
    assert_eq!(setup.request(4, 0, &[2, 0]), OK);
    for index in [2, 3] {
        assert_eq!(setup.backend.wait_for(SET_VRING_ENABLE).state(), (index, 1));
    }
    assert_eq!(setup.nic.monitor().status().queue_pairs, 2);
    assert_eq!(setup.request(4, 0, &[1, 0]), OK);
    for index in [2, 3] {
        assert_eq!(setup.backend.wait_for(SET_VRING_ENABLE).state(), (index, 0));
    }
    for data in [[0, 0], [3, 0], [2, 1]] {
        assert_eq!(setup.request(4, 0, &data), ERR);
    }
    assert_eq!(setup.nic.monitor().status().queue_pairs, 1);
}

#[test]
fn the_choice_outlives_the_back_end_but_not_the_driver() {
    let mut setup = Setup::new();
    assert_eq!(setup.request(4, 0, &[2, 0]), OK);
    setup.backend.kill();
    assert!(setup.nic.monitor().wait_for(SOON, |s| !s.connected));
    setup.backend = setup.stage.good();
    for index in 0..4 {
        assert_eq!(setup.backend.wait_for(SET_VRING_ENABLE).state(), (index, 1));
    }
    setup.nic.reset();
    drive(&mut setup.guest, &mut setup.nic);
    let enabled = |backend: &Backend| loop {
        // Rings are disabled one by one as they stop, before they start anew.
        let (index, on) = backend.wait_for(SET_VRING_ENABLE).state();
        if index == 0 && on == 1 {
            break;
        }
    };
    enabled(&setup.backend);
    for state in [(1, 1), (2, 0), (3, 0)] {
        assert_eq!(setup.backend.wait_for(SET_VRING_ENABLE).state(), state);
    }
}

#[test]
fn the_choice_is_taken_while_the_back_end_is_away() {
    let mut setup = Setup::new();
    setup.backend.kill();
    assert!(setup.nic.monitor().wait_for(SOON, |s| !s.connected));
    // One that hangs is as good as none.
    let hanging = setup.stage.play(Offer::default(), |_, code| {
        if code == GET_FEATURES {
            Act::FallSilent
        } else {
            Act::Answer
        }
    });
    hanging.wait_for(GET_FEATURES);
    let at = setup.guest.queues[CONTROL].buffer();
    setup
        .guest
        .ram
        .mem
        .write_slice(&[4, 0, 2, 0], GuestAddress(at))
        .unwrap();
    setup.guest.queues[CONTROL].post(&[(at, 4, false), (at + 0x100, 1, true)]);
    setup.guest.queues[CONTROL].wait_used(1);
    assert_eq!(
        setup
            .guest
            .ram
            .mem
            .read_obj::<u8>(GuestAddress(at + 0x100))
            .unwrap(),
        OK
    );
    hanging.kill();
    let backend = setup.stage.good();
    for index in 0..4 {
        assert_eq!(backend.wait_for(SET_VRING_ENABLE).state(), (index, 1));
    }
}

#[test]
fn unknown_and_short_requests_are_refused() {
    let mut setup = Setup::new();
    for (class, command) in [
        (0, 0),
        (1, 1),
        (2, 0),
        (4, 1),
        (5, 0),
        (6, 0),
        (77, 3),
        (255, 255),
    ] {
        assert_eq!(
            setup.request(class, command, &[1, 0, 0, 0, 0, 0, 0, 0]),
            ERR,
            "{class}.{command}"
        );
    }
    assert_eq!(setup.request(4, 0, &[1]), ERR);
    let at = setup.buffer();
    setup.write(at, &[4]);
    assert_eq!(setup.post(&[(at, 1, false), (at + 0x100, 1, true)]), (1, ERR));
    assert_eq!(setup.post(&[(at + 0x100, 1, true)]), (1, ERR));
    assert_eq!(setup.request(4, 0, &[1, 0]), OK);
}

#[test]
fn any_framing_will_do() {
    let mut setup = Setup::new();
    let at = setup.buffer();
    setup.write(at, &[4, 0, 2, 0]);
    let bytes = [
        (at, 1, false),
        (at + 1, 1, false),
        (at + 2, 0, false),
        (at + 2, 1, false),
        (at + 3, 1, false),
    ];
    let mut chain = bytes.to_vec();
    chain.extend([(at + 0x100, 0, true), (at + 0x100, 1, true)]);
    assert_eq!(setup.post(&chain), (1, OK));
    assert_eq!(setup.nic.monitor().status().queue_pairs, 2);
}

#[test]
fn a_request_without_room_for_an_answer_is_given_back_undone() {
    let mut setup = Setup::new();
    let at = setup.buffer();
    setup.write(at, &[4, 0, 2, 0]);
    assert_eq!(setup.post(&[(at, 4, false)]), (0, UNTOUCHED));
    assert_eq!(
        setup.post(&[(at, 4, false), (at + 0x100, 0, true)]),
        (0, UNTOUCHED)
    );
    assert_eq!(setup.nic.monitor().status().queue_pairs, 1);
    // An answer, or a request, that is not in memory.
    assert_eq!(setup.post(&[(at, 4, false), (1 << 40, 1, true)]), (0, UNTOUCHED));
    assert_eq!(
        setup.post(&[(u64::MAX - 1, 4, false), (at + 0x100, 1, true)]).0,
        0
    );
    assert_eq!(setup.request(4, 0, &[1, 0]), OK);
}

#[test]
fn a_chain_that_loops_stops_the_control_queue_only() {
    let mut setup = Setup::new();
    let at = setup.buffer();
    setup.write(at, &[4, 0, 2, 0]);
    setup.guest.queues[CONTROL].loop_at(0, at, 4);
    setup.guest.queues[CONTROL].make_available(0);
    setup.needs_reset();
}

#[test]
fn a_broken_ring_stops_the_control_queue_only() {
    for index in [RING_SIZE + 1, 0x8000, 0xffff] {
        let mut setup = Setup::new();
        setup.guest.queues[CONTROL].set_avail_index(index);
        setup.needs_reset();
        // A reset heals it.
        setup.nic.reset();
        setup.guest.events.reset();
        drive(&mut setup.guest, &mut setup.nic);
        setup.done = 0;
        assert_eq!(setup.request(4, 0, &[2, 0]), OK);
    }
}
