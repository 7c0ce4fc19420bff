//! Packages from the Debian archive that this machine's apt knows, without installing any and without being root.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::Progress;

/// Why packages could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    /// A tool is missing.
    #[error("cannot run {tool}: {source}; images are built on Debian and its derivatives, with apt and dpkg")]
    Tool {
        /// The tool.
        tool: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A tool failed.
    #[error(
        "{tool} failed: {message}; is the package list fresh (`apt-get update`) and the archive reachable?"
    )]
    Failed {
        /// The tool.
        tool: &'static str,
        /// Its last words.
        message: String,
    },
    /// A package is unknown.
    #[error(
        "no package {0} in the package lists; run `apt-get update` as root, or add the Debian archive to apt's sources"
    )]
    Unknown(String),
    /// The file system refused.
    #[error("cannot read {path}: {source}")]
    Read {
        /// What.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A package, in the version that apt would install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The names it depends on; of alternatives the first.
    pub depends: Vec<String>,
    /// Is it a library?
    pub library: bool,
}

fn run(tool: &'static str, command: &mut Command) -> Result<Output, DebianError> {
    let output = command
        .env("LC_ALL", "C")
        .output()
        .map_err(|source| DebianError::Tool { tool, source })?;
    if output.status.success() {
        return Ok(output);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.starts_with("W:")).collect();
    Err(DebianError::Failed {
        tool,
        message: lines.last().map_or("no message", |line| line.trim()).to_owned(),
    })
}

/// The package of the kernel that the package `meta` stands for.
pub fn newest_kernel(meta: &str) -> Result<String, DebianError> {
    let mut found = query(&[meta])?;
    let depends = found
        .remove(meta)
        .map(|package| package.depends)
        .unwrap_or_default();
    depends
        .into_iter()
        .find(|name| name.starts_with("linux-image-"))
        .ok_or_else(|| DebianError::Unknown(format!("linux-image-* as a dependency of {meta}")))
}

/// `roots` and all libraries that they need, directly or not.
pub fn closure(roots: &[&str]) -> Result<BTreeMap<String, Package>, DebianError> {
    let mut known: BTreeMap<String, Package> = query(roots)?;
    if let Some(missing) = roots.iter().find(|root| !known.contains_key(**root)) {
        return Err(DebianError::Unknown((*missing).to_owned()));
    }
    let mut dropped = std::collections::BTreeSet::new();
    loop {
        let wanted: Vec<&str> = known
            .values()
            // The kernel's dependencies are tools of an installed system.
            .filter(|package| !package.name.starts_with("linux-image-"))
            .flat_map(|package| package.depends.iter())
            .filter(|name| !known.contains_key(*name) && !dropped.contains(*name))
            .map(String::as_str)
            .collect();
        if wanted.is_empty() {
            return Ok(known);
        }
        let found = query(&wanted)?;
        dropped.extend(wanted.into_iter().map(str::to_owned));
        known.extend(found.into_iter().filter(|(_, package)| package.library));
    }
}

/// Those of `names` that there are.
fn query(names: &[&str]) -> Result<BTreeMap<String, Package>, DebianError> {
    let mut command = Command::new("apt-cache");
    command
        .args(["show", "--no-all-versions", "--"])
        .args(names)
        .env("LC_ALL", "C");
    // It fails if one of the names is not there, and still tells of the others.
    let output = command.output().map_err(|source| DebianError::Tool {
        tool: "apt-cache",
        source,
    })?;
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

fn parse(text: &str) -> BTreeMap<String, Package> {
    let mut packages = BTreeMap::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            stanza
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .unwrap_or_default()
        };
        let (name, version) = (field("Package").to_owned(), field("Version").to_owned());
        if name.is_empty() || version.is_empty() {
            continue;
        }
        let mut depends: Vec<String> = Vec::new();
        for dependency in field("Pre-Depends").split(',').chain(field("Depends").split(',')) {
            let end = dependency
                .trim()
                .split([' ', ':', '|', '('])
                .next()
                .unwrap_or_default();
            if !end.is_empty() && !depends.iter().any(|known| known == end) {
                depends.push(end.to_owned());
            }
        }
        let library = field("Section").rsplit('/').next() == Some("libs");
        packages.insert(
            name.clone(),
            Package {
                name,
                version,
                depends,
                library,
            },
        );
    }
    packages
}

/// Download what is not yet in `folder`; returns the files by package name. Apt checks them against the signed package lists.
pub fn fetch<'a>(
    packages: impl IntoIterator<Item = &'a Package>,
    folder: &Path,
    progress: Progress<'_>,
) -> Result<BTreeMap<String, PathBuf>, DebianError> {
    let refused = |source| DebianError::Read {
        path: folder.to_path_buf(),
        source,
    };
    // Into a folder of its own, so that a file under its final name is always whole.
    let partial = tempfile::Builder::new()
        .prefix(".partial-")
        .tempdir_in(folder)
        .map_err(refused)?;
    let wanted: Vec<&Package> = packages.into_iter().collect();
    let names = file_names(&wanted, partial.path())?;
    let mut files = BTreeMap::new();
    let mut missing = Vec::new();
    for package in wanted {
        let reference = reference(package);
        let Some(name) = names.get(&package.name) else {
            return Err(DebianError::Unknown(reference));
        };
        let path = folder.join(name);
        if !path.exists() {
            missing.push(reference);
        }
        files.insert(package.name.clone(), path);
    }
    if missing.is_empty() {
        return Ok(files);
    }
    progress(&format!("downloading {} packages", missing.len()));
    run(
        "apt-get",
        Command::new("apt-get")
            .args(["-q", "download"])
            .args(&missing)
            .current_dir(partial.path()),
    )?;
    let fetched = list(partial.path())?;
    for path in fetched {
        if let Some(name) = path.file_name() {
            let place = folder.join(name);
            fs::rename(&path, &place).map_err(|source| DebianError::Read { path: place, source })?;
        }
    }
    match files.values().find(|path| !path.exists()) {
        Some(path) => Err(DebianError::Read {
            path: path.clone(),
            source: io::ErrorKind::NotFound.into(),
        }),
        None => Ok(files),
    }
}

fn reference(package: &Package) -> String {
    format!("{}={}", package.name, package.version)
}

/// The names that `apt-get download` in `folder` would give the packages' files, by package.
fn file_names(packages: &[&Package], folder: &Path) -> Result<BTreeMap<String, String>, DebianError> {
    let mut command = Command::new("apt-get");
    command
        .args(["-q", "download", "--print-uris"])
        .args(packages.iter().map(|package| reference(package)));
    let output = run("apt-get", command.current_dir(folder))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let names = text.lines().filter_map(|line| line.split_whitespace().nth(1));
    Ok(names
        .filter(|name| !name.contains('/'))
        .filter_map(|name| Some((name.split_once('_')?.0.to_owned(), name.to_owned())))
        .collect())
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, DebianError> {
    let refused = |source| DebianError::Read {
        path: folder.to_path_buf(),
        source,
    };
    fs::read_dir(folder)
        .map_err(refused)?
        .map(|entry| Ok(entry.map_err(refused)?.path()))
        .collect()
}

/// Unpack a package's files into `root`.
pub fn unpack(deb: &Path, root: &Path) -> Result<(), DebianError> {
    run("dpkg-deb", Command::new("dpkg-deb").arg("-x").arg(deb).arg(root)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_are_read() {
        let text = "Package: iperf3\nVersion: 3.12-1\nPre-Depends: libc6 (>= 2.34)\nDepends: debconf (>= 0.5) | debconf-2.0, \
                    libc6, python3:any, libiperf0 (>= 3.1.3)\nSection: net\n\nPackage: zlib1g\nVersion: 1:1.2\nSection: libs\n\n";
        let packages = parse(text);
        assert_eq!(
            packages["iperf3"].depends,
            ["libc6", "debconf", "python3", "libiperf0"]
        );
        assert!(!packages["iperf3"].library);
        assert_eq!(packages["zlib1g"].version, "1:1.2");
        assert!(packages["zlib1g"].library);
    }

    #[test]
    fn an_unknown_package_is_named() {
        let error = closure(&["no-such-package-anywhere"]).unwrap_err();
        assert!(error.to_string().contains("no-such-package-anywhere"), "{error}");
    }
}
