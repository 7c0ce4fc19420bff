//! Hears a Linux kernel panic on the console.
//!
//! The panic device reports panics for sure, but a stock kernel has its driver as a module, which is not there when
//! the panic is early. The guest can lie here; all it gets for it is another exit code.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const WORDS: &[u8] = b"Kernel panic - not syncing";

#[derive(Debug)]
pub(super) struct PanicWatch {
    matched: usize,
    seen: Arc<AtomicBool>,
}

impl PanicWatch {
    pub(super) fn new(seen: Arc<AtomicBool>) -> Self {
        Self { matched: 0, seen }
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            // The first byte occurs only once, so a mismatch can only begin anew.
            self.matched = match *byte {
                b if b == WORDS[self.matched] => self.matched + 1,
                b if b == WORDS[0] => 1,
                _ => 0,
            };
            if self.matched == WORDS.len() {
                self.matched = 0;
                self.seen.store(true, Ordering::Release);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hears(parts: &[&[u8]]) -> bool {
        let seen = Arc::new(AtomicBool::new(false));
        let mut watch = PanicWatch::new(Arc::clone(&seen));
        for part in parts {
            watch.feed(part);
        }
        seen.load(Ordering::Acquire)
    }

    #[test]
    fn the_words_are_heard_however_they_are_cut() {
        assert!(hears(&[b"[ 1.0] Kernel panic - not syncing: VFS"]));
        assert!(hears(&[b"KernKernel pan", b"ic - not", b" syncing"]));
        assert!(!hears(&[b"Kernel panic - not really syncing"]));
    }
}
