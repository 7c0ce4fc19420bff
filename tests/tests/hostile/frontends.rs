//! Front-ends that stop talking or listening, vanish, or change everything under load.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use netyard_testkit::endpoint::{Options, region_info};
use netyard_testkit::guest::{Guest, wait_for};
use netyard_testkit::message::message;
use netyard_tests::bin;
use rustix::event::EventfdFlags;
use rustix::fs::OFlags;
use std::fs::File;
use std::os::fd::AsFd;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use virtio::memory::SharedMemory;

use crate::arena::Arena;
use crate::attacker::{Attacker, TX, closed};
use crate::messages::refused;
use crate::{ATTACKER, Case, PEER, frame};

pub(crate) const CASES: [Case; 8] = [
    ("descriptors that are no eventfds", no_eventfds),
    ("a call that is full and blocks", blocking_call),
    (
        "messages that never end, silence, replies that nobody reads",
        unfinished,
    ),
    ("a flood of connections", connections),
    ("front-ends that vanish under load", vanishing),
    ("front-ends that are killed under load", killed),
    ("memory that comes and goes under load", memory_changes),
    ("rings stopped under load are not written", stopped_rings),
];

const GET_FEATURES: u32 = 1;
const SET_VRING_NUM: u32 = 8;

fn no_eventfds(arena: &mut Arena) {
    let (pipe, _end) = rustix::pipe::pipe().expect("a pipe");
    let file = File::open("/dev/zero").expect("a file");
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::empty()).expect("an epoll");
    let memfd = rustix::fs::memfd_create("no", rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
    for fd in [pipe.as_fd(), file.as_fd(), epoll.as_fd(), memfd.as_fd()] {
        for request in [12, 13, 14] {
            refused(arena, &message(request, 1, &[0]), &[fd]);
        }
    }
}

fn blocking_call(arena: &mut Arena) {
    let mut attacker = Attacker::new(&arena.socket);
    let event = rustix::event::eventfd(0, EventfdFlags::empty()).expect("an eventfd");
    let bytes = message(13, 1, &[TX as u64]);
    netyard_testkit::message::send(&attacker.endpoint.stream, &bytes, &[event.as_fd()]).expect("open");
    attacker.round_trip();
    // Full, and made to block again behind the switch's back.
    let _ = rustix::io::read(&event, &mut [0; 8]);
    rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).expect("an empty counter");
    let flags = rustix::fs::fcntl_getfl(&event).expect("an open descriptor");
    rustix::fs::fcntl_setfl(&event, flags - OFlags::NONBLOCK).expect("an open descriptor");
    for _ in 0..200 {
        attacker.transmit();
        attacker.is_given_back();
        arena.peer.expect(&frame(PEER, ATTACKER, 60));
    }
    arena.bystanders.go_on();
}

/// All at once, each on a port of its own: the switch is patient for a while.
fn unfinished(arena: &mut Arena) {
    let beginnings: [&[u8]; 4] = [
        &[],
        &[1, 0, 0, 0, 1, 0],
        &message(SET_VRING_NUM, 1, &[0])[..16],
        &message(SET_VRING_NUM, 1, &[0])[..12],
    ];
    let name = |number: usize| format!("patient{number}");
    let sockets: Vec<PathBuf> = (0..beginnings.len())
        .map(|number| arena.switch.add_port(&name(number), 1))
        .collect();
    let mut streams = Vec::new();
    for (socket, beginning) in sockets.iter().zip(beginnings) {
        let mut stream = UnixStream::connect(socket).expect("a listening port");
        stream.write_all(beginning).expect("an open connection");
        streams.push(stream);
    }
    let deaf = Attacker::prepare(&arena.socket, 0);
    deaf.endpoint
        .stream
        .set_nonblocking(true)
        .expect("an open connection");
    let request = message(GET_FEATURES, 1, &[]);
    // One keeps sending, a byte at a time, and never gets to the end of a message.
    let mut bytes = message(SET_VRING_NUM, 1, &[0]).into_iter().skip(6).take(8);
    wait_for("all to be given up", || {
        if let Some(byte) = bytes.next() {
            let _ = streams[1].write(&[byte]);
        }
        let mut stream = &deaf.endpoint.stream;
        while stream.write(&request).is_ok() {}
        streams.iter().chain([stream]).all(closed)
    });
    for number in 0..beginnings.len() {
        bin::succeed(arena.switch.command().args(["port", "del", "br0", &name(number)]));
    }
}

fn connections(arena: &mut Arena) {
    let mut attacker = Attacker::new(&arena.socket);
    for _ in 0..300 {
        let stream = UnixStream::connect(&arena.socket).expect("a listening port");
        wait_for("it to be turned away", || closed(&stream));
    }
    attacker.transmit();
    attacker.is_given_back();
    arena.peer.expect(&frame(PEER, ATTACKER, 60));
}

fn guest(arena: &Arena) -> Guest {
    Guest::connect(&arena.socket, Options::default())
}

fn vanishing(arena: &mut Arena) {
    for round in 0..25 {
        let mut guest = guest(arena);
        guest.send(0, &frame(PEER, ATTACKER, 60));
        arena.peer.expect(&frame(PEER, ATTACKER, 60));
        for _ in 0..round * 8 {
            guest.send(0, &frame(PEER, ATTACKER, 60));
            arena.peer.send(0, &frame(ATTACKER, PEER, 60));
        }
        drop(guest);
        arena.drain();
        arena.rests();
        arena.drain();
    }
}

/// Each is a process of its own, which sends and receives on two ports as fast as it can when it gets no chance to say goodbye.
fn killed(arena: &mut Arena) {
    let frames = |arena: &Arena| arena.switch.port("victim")["counters"]["rx_frames"].as_u64();
    for ring in ["split", "packed"].repeat(3) {
        let second = arena.switch.add_port("second", 1);
        let before = frames(arena);
        let mut generator = Command::new(bin::path("pktgen"))
            .args([
                "--test",
                "maximum-forwarding-rate",
                "--seconds",
                "60",
                "--ring",
                ring,
                "--socket",
            ])
            .arg(&arena.socket)
            .arg("--socket")
            .arg(&second)
            .spawn()
            .expect("a process");
        wait_for("the front-end's frames", || {
            assert!(
                generator.try_wait().is_ok_and(|end| end.is_none()),
                "it ended early"
            );
            frames(arena) > before.map(|count| count + 1000)
        });
        generator.kill().expect("a process that runs");
        generator.wait().expect("its end");
        arena.bystanders.go_on();
        bin::succeed(arena.switch.command().args(["port", "del", "br0", "second"]));
        arena.rests();
    }
}

fn memory_changes(arena: &mut Arena) {
    let mut guest = guest(arena);
    for round in 0..30 {
        let extra = SharedMemory::new("extra", (1 << 40) + (round << 21), 1 << 21).expect("memory");
        for _ in 0..32 {
            guest.send(0, &frame(PEER, ATTACKER, 60));
        }
        let region = region_info(&extra);
        guest.endpoint.frontend.add_mem_region(&region).expect("open");
        for _ in 0..32 {
            arena.peer.send(0, &frame(ATTACKER, PEER, 60));
        }
        guest.endpoint.frontend.remove_mem_region(&region).expect("open");
        let table = [region_info(&guest.memory[0])];
        guest.endpoint.frontend.set_mem_table(&table).expect("open");
        // What came while its rings were moved may be lost, and is its own; what comes after that is not.
        guest.endpoint.frontend.get_features().expect("open");
        guest.flush();
        arena.peer.flush();
        arena.drain();
        while guest.try_receive(0).is_some() {}
        guest.send(0, &frame(PEER, ATTACKER, 60));
        arena.peer.expect(&frame(PEER, ATTACKER, 60));
        arena.peer.send(0, &frame(ATTACKER, PEER, 60));
        guest.expect(&frame(ATTACKER, PEER, 60));
    }
}

fn stopped_rings(arena: &mut Arena) {
    let mut guest = guest(arena);
    for _ in 0..20 {
        for _ in 0..64 {
            guest.send(0, &frame(PEER, ATTACKER, 60));
        }
        let base = guest.endpoint.frontend.get_vring_base(TX).expect("open");
        let queue = &mut guest.endpoint.queues[TX];
        queue.reclaim().expect("a sane ring");
        let left = queue.driver.in_flight();
        queue.kick.write(1).expect("room");
        arena.bystanders.go_on();
        arena.drain();
        let queue = &mut guest.endpoint.queues[TX];
        queue.reclaim().expect("a sane ring");
        assert_eq!(queue.driver.in_flight(), left, "a stopped ring was used");
        queue.config.next_avail = u16::try_from(base).expect("an index");
        guest.endpoint.start(TX).expect("open");
        wait_for("the rest to be taken", || {
            arena.drain();
            guest.endpoint.in_flight(0).expect("a sane ring") == 0
        });
    }
    arena.drain();
}
