//! Mutations of a corpus, the same ones every time.

/// Numbers that limits are made of.
const EDGES: [u8; 8] = [0, 1, 2, 4, 0x7f, 0x80, 0xfe, 0xff];
/// The longest input.
const LONGEST: usize = 4096;

/// A source of mutations.
#[derive(Debug)]
pub struct Mutator(u64);

impl Mutator {
    /// One whose mutations depend on `seed` alone.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit.max(1)
    }

    fn byte(&mut self) -> u8 {
        let any = u8::try_from(self.below(256)).unwrap_or(0);
        if self.below(2) == 0 {
            EDGES[self.below(EDGES.len())]
        } else {
            any
        }
    }

    /// An input made from one of the corpus by a few changes.
    pub fn next(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = corpus.get(self.below(corpus.len())).cloned().unwrap_or_default();
        for _ in 0..=self.below(6) {
            self.change(&mut input, corpus);
        }
        input.truncate(LONGEST);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(input.len());
        match self.below(8) {
            0 if !input.is_empty() => input[at] ^= 1 << self.below(8),
            1 | 2 if !input.is_empty() => input[at] = self.byte(),
            3 => input.insert(at, self.byte()),
            4 if !input.is_empty() => {
                let end = (at + 1 + self.below(16)).min(input.len());
                input.drain(at..end);
            }
            5 => {
                let end = (at + self.below(64)).min(input.len());
                let copy = input[at..end].to_vec();
                let to = self.below(input.len() + 1);
                input.splice(to..to, copy);
            }
            6 => {
                let other = corpus
                    .get(self.below(corpus.len()))
                    .map_or(&[][..], Vec::as_slice);
                let from = self.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                // A run of anything, over what is there.
                let len = self.below(9).min(input.len() - at.min(input.len()));
                for place in input.iter_mut().skip(at).take(len) {
                    *place = self.byte();
                }
            }
        }
    }
}
