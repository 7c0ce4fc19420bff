//! What a function was bound to before it was taken for VFIO, kept on disk so that a crash forgets nothing.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::address::Bdf;

/// The state of one function before `bind`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// The function.
    pub bdf: Bdf,
    /// The driver that it was bound to.
    pub driver: Option<String>,
    /// The override that was set.
    pub driver_override: Option<String>,
    /// Who took it, where one has a name: a lab.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// The folder of such records, one file a function.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
}

/// A record that could not be kept or read.
#[derive(Debug, thiserror::Error)]
#[error("{}: the record of what was before cannot be {action}: {source}", path.display())]
pub struct RecordError {
    path: PathBuf,
    action: &'static str,
    source: io::Error,
}

impl Records {
    /// The records in `dir`, which is made when the first is kept.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Where records outlive a crash, but not a boot, which forgets drivers and overrides as well.
    pub fn default_dir() -> PathBuf {
        PathBuf::from("/run/netyard/sriov")
    }

    fn path(&self, bdf: Bdf) -> PathBuf {
        self.dir.join(format!("{bdf}.json"))
    }

    /// Keeps `before` in place of any record that the function has.
    pub fn keep(&self, before: &Before) -> Result<(), RecordError> {
        keep(self.path(before.bdf), before)
    }

    fn autoprobe(&self, pf: Bdf) -> PathBuf {
        self.dir.join(format!("{pf}.autoprobe"))
    }

    /// Keeps that drivers took the virtual functions of `pf` by themselves, before that is turned off for a moment.
    pub fn keep_autoprobe(&self, pf: Bdf) -> Result<(), RecordError> {
        keep(self.autoprobe(pf), &true)
    }

    /// Whether autoprobe of `pf` was turned off for a moment that has not ended, because of a crash.
    pub fn autoprobe_was_on(&self, pf: Bdf) -> bool {
        self.autoprobe(pf).exists()
    }

    /// Forgets it: it is on again.
    pub fn forget_autoprobe(&self, pf: Bdf) -> Result<(), RecordError> {
        remove(self.autoprobe(pf))
    }

    /// Waits to be the only one that prepares functions or gives them back, for as long as the value lives.
    pub fn turn(&self) -> Result<File, RecordError> {
        let path = self.dir.join("lock");
        let locked = std::fs::create_dir_all(&self.dir)
            .and_then(|()| {
                File::options()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(&path)
            })
            .and_then(|file| {
                rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
                Ok(file)
            });
        locked.map_err(|source| RecordError {
            path,
            action: "locked",
            source,
        })
    }

    /// The record of one function.
    pub fn of(&self, bdf: Bdf) -> Result<Option<Before>, RecordError> {
        let path = self.path(bdf);
        let parsed = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(error),
        };
        parsed.map(Some).map_err(|source| RecordError {
            path,
            action: "read",
            source,
        })
    }

    /// The functions that have a record.
    pub fn all(&self) -> Vec<Bdf> {
        let names = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut all: Vec<Bdf> = names
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".json")?.parse().ok())
            .collect();
        all.sort_unstable();
        all
    }

    /// Forgets one function.
    pub fn forget(&self, bdf: Bdf) -> Result<(), RecordError> {
        remove(self.path(bdf))
    }
}

fn remove(path: PathBuf) -> Result<(), RecordError> {
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RecordError {
            path,
            action: "removed",
            source,
        }),
        _ => Ok(()),
    }
}

fn keep(path: PathBuf, value: &impl Serialize) -> Result<(), RecordError> {
    write_by_rename(&path, value).map_err(|source| RecordError {
        path,
        action: "written",
        source,
    })
}

fn write_by_rename(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(dir)?;
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)
}
