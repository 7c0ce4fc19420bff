//! Huge pages for peers that cannot do without, given back afterwards.

use std::fs;

const COUNT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Huge pages of 2 MiB that are reserved for as long as the value lives.
#[derive(Debug)]
pub struct HugePages {
    count: u64,
}

impl HugePages {
    /// Reserves `count` more than there are.
    ///
    /// # Panics
    /// When the kernel does not give them.
    pub fn reserve(count: u64) -> Self {
        let before = read();
        let kept = Self { count };
        write(before + count);
        let now = read();
        assert!(
            now >= before + count,
            "the kernel gave {} of {count} huge pages of 2 MiB: free some memory, and run as root",
            now.saturating_sub(before)
        );
        kept
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // Others may have reserved some meanwhile.
        write(read().saturating_sub(self.count));
    }
}

fn read() -> u64 {
    let text = fs::read_to_string(COUNT).unwrap_or_else(|error| panic!("{COUNT}: {error}"));
    text.trim().parse().unwrap_or(0)
}

fn write(count: u64) {
    // What came of it is read back where it matters.
    let _ = fs::write(COUNT, count.to_string());
}
