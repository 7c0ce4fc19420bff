//! One `lab` at a time may change a lab.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Held while a lab is changed; the file is gone afterwards.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
}

/// The lock is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another holds it.
    #[error("lab {lab} is being started or stopped by another `lab` (pid {pid}); wait for it to end")]
    Held {
        /// The lab.
        lab: String,
        /// Who holds it.
        pid: String,
    },
    /// The file system refused.
    #[error("cannot lock {0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

impl Lock {
    /// Takes the lock of `lab` at `path`.
    pub fn take(path: &Path, lab: &str) -> Result<Self, LockError> {
        let refused = |error: io::Error| LockError::Io(path.to_path_buf(), error);
        if let Some(folder) = path.parent() {
            make_folder(folder).map_err(refused)?;
        }
        loop {
            let mut file = OpenOptions::new()
                .create(true)
                .read(true)
                .append(true)
                .mode(0o600)
                .open(path)
                .map_err(refused)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let mut pid = String::new();
                    file.read_to_string(&mut pid).map_err(refused)?;
                    return Err(LockError::Held {
                        lab: lab.to_owned(),
                        pid: pid.trim().to_owned(),
                    });
                }
                Err(error) => return Err(refused(error.into())),
            }
            // Whoever held it may have removed the file meanwhile; then this lock is worth nothing.
            let ours = file.metadata().map_err(refused)?;
            if std::fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (ours.dev(), ours.ino())) {
                file.set_len(0).map_err(refused)?;
                write!(file, "{}", std::process::id()).map_err(refused)?;
                return Ok(Self {
                    path: path.to_path_buf(),
                    file,
                });
            }
        }
    }

    /// Whether somebody holds the lock at `path`.
    pub fn is_held(path: &Path) -> bool {
        File::open(path).is_ok_and(|file| {
            flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
        })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while it is held, so that nobody can wait for a file that is gone without noticing.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!("{} stays behind: {error}", self.path.display());
        }
        if let Err(error) = flock(&self.file, FlockOperation::Unlock) {
            tracing::debug!("{} is unlocked when closed: {error}", self.path.display());
        }
    }
}

/// Makes a folder that only this user can look into.
pub(crate) fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(folder)?;
    std::fs::set_permissions(folder, Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_nothing_stays_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labs").join("x.lock");
        let lock = Lock::take(&path, "x").unwrap();
        assert!(Lock::is_held(&path));
        let second = Lock::take(&path, "x").unwrap_err().to_string();
        let pid = std::process::id();
        assert_eq!(
            second,
            format!("lab x is being started or stopped by another `lab` (pid {pid}); wait for it to end")
        );
        drop(lock);
        assert!(!Lock::is_held(&path));
        assert!(!path.exists());
        drop(Lock::take(&path, "x").unwrap());
    }
}
