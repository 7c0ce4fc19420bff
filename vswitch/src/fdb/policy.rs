//! What a full table does, and how it finds an entry to give up.

use serde::{Deserialize, Serialize};

use super::{Fdb, Slot, WAYS, is_static, port_of, seen_of};
use crate::port_id::PortId;
use crate::sync::Ordering;

/// Entries compared before one is given up.
const CANDIDATES: usize = 16;
/// Sets visited to find that many.
const SETS_VISITED: usize = 32;

/// What happens when an address is seen and the table is full.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum, utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum OnFull {
    /// It is not learned: frames to it go to every port.
    Flood,
    /// It takes the place of the entry that was silent longest, of those compared.
    EvictLru,
    /// It takes the place of an entry of the port that holds the most, never of a port that holds fewer
    /// than its own: one port's flood of addresses costs the others nothing.
    #[default]
    EvictFair,
    /// It is not learned and its frames are dropped.
    Drop,
}

impl Fdb {
    /// A free entry for an address, made by giving another up if the policy says so. The lock is held.
    pub(super) fn room(&self, key: u64, port: PortId, now: u32, policy: OnFull) -> Option<Slot> {
        let (first, second) = self.sets_of(key);
        let free = self.freer_set(first, second);
        if self.len() < self.size {
            if let Some(slot) = free {
                return Some(slot);
            }
            let victim = self.victim([first, second].into_iter(), port, now, policy)?;
            self.give_up(victim, now);
            return Some(victim);
        }
        // Aged entries go first wherever they are found; if both of the address's own sets are full, only
        // an entry of theirs helps.
        let sets = self.sets.len();
        let visited = if free.is_some() { SETS_VISITED.min(sets) } else { 0 };
        let more = (1..visited).map(|step| (first + step) % sets);
        let others = more.filter(|&set| set != second);
        let victim = self.victim([first, second].into_iter().chain(others), port, now, policy)?;
        self.give_up(victim, now);
        free.or(Some(victim))
    }

    /// A free entry in the emptier of two sets.
    fn freer_set(&self, first: usize, second: usize) -> Option<Slot> {
        let free_in = |set: usize| {
            let keys = &self.sets[set].keys;
            let free = keys
                .iter()
                .filter(|word| word.load(Ordering::Relaxed) == 0)
                .count();
            let way = keys.iter().position(|word| word.load(Ordering::Relaxed) == 0);
            (free, way.map(|way| Slot { set, way }))
        };
        let (free_first, slot_first) = free_in(first);
        let (free_second, slot_second) = free_in(second);
        if free_second > free_first {
            slot_second
        } else {
            slot_first
        }
    }

    fn victim(
        &self,
        sets: impl Iterator<Item = usize>,
        learner: PortId,
        now: u32,
        policy: OnFull,
    ) -> Option<Slot> {
        let mut best: Option<(Slot, (bool, u32, u32))> = None;
        let mut seen = 0;
        for set in sets {
            for way in 0..WAYS {
                let slot = Slot { set, way };
                let Some((_, value)) = self.read(slot) else {
                    continue;
                };
                seen += 1;
                if is_static(value) {
                    continue;
                }
                let held = self.count(port_of(value)).load(Ordering::Relaxed);
                let expired = self.is_expired(value, now);
                let allowed = match policy {
                    OnFull::Flood | OnFull::Drop => false,
                    OnFull::EvictLru => true,
                    OnFull::EvictFair => held >= self.count(learner).load(Ordering::Relaxed),
                };
                if !expired && !allowed {
                    continue;
                }
                let weight = if policy == OnFull::EvictFair { held } else { 0 };
                let rank = (expired, weight, now.saturating_sub(seen_of(value)));
                if best.is_none_or(|(_, other)| rank > other) {
                    best = Some((slot, rank));
                }
            }
            if seen >= CANDIDATES && best.is_some() {
                break;
            }
        }
        best.map(|(slot, _)| slot)
    }

    fn give_up(&self, slot: Slot, now: u32) {
        let Some((_, value)) = self.read(slot) else { return };
        let counter = if self.is_expired(value, now) {
            &self.counters.expired
        } else {
            &self.counters.evicted
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.free(slot);
    }
}
