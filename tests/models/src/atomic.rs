//! Atomics in memory shared by both ends of a queue: an address stands for one of the model checker's atomics.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;

pub(crate) use loom::sync::atomic::{Ordering, fence};

thread_local! {
    // The checker runs all threads of a model on one thread of the machine.
    static CELLS: RefCell<Cells> = RefCell::default();
}

#[derive(Default)]
struct Cells {
    halves: HashMap<usize, Box<AtomicU16>>,
    words: HashMap<usize, Box<AtomicU32>>,
    doubles: HashMap<usize, Box<AtomicU64>>,
}

/// Forgets every atomic. To be called at the end of each execution of a model, when its threads are done.
pub fn forget() {
    CELLS.with_borrow_mut(|cells| *cells = Cells::default());
}

macro_rules! over_memory {
    ($name:ident, $value:ty, $map:ident, $new:expr) => {
        impl $name {
            /// The atomic that the value at `ptr` is.
            ///
            /// # Safety
            /// `ptr` must be valid for reads and aligned, and nobody may use the reference after [`forget`].
            pub(crate) unsafe fn from_ptr<'a>(ptr: *mut $value) -> &'a Self {
                CELLS.with_borrow_mut(|cells| {
                    // SAFETY: the caller says that it may be read.
                    let made = || Box::new($new(unsafe { ptr.read_volatile() }));
                    let cell: *const Self = &raw const **cells.$map.entry(ptr.addr()).or_insert_with(made);
                    // SAFETY: the box stays where it is until `forget`, after which the caller does not use it.
                    unsafe { &*cell }
                })
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    };
}

/// Sixteen bits.
pub struct AtomicU16(loom::sync::atomic::AtomicU16);

/// Sixty-four bits.
pub struct AtomicU64(loom::sync::atomic::AtomicU64);

/// Thirty-two bits, which others may access as two halves. A read may find them from different times, but a second half that was
/// released brings the first with it, as it does on a machine that reads both at once.
pub struct AtomicU32(usize);

over_memory!(AtomicU16, u16, halves, |value| Self(
    loom::sync::atomic::AtomicU16::new(value)
));
over_memory!(AtomicU64, u64, doubles, |value| Self(
    loom::sync::atomic::AtomicU64::new(value)
));

impl AtomicU32 {
    /// The atomic that the value at `ptr` is.
    ///
    /// # Safety
    /// As with [`AtomicU16`].
    pub(crate) unsafe fn from_ptr<'a>(ptr: *mut u32) -> &'a Self {
        CELLS.with_borrow_mut(|cells| {
            let made = || Box::new(Self(ptr.expose_provenance()));
            let cell: *const Self = &raw const **cells.words.entry(ptr.addr()).or_insert_with(made);
            // SAFETY: the box stays where it is until `forget`, after which the caller does not use it.
            unsafe { &*cell }
        })
    }

    fn half(&self, number: usize) -> &AtomicU16 {
        let ptr = std::ptr::with_exposed_provenance_mut::<u16>(self.0).wrapping_add(number);
        // SAFETY: half of a value that was valid and aligned for `from_ptr`.
        unsafe { AtomicU16::from_ptr(ptr) }
    }

    pub(crate) fn load(&self, order: Ordering) -> u32 {
        let high = self.half(1).0.load(match order {
            Ordering::Relaxed => Ordering::Acquire,
            order => order,
        });
        u32::from(self.half(0).0.load(order)) | u32::from(high) << 16
    }

    pub(crate) fn store(&self, value: u32, order: Ordering) {
        let [a, b, c, d] = value.to_le_bytes();
        self.half(0).0.store(u16::from_le_bytes([a, b]), order);
        self.half(1).0.store(u16::from_le_bytes([c, d]), order);
    }
}

impl fmt::Debug for AtomicU32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtomicU32")
    }
}

impl AtomicU16 {
    pub(crate) fn load(&self, order: Ordering) -> u16 {
        self.0.load(order)
    }

    pub(crate) fn store(&self, value: u16, order: Ordering) {
        self.0.store(value, order);
    }
}

impl AtomicU64 {
    pub(crate) fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }

    pub(crate) fn store(&self, value: u64, order: Ordering) {
        self.0.store(value, order);
    }
}
