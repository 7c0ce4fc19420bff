//! A command as a driver wrote it, read piece by piece, every byte once.

use virtio::memory::{GuestSlice, read_chain};

/// A command, of which class and number were read.
#[derive(Debug)]
pub(crate) struct Command<'a> {
    pub(super) class: u8,
    pub(super) number: u8,
    list: &'a [GuestSlice<'a>],
    /// Bytes that the driver gave, and those that were read.
    len: usize,
    at: usize,
}

impl<'a> Command<'a> {
    /// The command in a list of `len` bytes; `None` if it is too short for its header.
    pub(crate) fn read(list: &'a [GuestSlice<'a>], len: usize) -> Option<Self> {
        let mut command = Self {
            class: 0,
            number: 0,
            list,
            len,
            at: 0,
        };
        [command.class, command.number] = command.take()?;
        Some(command)
    }

    /// The next `N` bytes; `None` if there are fewer.
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.len - self.at >= N && read_chain(self.list, self.at, &mut bytes) == N).then(|| {
            self.at += N;
            bytes
        })
    }

    /// Passes over `n` bytes without a look.
    pub(super) fn skip(&mut self, n: usize) -> Option<()> {
        if self.len - self.at < n {
            return None;
        }
        self.at += n;
        Some(())
    }

    /// `None` unless all has been read: a command whose length is wrong means something else.
    pub(super) fn end(&self) -> Option<()> {
        (self.at == self.len).then_some(())
    }
}
