//! A file tree written as a cpio archive in the kernel's `newc` format: the same tree always gives the same bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use cpio::newc::{self, ModeFileType};

/// The files, by path without a leading slash. Order by path puts every folder before what is in it.
#[derive(Debug, Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    Folder,
    File { mode: u32, bytes: Vec<u8> },
    Symlink(String),
    CharacterDevice { major: u32, minor: u32 },
}

impl Archive {
    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Is there anything at `path`?
    pub fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    /// Add a folder and those it is in.
    pub fn folder(&mut self, path: &str) {
        self.parents(path);
        self.entries.entry(path.to_owned()).or_insert(Entry::Folder);
    }

    /// Add or replace a file, and the folders it is in.
    pub fn file(&mut self, path: &str, mode: u32, bytes: Vec<u8>) {
        self.put(path, Entry::File { mode, bytes });
    }

    /// Add or replace a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.put(path, Entry::Symlink(target.to_owned()));
    }

    /// Add or replace a character device.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.put(path, Entry::CharacterDevice { major, minor });
    }

    fn put(&mut self, path: &str, entry: Entry) {
        self.parents(path);
        self.entries.insert(path.to_owned(), entry);
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            self.entries.entry(path[..at].to_owned()).or_insert(Entry::Folder);
        }
    }

    /// Write the archive to a new file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        self.write_to(BufWriter::new(File::create(path)?))
    }

    /// Write the archive.
    pub fn write_to(&self, mut out: impl Write) -> io::Result<()> {
        for (number, (path, entry)) in (1u32..).zip(&self.entries) {
            let header = newc::Builder::new(path).ino(number);
            let (header, bytes): (_, &[u8]) = match entry {
                Entry::Folder => (
                    header
                        .mode(0o755)
                        .nlink(2)
                        .set_mode_file_type(ModeFileType::Directory),
                    &[],
                ),
                Entry::File { mode, bytes } => (
                    header.mode(*mode).set_mode_file_type(ModeFileType::Regular),
                    bytes,
                ),
                Entry::Symlink(target) => (
                    header.mode(0o777).set_mode_file_type(ModeFileType::Symlink),
                    target.as_bytes(),
                ),
                Entry::CharacterDevice { major, minor } => {
                    let header = header.mode(0o600).set_mode_file_type(ModeFileType::Char);
                    (header.rdev_major(*major).rdev_minor(*minor), &[])
                }
            };
            let len = u32::try_from(bytes.len())
                .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, format!("{path} is over 4 GiB")))?;
            let mut entry = header.write(&mut out, len);
            entry.write_all(bytes)?;
            entry.finish()?;
        }
        newc::trailer(&mut out)?;
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn tree(order: &[usize]) -> Archive {
        let mut tree = Archive::new();
        for step in order {
            match step {
                0 => tree.file("usr/bin/tool", 0o755, b"program".to_vec()),
                1 => tree.symlink("bin", "usr/bin"),
                2 => tree.character_device("dev/console", 5, 1),
                3 => tree.folder("usr/bin"),
                _ => tree.file("init", 0o755, vec![b'x'; 4097]),
            }
        }
        tree
    }

    fn bytes(tree: &Archive) -> Vec<u8> {
        let mut out = Vec::new();
        tree.write_to(&mut out).unwrap();
        out
    }

    #[test]
    fn the_order_of_adding_does_not_matter() {
        let reference = bytes(&tree(&[0, 1, 2, 3, 4]));
        assert!(bytes(&tree(&[4, 3, 2, 1, 0])) == reference);
        assert!(bytes(&tree(&[2, 0, 4, 1])) == reference);
    }

    #[test]
    fn an_independent_reader_finds_every_entry_with_folders_first() {
        let archive = bytes(&tree(&[0, 1, 2, 3, 4]));
        let mut rest = &archive[..];
        let mut seen = Vec::new();
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut contents = Vec::new();
            reader.read_to_end(&mut contents).unwrap();
            let entry = reader.entry();
            assert_eq!((entry.uid(), entry.gid(), entry.mtime()), (0, 0, 0));
            seen.push((entry.name().to_owned(), entry.mode(), contents.len()));
            rest = reader.finish().unwrap();
        }
        let expected = [
            ("bin", 0o120_777, 7),
            ("dev", 0o040_755, 0),
            ("dev/console", 0o020_600, 0),
            ("init", 0o100_755, 4097),
            ("usr", 0o040_755, 0),
            ("usr/bin", 0o040_755, 0),
            ("usr/bin/tool", 0o100_755, 7),
        ];
        assert_eq!(
            seen,
            expected.map(|(name, mode, len)| (name.to_owned(), mode, len))
        );
    }
}
