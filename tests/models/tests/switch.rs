//! The forwarding database and the gate of a queue, used by several threads at once.
//!
//! What they catch was tried by taking it out. `an_entry_whose_versions_have_all_been_used_is_never_mixed_up` fails without the
//! second look at the key in `Fdb::find_in`; `an_entry_is_not_refreshed_after_it_was_freed` without the comparison of versions
//! there, and with a plain store in place of the exchange in `Fdb::refresh`; `an_address_is_learned_once` without the second look
//! under the lock in `Fdb::insert_learned`; `memory_goes_only_when_nobody_uses_it` when the mapping ends before the control
//! thread has had the gate; `what_was_published_is_seen` when the version moves on before the value is locked, when the version
//! stays the same at a second change, and when a reader takes value and version in two looks (for which `netyard_models::sync`
//! has a lock); `no_address_is_learned_on_a_port_that_is_gone` when addresses are forgotten before the ring is taken, and when a
//! worker lets go of the ring before it learns; `what_a_guest_was_told_is_so` when `Wishes::set_filter` notes what there is
//! before it stores it, or does not; `a_ring_is_used_with_its_headers` when the ring is there before its driver's hashes are, and
//! when these go before it.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use netyard_models::fdb::{Fdb, FdbConfig, OnFull};
use netyard_models::gate::Gate;
use netyard_models::published::{Published, Reader};
use netyard_models::sources::Sources;
use netyard_models::wishes::Wishes;
use netyard_models::{ask_for, hold, port, rivals, start_over};
use vhost_net_backend::control::ReceiveFilter;

const SEED: u64 = 1;
const NOW: u32 = 1;

fn explore(model: impl Fn() + Send + Sync + 'static) {
    explore_within(3, model);
}

/// A thread is stopped in its way so many times at most.
fn explore_within(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(model);
}

fn table(size: usize) -> Arc<Fdb> {
    let config = FdbConfig {
        size,
        ageing: 300,
        on_full: OnFull::EvictLru,
    };
    Arc::new(Fdb::with_seed(config, SEED))
}

// Those that only read are threads of their own: the checker remembers the last access to each place alone, and what writes here has read
// before, which would hide that others had.

#[test]
fn an_entry_that_changes_hands_is_never_mixed_up() {
    explore(|| {
        let fdb = table(1);
        let [first, second] = rivals(&fdb);
        fdb.learn(first, 0, port(1), NOW);
        let reader = {
            let fdb = Arc::clone(&fdb);
            thread::spawn(move || {
                let found = fdb.lookup(first, 0, NOW);
                assert!(found.is_none() || found == Some(port(1)), "{found:?}");
                let found = fdb.lookup(second, 0, NOW);
                assert!(found.is_none() || found == Some(port(2)), "{found:?}");
            })
        };
        fdb.remove(first, 0);
        fdb.learn(second, 0, port(2), NOW);
        reader.join().expect("no panic");
        assert_eq!(fdb.lookup(first, 0, NOW), None);
        assert_eq!(fdb.lookup(second, 0, NOW), Some(port(2)));
    });
}

/// A reader that is stopped between key and value misses as many changes as there are versions: the entry has another owner, and the
/// same version.
#[test]
fn an_entry_whose_versions_have_all_been_used_is_never_mixed_up() {
    explore_within(2, || {
        let fdb = table(1);
        let [first, second] = rivals(&fdb);
        fdb.learn(first, 0, port(1), NOW);
        let reader = {
            let fdb = Arc::clone(&fdb);
            thread::spawn(move || {
                let found = fdb.lookup(first, 0, NOW);
                assert!(found.is_none() || found == Some(port(1)), "{found:?}");
            })
        };
        fdb.remove(first, 0);
        fdb.learn(second, 0, port(2), NOW);
        // Each owner that goes or comes takes a version, of sixteen.
        for _ in 0..7 {
            fdb.remove(second, 0);
            fdb.learn(second, 0, port(2), NOW);
        }
        reader.join().expect("no panic");
        assert_eq!(fdb.lookup(second, 0, NOW), Some(port(2)));
    });
}

#[test]
fn an_entry_is_not_refreshed_after_it_was_freed() {
    explore(|| {
        let fdb = table(1);
        let [first, second] = rivals(&fdb);
        fdb.learn(first, 0, port(1), NOW);
        let other = {
            let fdb = Arc::clone(&fdb);
            // The station moved.
            thread::spawn(move || fdb.learn(first, 0, port(3), NOW + 1))
        };
        fdb.remove(first, 0);
        fdb.add_static(second, 0, port(2), NOW).expect("room for one");
        other.join().expect("no panic");
        assert_eq!(
            fdb.lookup(second, 0, NOW),
            Some(port(2)),
            "another's entry was overwritten"
        );
        let entries = fdb.entries(NOW + 1);
        assert_eq!(entries.len(), fdb.len());
        assert!(
            entries
                .iter()
                .all(|entry| entry.mac == second || entry.port == port(3))
        );
    });
}

#[test]
fn an_address_is_learned_once() {
    explore(|| {
        let fdb = table(2);
        let [first, _] = rivals(&fdb);
        let other = {
            let fdb = Arc::clone(&fdb);
            thread::spawn(move || fdb.learn(first, 0, port(1), NOW))
        };
        fdb.learn(first, 0, port(2), NOW);
        other.join().expect("no panic");
        assert_eq!((fdb.len(), fdb.entries(NOW).len()), (1, 1));
    });
}

/// Memory that a peer shares: what its use and its end are to a worker.
#[derive(Default)]
struct Mapping(UnsafeCell<bool>);

impl Mapping {
    fn is_used(&self) {
        // The checker fails the model when the mapping ends at the same time.
        self.0.with(|_| ());
    }

    fn ends(&self) {
        self.0.with_mut(|_| ());
    }
}

// A cell is shared only as the gate lets it, which is what is checked.
#[test]
fn memory_goes_only_when_nobody_uses_it() {
    explore(|| {
        let maps = Arc::new([Mapping::default(), Mapping::default()]);
        // Which of the two the ring lies in.
        let gate = Arc::new(Gate::<usize>::default());
        let workers: Vec<_> = [false, true]
            .into_iter()
            .map(|shared| {
                let (maps, gate) = (Arc::clone(&maps), Arc::clone(&gate));
                thread::spawn(move || {
                    let entered = if shared { gate.enter() } else { gate.try_enter() };
                    if let Some(ring) = entered {
                        maps[*ring].is_used();
                    }
                })
            })
            .collect();
        *gate.lock() = 1;
        // The control thread goes on as soon as it had the gate: nobody is in the old memory.
        maps[0].ends();
        for worker in workers {
            worker.join().expect("no panic");
        }
    });
}

/// A worker's looks are at one value after the other, never back, and end at the last one.
#[test]
fn what_was_published_is_seen() {
    explore(|| {
        let published = std::sync::Arc::new(Published::new(0_u32));
        let worker = {
            let published = std::sync::Arc::clone(&published);
            thread::spawn(move || {
                let mut reader = Reader::new(published);
                let first = **reader.load();
                let second = **reader.load();
                assert!(first <= second, "{first}, then {second}");
                reader
            })
        };
        published.store(1);
        published.store(2);
        let mut reader = worker.join().expect("no panic");
        assert_eq!(**reader.load(), 2, "the worker keeps what was replaced");
    });
}

/// Removing a port: its ring is taken, the ports are published without it, and its addresses are forgotten. Whoever then
/// gets its number inherits nothing.
#[test]
fn no_address_is_learned_on_a_port_that_is_gone() {
    explore(|| {
        let fdb = table(2);
        let [station, _] = rivals(&fdb);
        let ring = Arc::new(Gate::<Option<()>>::default());
        *ring.lock() = Some(());
        let ports = std::sync::Arc::new(Published::new(true));
        let worker = {
            let (fdb, ring) = (Arc::clone(&fdb), Arc::clone(&ring));
            let mut ports = Reader::new(std::sync::Arc::clone(&ports));
            thread::spawn(move || {
                // A burst: the ring is held while its frames are forwarded.
                if let Some(guard) = ring.try_enter()
                    && guard.is_some()
                {
                    fdb.learn(station, 0, port(1), NOW);
                    // Another's frame to the station finds the port in the table, or does not.
                    let _ = fdb.lookup(station, 0, NOW).filter(|_| **ports.load());
                }
                ports
            })
        };
        ring.lock().take();
        ports.store(false);
        fdb.forget_port(port(1));
        let mut ports = worker.join().expect("no panic");
        assert!(!**ports.load());
        assert_eq!(
            fdb.lookup(station, 0, NOW),
            None,
            "learned after all was forgotten"
        );
    });
}

/// Holding a port to an address: what was learned from it before is forgotten when the bursts under way are over, and nothing
/// that it is not allowed is learned from then on.
#[test]
fn a_port_that_is_held_is_known_by_no_other_address() {
    explore(|| {
        let fdb = table(2);
        let [station, own] = rivals(&fdb);
        let sources = Arc::new(Sources::default());
        let ring = Arc::new(Gate::<()>::default());
        let worker = {
            let (fdb, sources, ring) = (Arc::clone(&fdb), Arc::clone(&sources), Arc::clone(&ring));
            thread::spawn(move || {
                for _ in 0..2 {
                    let Some(_burst) = ring.try_enter() else { continue };
                    if sources.allow(station) {
                        fdb.learn(station, 0, port(1), NOW);
                    }
                }
            })
        };
        hold(&sources, Some(own));
        drop(ring.lock());
        fdb.flush(Some(port(1)));
        worker.join().expect("no panic");
        assert_eq!(
            fdb.lookup(station, 0, NOW),
            None,
            "learned from a port that is held"
        );
        assert!(sources.allow(own) && !sources.allow(station));
        hold(&sources, None);
        assert!(sources.allow(station));
    });
}

/// A guest is answered, and only then acts on it: whoever serves what the guest did next goes by what it asked for.
#[test]
fn what_a_guest_was_told_is_so() {
    explore(|| {
        let wishes = Arc::new(Wishes::default());
        let told = Arc::new(AtomicBool::new(false));
        let wanted = std::sync::Arc::new(ReceiveFilter::unknown());
        let worker = {
            let (wishes, told) = (Arc::clone(&wishes), Arc::clone(&told));
            let wanted = std::sync::Arc::clone(&wanted);
            thread::spawn(move || {
                let told = told.load(Ordering::Acquire);
                let looks = wishes.any();
                let filter = wishes.filter().clone();
                assert!(looks || !told, "it asked for a filter, and nobody looks");
                match filter {
                    Some(filter) => assert!(std::sync::Arc::ptr_eq(&filter, &wanted)),
                    None => assert!(!told, "it asked for a filter, and there is none"),
                }
            })
        };
        ask_for(&wishes, Some(wanted));
        told.store(true, Ordering::Release);
        worker.join().expect("no panic");
        start_over(&wishes, true);
        ask_for(&wishes, None);
        assert!(wishes.any(), "hashes go with frames yet");
        start_over(&wishes, false);
        assert!(!wishes.any());
    });
}

/// How long a frame's header is depends on what the driver of the ring negotiated: no worker uses the ring with another.
#[test]
fn a_ring_is_used_with_its_headers() {
    explore(|| {
        let wishes = Arc::new(Wishes::default());
        let ring = Arc::new(Gate::<Option<()>>::default());
        let worker = {
            let (wishes, ring) = (Arc::clone(&wishes), Arc::clone(&ring));
            thread::spawn(move || {
                if let Some(ring) = ring.try_enter()
                    && ring.is_some()
                {
                    assert!(wishes.hashes() && wishes.any(), "a header of another driver");
                }
            })
        };
        start_over(&wishes, true);
        *ring.lock() = Some(());
        ring.lock().take();
        start_over(&wishes, false);
        worker.join().expect("no panic");
    });
}
