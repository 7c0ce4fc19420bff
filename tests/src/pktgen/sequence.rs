//! Loss, duplicates and reordering from sequence numbers.

/// How far back a duplicate is recognised.
const WINDOW: u32 = 65536;

/// What one stream's receiver has seen.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// One bit for each of the last [`WINDOW`] numbers.
    seen: Vec<u64>,
    /// The number after the highest so far.
    next: u32,
    /// Frames that were new.
    pub received: u64,
    /// Frames that had come before.
    pub duplicates: u64,
    /// Frames that came after a later one.
    pub reordered: u64,
}

impl Default for Sequence {
    fn default() -> Self {
        Self {
            seen: vec![0; WINDOW as usize / 64],
            next: 0,
            received: 0,
            duplicates: 0,
            reordered: 0,
        }
    }
}

impl Sequence {
    /// Takes note of a frame; true when frames before it are missing so far.
    #[inline]
    pub fn see(&mut self, number: u32) -> bool {
        if number == self.next {
            self.next = number.wrapping_add(1);
            self.set(number);
            self.received += 1;
            return false;
        }
        self.see_out_of_order(number)
    }

    fn see_out_of_order(&mut self, number: u32) -> bool {
        let ahead = number.wrapping_sub(self.next);
        if ahead < u32::MAX / 2 {
            // The bits of the numbers that were skipped still say what was a window ago.
            for skipped in 0..=ahead.min(WINDOW) {
                self.clear(self.next.wrapping_add(skipped));
            }
            self.next = number.wrapping_add(1);
            self.set(number);
            self.received += 1;
            return true;
        }
        if self.is_set(number) {
            self.duplicates += 1;
        } else {
            self.set(number);
            self.reordered += 1;
            self.received += 1;
        }
        false
    }

    #[inline]
    fn place(number: u32) -> (usize, u64) {
        let bit = number % WINDOW;
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    #[inline]
    fn set(&mut self, number: u32) {
        let (word, bit) = Self::place(number);
        self.seen[word] |= bit;
    }

    fn clear(&mut self, number: u32) {
        let (word, bit) = Self::place(number);
        self.seen[word] &= !bit;
    }

    fn is_set(&self, number: u32) -> bool {
        let (word, bit) = Self::place(number);
        self.seen[word] & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(numbers: impl IntoIterator<Item = u32>) -> (u64, u64, u64) {
        let mut sequence = Sequence::default();
        for number in numbers {
            sequence.see(number);
        }
        (sequence.received, sequence.duplicates, sequence.reordered)
    }

    #[test]
    fn counts_what_happened() {
        assert_eq!(after([0, 1, 2, 3]), (4, 0, 0));
        assert_eq!(after([0, 2, 1, 3]), (4, 0, 1));
        assert_eq!(after([0, 1, 1, 2, 0]), (3, 2, 0));
        assert_eq!(after([0, 5, 4, 5]), (3, 1, 1));
    }

    #[test]
    fn a_number_of_long_ago_is_not_mistaken_for_a_duplicate() {
        let far = WINDOW + 3;
        assert_eq!(after([3, far - 1, far]), (3, 0, 0));
        assert_eq!(after([0, 3, WINDOW, WINDOW + 4, WINDOW + 3]), (5, 0, 1));
    }

    #[test]
    fn goes_on_after_the_last_number() {
        let mut sequence = Sequence {
            next: u32::MAX,
            ..Sequence::default()
        };
        for number in [u32::MAX, 0, 1, u32::MAX] {
            sequence.see(number);
        }
        assert_eq!((sequence.received, sequence.duplicates), (3, 1));
    }
}
