//! Guests and front-ends that break every rule, against the real switch, while two bystanders exchange frames.
//!
//! Each case attacks one port of a running daemon over its socket and its rings. Whatever it does: the switch lives, the bystanders
//! lose no frame and never wait long, the attacked port serves the next front-end, and descriptors, threads, mappings and memory are
//! back where they were. `NETYARD_HOSTILE` plays only the cases whose names contain it.
#![forbid(unsafe_code)]

mod arena;
mod attacker;
mod bystanders;
mod chains;
mod control;
mod frontends;
mod inflight;
mod memory;
mod messages;
mod mutation;
mod packed;
mod packets;
mod page;
mod rings;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use arena::Arena;

const BROADCAST: [u8; 6] = [0xff; 6];
const ATTACKER: [u8; 6] = [2, 0, 0, 0, 0, 0xe];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 0xc];

/// A case: what it is called, and what it does. It panics when the switch does something else than it should.
type Case = (&'static str, fn(&mut Arena));

/// A frame of `len` bytes.
fn frame(to: [u8; 6], from: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.extend([0x88, 0xb5]);
    frame.resize(len.max(14), 0x5a);
    frame
}

fn play(cases: &[&[Case]]) {
    let mut arena = Arena::new();
    let mut failed = Vec::new();
    let wanted = std::env::var("NETYARD_HOSTILE").unwrap_or_default();
    let cases = cases.iter().copied().flatten();
    for (name, attack) in cases.filter(|(name, _)| name.contains(&wanted)) {
        let begin = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| {
            attack(&mut arena);
            arena.recovers();
        }));
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        println!("{verdict:<7}{name:<64}{:>6} ms", begin.elapsed().as_millis());
        if result.is_err() {
            println!("the switch says: {}", arena.switch.show());
            failed.push(*name);
        }
    }
    assert_eq!(failed, [""; 0], "cases failed; their panics are above");
    println!("{} frames between the bystanders, none lost", arena.end());
}

#[test]
fn e2e_hostile_guests_hurt_nobody() {
    play(&[
        &rings::CASES,
        &chains::CASES,
        &packed::CASES,
        &control::CASES,
        &packets::CASES,
        &mutation::CASES,
    ]);
}

#[test]
fn e2e_hostile_front_ends_hurt_nobody() {
    play(&[
        &messages::CASES,
        &frontends::CASES,
        &memory::CASES,
        &inflight::CASES,
    ]);
}
