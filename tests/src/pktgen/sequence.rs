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

    /// Takes note of `count` frames that came one after another, numbered from `first` on; true when frames before one of them are
    /// missing so far.
    #[inline]
    pub fn see_run(&mut self, first: u32, count: u32) -> bool {
        if first == self.next {
            self.next = first.wrapping_add(count);
            self.set_run(first, count);
            self.received += u64::from(count);
            return false;
        }
        (0..count).fold(false, |missing, ahead| {
            self.see(first.wrapping_add(ahead)) | missing
        })
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

    /// Sets the bits of `count` numbers, a word at a time.
    #[inline]
    fn set_run(&mut self, first: u32, count: u32) {
        let (mut at, mut left) = (first, count);
        while left > 0 {
            let (word, _) = Self::place(at);
            let here = left.min(64 - at % 64);
            self.seen[word] |= u64::MAX >> (64 - here) << (at % 64);
            at = at.wrapping_add(here);
            left -= here;
        }
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
    fn a_run_counts_as_its_numbers_one_by_one() {
        let runs = [
            (0, 1),
            (1, 63),
            (64, 64),
            (130, 200),
            (128, 2),
            (328, 4),
            (WINDOW * 3 + 7, 129),
            (u32::MAX - 70, 140),
            (3, 70),
        ];
        let (mut whole, mut single) = (Sequence::default(), Sequence::default());
        for (first, count) in runs {
            let missing = whole.see_run(first, count);
            let one_by_one: Vec<bool> = (0..count)
                .map(|ahead| single.see(first.wrapping_add(ahead)))
                .collect();
            assert_eq!(missing, one_by_one.contains(&true), "{first}, {count}");
            let state = |of: &Sequence| (of.next, of.received, of.duplicates, of.reordered, of.seen.clone());
            assert!(state(&whole) == state(&single), "{first}, {count}");
        }
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
