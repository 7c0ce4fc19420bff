//! What a function was bound to before it was taken for VFIO, kept on disk so that a crash forgets nothing.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

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
}

/// The folder of such records, one file a function.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
}

/// A record that could not be kept or read.
#[derive(Debug, thiserror::Error)]
#[error("{}: the record of the former driver cannot be {action}: {source}", path.display())]
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

    /// Keeps `before`, unless the function has a record already: the older one knows its real driver.
    pub fn keep(&self, before: &Before) -> Result<(), RecordError> {
        let path = self.path(before.bdf);
        if path.exists() {
            return Ok(());
        }
        write_by_rename(&path, before).map_err(|source| RecordError {
            path,
            action: "written",
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
        let path = self.path(bdf);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RecordError {
                path,
                action: "removed",
                source,
            }),
            _ => Ok(()),
        }
    }
}

fn write_by_rename(path: &Path, before: &Before) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(dir)?;
    let fresh = path.with_extension("new");
    let mut file = std::fs::File::create(&fresh)?;
    file.write_all(&serde_json::to_vec(before)?)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)
}
