//! Kernel modules and what they depend on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Why modules could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// `depmod` failed.
    #[error("cannot work out module dependencies with depmod: {0}; install the package kmod")]
    Depmod(String),
    /// No such module.
    #[error("kernel {release} has no module {module}, neither as a file nor built in")]
    Missing {
        /// The kernel.
        release: String,
        /// The module.
        module: String,
    },
    /// The file system refused.
    #[error("cannot read {path}: {source}")]
    Read {
        /// What.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The modules of one kernel.
#[derive(Debug)]
pub struct Modules {
    release: String,
    folder: PathBuf,
    /// By name: the module's file and the files it needs, as in `modules.dep`.
    files: BTreeMap<String, (String, Vec<String>)>,
    built_in: BTreeSet<String>,
}

/// Some modules with everything they need.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Selection {
    dependencies: BTreeMap<String, Vec<String>>,
}

impl Modules {
    /// The modules of kernel `release` unpacked below `root`; writes the dependencies there, which packages come without.
    pub fn of_kernel(root: &Path, release: &str) -> Result<Self, ModulesError> {
        depmod(root, release)?;
        let folder = root.join("lib/modules").join(release);
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|source| ModulesError::Read { path, source })
        };
        let dep = read("modules.dep")?;
        let built_in = read("modules.builtin")?;
        Ok(Self::parse(release, folder, &dep, &built_in))
    }

    fn parse(release: &str, folder: PathBuf, dep: &str, built_in: &str) -> Self {
        let files = dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(file, needs)| {
                let needs = needs.split_whitespace().map(str::to_owned).collect();
                (name_of(file), (file.to_owned(), needs))
            });
        Self {
            release: release.to_owned(),
            folder,
            files: files.collect(),
            built_in: built_in.lines().map(name_of).collect(),
        }
    }

    /// Where the files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The selected modules' files and an index of them alone, as (path relative to the kernel's modules folder, contents). The
    /// folder `work` is used for it.
    pub fn collect(
        &self,
        selection: &Selection,
        work: &Path,
    ) -> Result<Vec<(String, Vec<u8>)>, ModulesError> {
        let target = work.join("lib/modules").join(&self.release);
        let mut collected = Vec::new();
        let lists = ["modules.order", "modules.builtin", "modules.builtin.modinfo"];
        for path in selection.files().chain(lists) {
            let (from, to) = (self.folder.join(path), target.join(path));
            let refused = |source| ModulesError::Read {
                path: from.clone(),
                source,
            };
            let bytes = fs::read(&from).map_err(refused)?;
            to.parent().map_or(Ok(()), fs::create_dir_all).map_err(refused)?;
            fs::write(&to, &bytes).map_err(refused)?;
            if !lists.contains(&path) {
                collected.push((path.to_owned(), bytes));
            }
        }
        depmod(work, &self.release)?;
        for index in INDEXES {
            let path = target.join(index);
            let bytes = fs::read(&path).map_err(|source| ModulesError::Read { path, source })?;
            collected.push((index.to_owned(), bytes));
        }
        Ok(collected)
    }

    /// These modules and all they need. What is built in needs no file.
    pub fn select<'a>(&self, modules: impl IntoIterator<Item = &'a str>) -> Result<Selection, ModulesError> {
        let mut selection = Selection::default();
        for module in modules {
            let name = name_of(module);
            let Some((file, needs)) = self.files.get(&name) else {
                if self.built_in.contains(&name) {
                    continue;
                }
                return Err(ModulesError::Missing {
                    release: self.release.clone(),
                    module: module.to_owned(),
                });
            };
            selection.dependencies.insert(file.clone(), needs.clone());
            for need in needs {
                let of_need = self
                    .files
                    .get(&name_of(need))
                    .map(|(_, needs)| needs.clone())
                    .unwrap_or_default();
                selection.dependencies.insert(need.clone(), of_need);
            }
        }
        Ok(selection)
    }

    /// Those of `modules` that have to be loaded from a file.
    pub fn not_built_in<'a>(&self, modules: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
        modules
            .into_iter()
            .filter(|module| self.files.contains_key(&name_of(module)))
            .collect()
    }
}

impl Selection {
    /// The files, relative to the kernel's modules folder.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.dependencies.keys().map(String::as_str)
    }
}

/// What `depmod` writes and `modprobe` reads, for the modules in `lib/modules` below `root`.
const INDEXES: [&str; 7] = [
    "modules.alias",
    "modules.alias.bin",
    "modules.builtin.alias.bin",
    "modules.builtin.bin",
    "modules.dep",
    "modules.dep.bin",
    "modules.softdep",
];

fn depmod(root: &Path, release: &str) -> Result<(), ModulesError> {
    let mut depmod = Command::new("depmod");
    // Not everybody's PATH has the system administrator's folders.
    let path = std::env::var("PATH").unwrap_or_default();
    depmod.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let output = depmod
        .arg("-b")
        .arg(root)
        .arg(release)
        .output()
        .map_err(|error| ModulesError::Depmod(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(ModulesError::Depmod(
        String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    ))
}

/// The module's name as the kernel says it.
fn name_of(file: &str) -> String {
    let file = file.rsplit('/').next().unwrap_or(file);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/virtio/virtio.ko: kernel/virtio/virtio_ring.ko\n\
                       kernel/virtio/virtio_ring.ko:\n\
                       kernel/net/virtio_net.ko: kernel/net/net_failover.ko kernel/virtio/virtio.ko kernel/virtio/virtio_ring.ko\n\
                       kernel/net/net_failover.ko:\n\
                       kernel/char/virtio-rng.ko.xz: kernel/virtio/virtio.ko kernel/virtio/virtio_ring.ko\n\
                       kernel/sound/noise.ko:\n";

    fn modules() -> Modules {
        Modules::parse(
            "6.1",
            PathBuf::new(),
            DEP,
            "kernel/fs/ext4/ext4.ko\nkernel/net/packet/af_packet.ko\n",
        )
    }

    #[test]
    fn dependencies_come_along_and_nothing_else() {
        let selection = modules().select(["virtio_net"]).unwrap();
        let files: Vec<_> = selection.files().collect();
        assert_eq!(
            files,
            [
                "kernel/net/net_failover.ko",
                "kernel/net/virtio_net.ko",
                "kernel/virtio/virtio.ko",
                "kernel/virtio/virtio_ring.ko"
            ]
        );
    }

    #[test]
    fn dashes_and_underscores_are_one_and_built_in_needs_no_file() {
        let modules = modules();
        assert_eq!(
            modules.select(["virtio_rng", "ext4"]).unwrap(),
            modules.select(["virtio-rng", "af_packet"]).unwrap()
        );
        assert_eq!(modules.not_built_in(["ext4", "virtio-rng"]), ["virtio-rng"]);
    }

    #[test]
    fn a_module_that_is_nowhere_is_named() {
        let error = modules().select(["warp_drive"]).unwrap_err();
        assert!(error.to_string().contains("warp_drive"));
    }
}
