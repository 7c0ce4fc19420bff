//! The forwarding database: which port a MAC address was last seen on.
//!
//! A fixed table, read by every worker for every frame without a lock or a retry. An address has two
//! candidate sets of eight entries, and the table has at least twice as many entries as it may hold, so
//! that a set overflows about never before the table is full. Each entry is two words:
//!
//! ```text
//! key    63..60 version │ 59..48 VLAN │ 47..0 MAC          (MAC 0: the entry is free)
//! value  63..60 version │ 48 static │ 47..16 last seen (s) │ 15..0 port
//! ```
//!
//! A reader takes the key, then the value, then the key again, and believes the value only if both carry
//! the same version and the key is still the same. A writer who gives an entry to another address stores the
//! value first, with the next version; refreshing an entry or moving it to another port exchanges its value
//! alone. Entries are made and freed under one lock that a worker waits for a few microseconds at most: if it
//! is still taken then, the next frame from that address learns it.

mod policy;
#[cfg(test)]
mod tests;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{PoisonError, TryLockError};

use crate::mac::MacAddr;
use crate::port_id::{MAX_PORTS, PortId};
use crate::sync::{AtomicU32, AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering, prefetch, spin_loop};

pub use policy::OnFull;

/// Entries in one set: their keys fill one cache line.
const WAYS: usize = 8;
const MAC_MASK: u64 = (1 << 48) - 1;
const KEY_MASK: u64 = (1 << 60) - 1;
const VERSION_SHIFT: u32 = 60;
const STATIC_BIT: u64 = 1 << 48;
/// How often a worker looks whether the lock is free before it goes on without learning an address.
const PATIENCE: u32 = 100;
/// Sets handled under one hold of the lock while the whole table is walked.
const SETS_PER_HOLD: usize = 64;

/// The smallest and the largest number of entries a table may be given.
pub const SIZE_LIMITS: std::ops::RangeInclusive<usize> = 1..=1 << 20;

/// How a table is made.
#[derive(Debug, Clone, Copy)]
pub struct FdbConfig {
    /// The most entries it holds, static ones included.
    pub size: usize,
    /// Seconds after which an address that sent nothing is forgotten.
    pub ageing: u32,
    /// What happens when an address is seen and the table is full.
    pub on_full: OnFull,
}

impl Default for FdbConfig {
    fn default() -> Self {
        Self {
            size: 8192,
            ageing: 300,
            on_full: OnFull::EvictFair,
        }
    }
}

/// One entry, as a person sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbEntry {
    /// The address.
    pub mac: MacAddr,
    /// The VLAN it was seen in; 0 without VLANs.
    pub vlan: u16,
    /// The port it is reached through.
    pub port: PortId,
    /// Seconds since it last sent a frame; 0 for a static entry.
    pub age: u32,
    /// Set by hand: never ages, moves or is evicted.
    pub is_static: bool,
}

/// What learning a source address came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learned {
    /// The address is in the table (or another worker is putting it there).
    Known,
    /// The table is full and its policy is to drop such frames.
    Refused,
}

/// A static entry could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FdbError {
    /// Only station addresses can be reached through one port.
    #[error("{0} is a group or zero address; give the address of one station")]
    NotAStation(MacAddr),
    /// No room, even by evicting learned entries.
    #[error(
        "the table is full of static entries ({0}); delete some or start the bridge with a larger --fdb-size"
    )]
    Full(usize),
}

/// What happened to entries so far.
#[derive(Debug, Default)]
pub struct FdbCounters {
    /// Addresses put into the table by learning.
    pub learned: AtomicU64,
    /// Addresses seen on another port than before.
    pub moved: AtomicU64,
    /// Entries forgotten because of their age.
    pub expired: AtomicU64,
    /// Entries that made room for others.
    pub evicted: AtomicU64,
    /// Addresses not learned because the table was full.
    pub refused: AtomicU64,
}

/// A set: a cache line of keys, and beside it, where a CPU fetches lines in pairs, the line of their values.
#[repr(align(128))]
#[derive(Default)]
struct Set {
    keys: [AtomicU64; WAYS],
    values: [AtomicU64; WAYS],
}

/// The forwarding database.
pub struct Fdb {
    sets: Box<[Set]>,
    set_mask: u64,
    seed: u64,
    size: usize,
    ageing: AtomicU32,
    on_full: OnFull,
    len: AtomicUsize,
    statics: AtomicUsize,
    per_port: Box<[AtomicU32]>,
    counters: FdbCounters,
    change: Mutex<()>,
}

#[derive(Clone, Copy)]
struct Slot {
    set: usize,
    way: usize,
}

fn key_of(mac: MacAddr, vlan: u16) -> u64 {
    mac.to_bits() | u64::from(vlan & 0xfff) << 48
}

fn value_of(port: PortId, seen: u32, is_static: bool, version: u64) -> u64 {
    let fixed = if is_static { STATIC_BIT } else { 0 };
    u64::from(port.raw()) | u64::from(seen) << 16 | fixed | version << VERSION_SHIFT
}

#[expect(clippy::cast_possible_truncation, reason = "the low 16 bits are the port")]
fn port_of(value: u64) -> PortId {
    PortId::from_raw(value as u16)
}

#[expect(clippy::cast_possible_truncation, reason = "bits 16 to 47 are the time")]
fn seen_of(value: u64) -> u32 {
    (value >> 16) as u32
}

fn is_static(value: u64) -> bool {
    value & STATIC_BIT != 0
}

impl Fdb {
    /// An empty table. A size outside [`SIZE_LIMITS`] is moved to the nearer limit.
    pub fn new(config: FdbConfig) -> Self {
        // A seed nobody outside knows: a guest cannot choose addresses that share a set.
        Self::with_seed(config, RandomState::new().hash_one(0_u8))
    }

    /// An empty table whose addresses are spread as `seed` says, the same way every time.
    pub fn with_seed(config: FdbConfig, seed: u64) -> Self {
        let size = config.size.clamp(*SIZE_LIMITS.start(), *SIZE_LIMITS.end());
        let sets = (size * 2).div_ceil(WAYS).next_power_of_two().max(4);
        Self {
            sets: (0..sets).map(|_| Set::default()).collect(),
            set_mask: sets as u64 - 1,
            seed: seed | 1,
            size,
            ageing: AtomicU32::new(config.ageing),
            on_full: config.on_full,
            len: AtomicUsize::new(0),
            statics: AtomicUsize::new(0),
            per_port: (0..MAX_PORTS).map(|_| AtomicU32::new(0)).collect(),
            counters: FdbCounters::default(),
            change: Mutex::new(()),
        }
    }

    /// The port behind an address, if it is known and young enough.
    #[inline]
    pub fn lookup(&self, mac: MacAddr, vlan: u16, now: u32) -> Option<PortId> {
        if mac.is_zero() {
            return None;
        }
        let (_, value) = self.find(key_of(mac, vlan))?;
        if self.is_expired(value, now) {
            None
        } else {
            Some(port_of(value))
        }
    }

    /// Asks the CPU for what [`lookup`](Self::lookup) and [`learn`](Self::learn) of this address will look at.
    #[inline]
    pub fn prefetch(&self, mac: MacAddr, vlan: u16) {
        let (first, second) = self.sets_of(key_of(mac, vlan));
        for set in [first, second] {
            if let Some(set) = self.sets.get(set) {
                prefetch(&raw const set.keys);
                prefetch(&raw const set.values);
            }
        }
    }

    /// Notes that `mac` sent a frame through `port`. Group and zero addresses are never learned.
    #[inline]
    pub fn learn(&self, mac: MacAddr, vlan: u16, port: PortId, now: u32) -> Learned {
        if !mac.is_valid_source() {
            return Learned::Known;
        }
        let key = key_of(mac, vlan);
        match self.find(key) {
            Some((_, value)) if is_static(value) => Learned::Known,
            Some((_, value)) if port_of(value) == port && seen_of(value) == now => Learned::Known,
            Some((slot, value)) => {
                self.refresh(slot, value, port, now);
                Learned::Known
            }
            None => self.insert_learned(key, port, now),
        }
    }

    /// Adds or replaces an entry that stays until it is deleted.
    pub fn add_static(&self, mac: MacAddr, vlan: u16, port: PortId, now: u32) -> Result<(), FdbError> {
        if !mac.is_valid_source() {
            return Err(FdbError::NotAStation(mac));
        }
        let _change = self.lock();
        let key = key_of(mac, vlan);
        if let Some((slot, _)) = self.find(key) {
            self.free(slot);
        }
        let Some(slot) = self.room(key, port, now, OnFull::EvictLru) else {
            return Err(FdbError::Full(self.statics.load(Ordering::Relaxed)));
        };
        self.fill(slot, key, port, now, true);
        Ok(())
    }

    /// Deletes an entry of either kind; false if there was none.
    pub fn remove(&self, mac: MacAddr, vlan: u16) -> bool {
        if mac.is_zero() {
            return false;
        }
        let _change = self.lock();
        let found = self.find(key_of(mac, vlan));
        if let Some((slot, _)) = found {
            self.free(slot);
        }
        found.is_some()
    }

    /// Forgets the learned entries of one port, or of all; returns how many.
    pub fn flush(&self, port: Option<PortId>) -> usize {
        self.free_where(|value| !is_static(value) && port.is_none_or(|p| port_of(value) == p))
    }

    /// Forgets every entry of a port that goes away, static ones included.
    pub fn forget_port(&self, port: PortId) -> usize {
        self.free_where(|value| port_of(value) == port)
    }

    /// Frees the entries that have aged; returns how many.
    pub fn expire(&self, now: u32) -> usize {
        let freed = self.free_where(|value| self.is_expired(value, now));
        self.counters.expired.fetch_add(freed as u64, Ordering::Relaxed);
        freed
    }

    /// Every entry that has not aged, ordered by VLAN and address.
    pub fn entries(&self, now: u32) -> Vec<FdbEntry> {
        let mut entries: Vec<FdbEntry> = (0..self.sets.len())
            .flat_map(|set| (0..WAYS).map(move |way| Slot { set, way }))
            .filter_map(|slot| self.read(slot))
            .filter(|&(_, value)| !self.is_expired(value, now))
            .map(|(key, value)| FdbEntry {
                mac: MacAddr::from_bits(key & MAC_MASK),
                vlan: u16::try_from(key >> 48 & 0xfff).unwrap_or_default(),
                port: port_of(value),
                age: if is_static(value) {
                    0
                } else {
                    now.saturating_sub(seen_of(value))
                },
                is_static: is_static(value),
            })
            .collect();
        entries.sort_unstable_by_key(|entry| (entry.vlan, entry.mac));
        entries
    }

    /// Entries in use, aged ones that were not swept yet included.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether the table holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is anything that can age.
    pub fn has_learned(&self) -> bool {
        self.len() > self.statics.load(Ordering::Relaxed)
    }

    /// The most entries the table holds.
    pub fn size(&self) -> usize {
        self.size
    }

    /// What a full table does.
    pub fn on_full(&self) -> OnFull {
        self.on_full
    }

    /// Seconds after which a silent address is forgotten.
    pub fn ageing(&self) -> u32 {
        self.ageing.load(Ordering::Relaxed)
    }

    /// What happened to entries so far.
    pub fn counters(&self) -> &FdbCounters {
        &self.counters
    }

    /// The two sets an address may be in.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "masked to the number of sets, which fits"
    )]
    pub(crate) fn sets_of(&self, key: u64) -> (usize, usize) {
        let mixed = (key ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let mixed = mixed ^ mixed >> 29;
        (
            (mixed & self.set_mask) as usize,
            (mixed >> 32 & self.set_mask) as usize,
        )
    }

    #[inline]
    fn find(&self, key: u64) -> Option<(Slot, u64)> {
        let (first, second) = self.sets_of(key);
        self.find_in(first, key).or_else(|| self.find_in(second, key))
    }

    #[inline]
    fn find_in(&self, set: usize, key: u64) -> Option<(Slot, u64)> {
        for (way, word) in self.sets[set].keys.iter().enumerate() {
            let word = word.load(Ordering::Acquire);
            if word & KEY_MASK == key {
                let value = self.sets[set].values[way].load(Ordering::Acquire);
                // A reader that is stopped in between may miss as many owners as there are versions: so the key once more.
                let same = self.sets[set].keys[way].load(Ordering::Acquire) == word;
                if same && value >> VERSION_SHIFT == word >> VERSION_SHIFT {
                    return Some((Slot { set, way }, value));
                }
            }
        }
        None
    }

    /// The key and value of an entry, unless it is free or just changing hands.
    fn read(&self, slot: Slot) -> Option<(u64, u64)> {
        let key = self.sets[slot.set].keys[slot.way].load(Ordering::Acquire);
        let value = self.sets[slot.set].values[slot.way].load(Ordering::Acquire);
        let whole = key & MAC_MASK != 0 && key >> VERSION_SHIFT == value >> VERSION_SHIFT;
        whole.then_some((key & KEY_MASK, value))
    }

    fn is_expired(&self, value: u64, now: u32) -> bool {
        !is_static(value) && now.saturating_sub(seen_of(value)) >= self.ageing()
    }

    /// Brings an entry up to date. If another writer was faster, his word is as new as ours.
    fn refresh(&self, slot: Slot, old: u64, port: PortId, now: u32) {
        let new = value_of(port, now, false, old >> VERSION_SHIFT);
        let word = &self.sets[slot.set].values[slot.way];
        let swapped = word
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        let before = port_of(old);
        if swapped && before != port {
            self.count(before).fetch_sub(1, Ordering::Relaxed);
            self.count(port).fetch_add(1, Ordering::Relaxed);
            self.counters.moved.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[cold]
    fn insert_learned(&self, key: u64, port: PortId, now: u32) -> Learned {
        let Some(_change) = self.lock_soon() else {
            return Learned::Known;
        };
        if self.find(key).is_some() {
            return Learned::Known;
        }
        if let Some(slot) = self.room(key, port, now, self.on_full) {
            self.fill(slot, key, port, now, false);
            self.counters.learned.fetch_add(1, Ordering::Relaxed);
            return Learned::Known;
        }
        self.counters.refused.fetch_add(1, Ordering::Relaxed);
        if self.on_full == OnFull::Drop {
            Learned::Refused
        } else {
            Learned::Known
        }
    }

    /// Gives a free entry to an address. The lock is held.
    fn fill(&self, slot: Slot, key: u64, port: PortId, now: u32, is_static: bool) {
        let value = &self.sets[slot.set].values[slot.way];
        let version = (value.load(Ordering::Relaxed) >> VERSION_SHIFT).wrapping_add(1) & 0xf;
        value.store(value_of(port, now, is_static, version), Ordering::Release);
        self.sets[slot.set].keys[slot.way].store(key | version << VERSION_SHIFT, Ordering::Release);
        self.len.fetch_add(1, Ordering::Relaxed);
        self.count(port).fetch_add(1, Ordering::Relaxed);
        if is_static {
            self.statics.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Frees an entry. The lock is held.
    ///
    /// The value gets the next version at once, so that a worker about to refresh the entry fails, and the
    /// port that loses it is the one the entry named last.
    fn free(&self, slot: Slot) {
        self.sets[slot.set].keys[slot.way].store(0, Ordering::Release);
        let word = &self.sets[slot.set].values[slot.way];
        let version = (word.load(Ordering::Relaxed) >> VERSION_SHIFT).wrapping_add(1) & 0xf;
        let value = word.swap(version << VERSION_SHIFT, Ordering::AcqRel);
        self.len.fetch_sub(1, Ordering::Relaxed);
        self.count(port_of(value)).fetch_sub(1, Ordering::Relaxed);
        if is_static(value) {
            self.statics.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn free_where(&self, mut condition: impl FnMut(u64) -> bool) -> usize {
        let mut freed = 0;
        for first in (0..self.sets.len()).step_by(SETS_PER_HOLD) {
            let _change = self.lock();
            for set in first..self.sets.len().min(first + SETS_PER_HOLD) {
                for way in 0..WAYS {
                    let slot = Slot { set, way };
                    if self.read(slot).is_some_and(|(_, value)| condition(value)) {
                        self.free(slot);
                        freed += 1;
                    }
                }
            }
        }
        freed
    }

    fn count(&self, port: PortId) -> &AtomicU32 {
        &self.per_port[usize::from(port.raw()) % MAX_PORTS]
    }

    /// The lock for a worker. A control thread that walks the table holds it for a microsecond or two at a time, which is worth
    /// waiting for: a station that sends a single frame would not be known otherwise.
    fn lock_soon(&self) -> Option<MutexGuard<'_, ()>> {
        for _ in 0..PATIENCE {
            match self.change.try_lock() {
                Ok(guard) => return Some(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => spin_loop(),
            }
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Fdb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fdb")
            .field("size", &self.size)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
