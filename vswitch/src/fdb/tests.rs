use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn mac(number: u64) -> MacAddr {
    MacAddr::from_bits(0x0200_0000_0000 | number)
}

fn port(index: usize) -> PortId {
    PortId::from_index(index).unwrap()
}

fn table(size: usize, on_full: OnFull) -> Fdb {
    Fdb::new(FdbConfig {
        size,
        ageing: 300,
        on_full,
    })
}

#[test]
fn learns_moves_and_forgets() {
    let fdb = table(64, OnFull::EvictFair);
    assert_eq!(fdb.lookup(mac(1), 0, 0), None);
    fdb.learn(mac(1), 0, port(3), 0);
    assert_eq!(fdb.lookup(mac(1), 0, 10), Some(port(3)));
    assert_eq!(fdb.lookup(mac(1), 7, 10), None, "another VLAN is another key");
    fdb.learn(mac(1), 0, port(4), 10);
    assert_eq!(fdb.lookup(mac(1), 0, 10), Some(port(4)));
    assert_eq!(fdb.counters().learned.load(Ordering::Relaxed), 1);
    assert_eq!(fdb.counters().moved.load(Ordering::Relaxed), 1);
    assert!(fdb.remove(mac(1), 0));
    assert!(!fdb.remove(mac(1), 0));
    assert_eq!(fdb.lookup(mac(1), 0, 10), None);
    assert!(fdb.is_empty());
}

#[test]
fn group_and_zero_addresses_are_no_stations() {
    let fdb = table(64, OnFull::EvictFair);
    for text in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00"] {
        let address: MacAddr = text.parse().unwrap();
        fdb.learn(address, 0, port(1), 0);
        assert_eq!(fdb.lookup(address, 0, 0), None);
        assert!(fdb.add_static(address, 0, port(1), 0).is_err());
        assert!(!fdb.remove(address, 0));
    }
    assert!(fdb.is_empty());
}

#[test]
fn silent_addresses_age_and_speaking_ones_stay() {
    let fdb = table(64, OnFull::EvictFair);
    fdb.learn(mac(1), 0, port(1), 0);
    fdb.learn(mac(2), 0, port(1), 0);
    fdb.learn(mac(2), 0, port(1), 200);
    assert_eq!(fdb.lookup(mac(1), 0, 299), Some(port(1)));
    assert_eq!(
        fdb.lookup(mac(1), 0, 300),
        None,
        "an aged entry no longer decides, swept or not"
    );
    assert_eq!(fdb.expire(300), 1);
    assert_eq!(fdb.lookup(mac(2), 0, 300), Some(port(1)));
    assert_eq!(
        fdb.entries(300),
        [FdbEntry {
            mac: mac(2),
            vlan: 0,
            port: port(1),
            age: 100,
            is_static: false
        }]
    );
    assert_eq!(fdb.counters().expired.load(Ordering::Relaxed), 1);
}

#[test]
fn static_entries_neither_age_nor_move_nor_flush() {
    let fdb = table(64, OnFull::EvictFair);
    fdb.learn(mac(1), 0, port(2), 0);
    fdb.add_static(mac(1), 0, port(5), 0).unwrap();
    fdb.learn(mac(1), 0, port(2), 1);
    assert_eq!(fdb.expire(10_000), 0);
    assert_eq!(fdb.flush(None), 0);
    assert_eq!(fdb.lookup(mac(1), 0, 10_000), Some(port(5)));
    assert!(!fdb.has_learned());
    assert_eq!(fdb.forget_port(port(5)), 1);
    assert!(fdb.is_empty());
}

#[test]
fn flush_takes_one_port_or_all() {
    let fdb = table(256, OnFull::EvictFair);
    for number in 0..50 {
        fdb.learn(mac(number), 0, port(usize::from(number % 2 == 0)), 0);
    }
    assert_eq!(fdb.flush(Some(port(1))), 25);
    assert_eq!(fdb.lookup(mac(0), 0, 0), None);
    assert_eq!(fdb.lookup(mac(1), 0, 0), Some(port(0)));
    assert_eq!(fdb.flush(None), 25);
}

#[test]
fn a_full_table_that_floods_learns_nothing_and_refuses_nothing() {
    let fdb = table(32, OnFull::Flood);
    for number in 0..100 {
        assert_eq!(fdb.learn(mac(number), 0, port(0), 0), Learned::Known);
    }
    assert_eq!(fdb.len(), 32);
    assert_eq!(fdb.counters().refused.load(Ordering::Relaxed), 68);
    assert_eq!(fdb.counters().evicted.load(Ordering::Relaxed), 0);
}

#[test]
fn a_full_table_that_drops_refuses_new_sources_only() {
    let fdb = table(32, OnFull::Drop);
    let known: Vec<u64> = (0..100)
        .filter(|&number| fdb.learn(mac(number), 0, port(0), 0) == Learned::Known)
        .collect();
    assert_eq!(known.len(), 32);
    for number in known {
        assert_eq!(fdb.learn(mac(number), 0, port(0), 1), Learned::Known);
    }
}

#[test]
fn lru_eviction_takes_the_longest_silent() {
    let fdb = table(8, OnFull::EvictLru);
    for number in 0..8 {
        fdb.learn(mac(number), 0, port(0), u32::try_from(number).unwrap());
    }
    fdb.learn(mac(100), 0, port(1), 20);
    assert_eq!(fdb.len(), 8);
    assert_eq!(fdb.lookup(mac(0), 0, 20), None);
    assert_eq!(fdb.lookup(mac(100), 0, 20), Some(port(1)));
}

#[test]
fn a_flood_of_addresses_from_one_port_takes_no_entry_of_another() {
    let fdb = table(1024, OnFull::EvictFair);
    for number in 0..10 {
        fdb.learn(mac(number), 0, port(1), 0);
        fdb.learn(mac(100 + number), 0, port(2), 0);
    }
    for number in 1_000..101_000 {
        fdb.learn(mac(number), 0, port(0), 1);
    }
    assert_eq!(fdb.len(), 1024);
    for number in 0..10 {
        assert_eq!(fdb.lookup(mac(number), 0, 2), Some(port(1)));
        assert_eq!(fdb.lookup(mac(100 + number), 0, 2), Some(port(2)));
    }
    // A quiet port still learns at the flooder's cost.
    fdb.learn(mac(500), 0, port(3), 3);
    assert_eq!(fdb.lookup(mac(500), 0, 3), Some(port(3)));
}

#[test]
fn a_table_of_static_entries_says_so() {
    let fdb = table(4, OnFull::EvictFair);
    for number in 0..4 {
        fdb.add_static(mac(number), 0, port(0), 0).unwrap();
    }
    let error = fdb.add_static(mac(9), 0, port(0), 0).unwrap_err().to_string();
    assert!(error.contains("--fdb-size"), "{error}");
    fdb.learn(mac(9), 0, port(0), 0);
    assert_eq!(fdb.len(), 4);
}

#[test]
fn the_nominal_size_is_reached_exactly() {
    let fdb = table(8192, OnFull::Flood);
    for number in 0..8192 {
        fdb.learn(mac(number * 7), 0, port(0), 0);
    }
    assert_eq!(fdb.len(), 8192);
    assert!((0..8192).all(|number| fdb.lookup(mac(number * 7), 0, 0) == Some(port(0))));
}

/// Readers must never see a port that the address they ask for was never on.
#[test]
fn readers_beside_writers_see_only_true_ports() {
    let fdb = table(16, OnFull::EvictLru);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for number in 0..64_u64 {
                        if let Some(found) = fdb.lookup(mac(number), 0, 1) {
                            assert_eq!(found.index(), usize::try_from(number).unwrap());
                        }
                    }
                }
            });
        }
        for round in 0..2_000_u64 {
            for number in 0..64_u64 {
                fdb.learn(
                    mac((number + round) % 64),
                    0,
                    port(usize::try_from((number + round) % 64).unwrap()),
                    1,
                );
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let held: u32 = fdb
        .per_port
        .iter()
        .map(|count| count.load(Ordering::Relaxed))
        .sum();
    assert_eq!(usize::try_from(held).unwrap(), fdb.len());
}

#[derive(Debug, Clone)]
enum Action {
    Learn(u64, usize),
    AddStatic(u64, usize),
    Remove(u64),
    FlushPort(usize),
    Wait(u32),
    Expire,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (0..40_u64, 0..4_usize).prop_map(|(address, port)| Action::Learn(address, port)),
        1 => (0..40_u64, 0..4_usize).prop_map(|(address, port)| Action::AddStatic(address, port)),
        1 => (0..40_u64).prop_map(Action::Remove),
        1 => (0..4_usize).prop_map(Action::FlushPort),
        2 => (0..200_u32).prop_map(Action::Wait),
        1 => Just(Action::Expire),
    ]
}

proptest! {
    /// With room for every address the table is a map with ageing, whatever the order of events.
    #[test]
    fn behaves_like_a_map_with_ageing(actions in proptest::collection::vec(action(), 1..200)) {
        let fdb = table(256, OnFull::EvictFair);
        let mut model: HashMap<u64, (usize, u32, bool)> = HashMap::new();
        let mut now = 0;
        for step in actions {
            match step {
                Action::Learn(address, on) => {
                    fdb.learn(mac(address), 0, port(on), now);
                    let entry = model.entry(address).or_insert((on, now, false));
                    if !entry.2 {
                        *entry = (on, now, false);
                    }
                }
                Action::AddStatic(address, on) => {
                    fdb.add_static(mac(address), 0, port(on), now).unwrap();
                    model.insert(address, (on, now, true));
                }
                Action::Remove(address) => {
                    prop_assert_eq!(fdb.remove(mac(address), 0), model.remove(&address).is_some());
                }
                Action::FlushPort(on) => {
                    fdb.flush(Some(port(on)));
                    model.retain(|_, entry| entry.2 || entry.0 != on);
                }
                Action::Wait(seconds) => now += seconds,
                Action::Expire => {
                    fdb.expire(now);
                    model.retain(|_, entry| entry.2 || now - entry.1 < 300);
                }
            }
            prop_assert_eq!(fdb.len(), model.len());
            for address in 0..40 {
                let expected = model.get(&address).filter(|e| e.2 || now - e.1 < 300).map(|e| port(e.0));
                prop_assert_eq!(fdb.lookup(mac(address), 0, now), expected);
            }
        }
    }

    /// However small the table and whatever its policy, it stays within its size and keeps static entries.
    #[test]
    fn stays_bounded(
        size in 1..20_usize,
        policy in prop_oneof![Just(OnFull::Flood), Just(OnFull::EvictLru), Just(OnFull::EvictFair), Just(OnFull::Drop)],
        addresses in proptest::collection::vec((0..200_u64, 0..4_usize), 1..300),
    ) {
        let fdb = table(size, policy);
        fdb.add_static(mac(1000), 0, port(9), 0).unwrap();
        for (address, on) in addresses {
            fdb.learn(mac(address), 0, port(on), 0);
            prop_assert!(fdb.len() <= size);
        }
        prop_assert_eq!(fdb.lookup(mac(1000), 0, 0), Some(port(9)));
        prop_assert_eq!(fdb.entries(0).len(), fdb.len());
    }
}
