//! Reading and writing sysfs and procfs below a root of the caller's choice.

use std::io;
use std::path::{Path, PathBuf};

/// The machine's virtual file systems, or a recorded tree of them.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
    dry_run: bool,
}

/// A file that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysfsError {
    /// The file could not be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file could not be written.
    #[error("{}: {value:?} was refused: {source}{}", path.display(), cure(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// What the system said.
        source: io::Error,
    },
}

fn cure(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::PermissionDenied {
        "; run as root"
    } else {
        ""
    }
}

impl SysfsError {
    /// The system's error number, where it gave one.
    pub fn errno(&self) -> Option<rustix::io::Errno> {
        let (Self::Read { source, .. } | Self::Write { source, .. }) = self;
        rustix::io::Errno::from_io_error(source)
    }
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::at("/")
    }
}

impl Sysfs {
    /// The tree below `root`, which holds `sys`, `proc` and `dev`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            dry_run: false,
        }
    }

    /// The same tree, on which writes are printed instead of done.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Whether writes are only printed.
    pub fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Whether the tree is the one of the machine that this runs on.
    pub fn is_this_machine(&self) -> bool {
        self.root == Path::new("/")
    }

    /// The full path of `relative`, such as `sys/bus/pci/devices`.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// A file's text without white space around it.
    pub fn read(&self, relative: impl AsRef<Path>) -> Result<String, SysfsError> {
        let path = self.path(relative);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(source) => Err(SysfsError::Read { path, source }),
        }
    }

    /// A file's text, where there is such a file with something in it.
    pub fn text(&self, relative: impl AsRef<Path>) -> Option<String> {
        self.read(relative).ok().filter(|text| !text.is_empty())
    }

    /// A decimal or `0x` hexadecimal number in a file.
    pub fn number<T: TryFrom<i64>>(&self, relative: impl AsRef<Path>) -> Option<T> {
        let text = self.text(relative)?;
        let number = match text.strip_prefix("0x") {
            Some(digits) => i64::from_str_radix(digits, 16).ok()?,
            None => text.parse().ok()?,
        };
        T::try_from(number).ok()
    }

    /// A file's bytes, where it can be read.
    pub fn bytes(&self, relative: impl AsRef<Path>) -> Option<Vec<u8>> {
        std::fs::read(self.path(relative)).ok()
    }

    /// The last part of a symbolic link's target.
    pub fn link_name(&self, relative: impl AsRef<Path>) -> Option<String> {
        let target = std::fs::read_link(self.path(relative)).ok()?;
        target.file_name()?.to_str().map(str::to_owned)
    }

    /// The names in a folder, sorted; none where there is no such folder.
    pub fn names(&self, relative: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(relative)) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        names
    }

    /// Whether there is such a file or folder.
    pub fn exists(&self, relative: impl AsRef<Path>) -> bool {
        self.path(relative).exists()
    }

    /// Writes `value` in one system call, as sysfs wants it; in a dry run prints the equivalent shell command.
    pub fn write(&self, relative: impl AsRef<Path>, value: &str) -> Result<(), SysfsError> {
        let path = self.path(relative);
        if self.dry_run {
            println!("echo {:?} > {}", value.trim_end(), path.display());
            return Ok(());
        }
        let written = std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
        written.map_err(|source| SysfsError::Write {
            path,
            value: value.trim_end().to_owned(),
            source,
        })
    }
}
