//! The folder of images and downloaded packages: one builder at a time, images complete or not there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::FlockOperation;

use super::{BuildError, Image, Manifest, Progress, failed};

const MANIFEST: &str = "image.json";

/// The cache.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// This user's: `NETYARD_CACHE_DIR`, else `netyard` in `XDG_CACHE_HOME`, else in `~/.cache`.
    pub fn of_user() -> Self {
        let named = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let folder = named("NETYARD_CACHE_DIR")
            .or_else(|| Some(named("XDG_CACHE_HOME")?.join("netyard")))
            .or_else(|| Some(named("HOME")?.join(".cache/netyard")))
            .unwrap_or_else(|| PathBuf::from("/var/cache/netyard"));
        Self::in_folder(folder)
    }

    /// One in `folder`.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    fn images_folder(&self) -> PathBuf {
        self.folder.join("images")
    }

    /// Where packages are kept.
    pub(super) fn packages_folder(&self) -> Result<PathBuf, BuildError> {
        let folder = self.folder.join("packages");
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        Ok(folder)
    }

    /// A folder for one build, gone with the value.
    pub(super) fn work_folder(&self) -> Result<tempfile::TempDir, BuildError> {
        let folder = self.images_folder();
        tempfile::Builder::new()
            .prefix(".build-")
            .tempdir_in(&folder)
            .map_err(failed("create a folder in", &folder))
    }

    /// Wait to be the only builder, for as long as the value lives.
    pub(super) fn lock(&self, progress: Progress<'_>) -> Result<File, BuildError> {
        let folder = self.images_folder();
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        let path = folder.join(".lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed("open", &path))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            progress("waiting for another build to finish");
            rustix::fs::flock(&file, FlockOperation::LockExclusive)
                .map_err(|error| failed("lock", &path)(error.into()))?;
        }
        Ok(file)
    }

    /// Finished images called `name`, newest first.
    pub fn images(&self, name: &str) -> Result<Vec<Image>, BuildError> {
        let mut images = self.all_images()?;
        images.retain(|image| image.manifest.name == name);
        Ok(images)
    }

    /// All finished images, newest first.
    pub fn all_images(&self) -> Result<Vec<Image>, BuildError> {
        let folder = self.images_folder();
        let Ok(entries) = fs::read_dir(&folder) else {
            return Ok(Vec::new());
        };
        let mut found: Vec<(SystemTime, Image)> = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("read", &folder))?;
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            let manifest = entry.path().join(MANIFEST);
            let Ok(text) = fs::read(&manifest) else { continue };
            // A manifest of another version of this program is an image that this one does not know.
            let Ok(parsed) = serde_json::from_slice::<Manifest>(&text) else {
                continue;
            };
            let changed = entry
                .metadata()
                .and_then(|metadata| metadata.modified())
                .unwrap_or(SystemTime::UNIX_EPOCH);
            if !hidden {
                found.push((
                    changed,
                    Image {
                        folder: entry.path(),
                        manifest: parsed,
                    },
                ));
            }
        }
        found
            .sort_by(|(a, image_a), (b, image_b)| b.cmp(a).then_with(|| image_a.folder.cmp(&image_b.folder)));
        Ok(found.into_iter().map(|(_, image)| image).collect())
    }

    /// Make a finished folder the image of `manifest`. It is written to the disk before it gets its name.
    pub(super) fn publish(&self, finished: &Path, manifest: Manifest) -> Result<Image, BuildError> {
        let path = finished.join(MANIFEST);
        let mut text = serde_json::to_string_pretty(&manifest).unwrap_or_default();
        text.push('\n');
        fs::write(&path, text).map_err(failed("write", &path))?;
        for entry in fs::read_dir(finished).map_err(failed("read", finished))? {
            let path = entry.map_err(failed("read", finished))?.path();
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(failed("write", &path))?;
        }
        let folder = self
            .images_folder()
            .join(format!("{}-{}", manifest.name, manifest.key));
        if folder.exists() {
            // Only one with a manifest that cannot be read comes here.
            fs::remove_dir_all(&folder).map_err(failed("replace", &folder))?;
        }
        fs::rename(finished, &folder).map_err(failed("create", &folder))?;
        Ok(Image { folder, manifest })
    }
}
