//! Initial RAM file systems made from Debian packages: a kernel, its modules, tools with their libraries, the agent and an
//! init. The guest image and the emulated host are both made this way.
//!
//! A build is a folder named for what went into it (package versions, agent, init), so that the same parts never are built
//! twice, a changed part always is, and builders at the same time do not get in each other's way.

pub mod archive;
pub mod cache;
pub mod debian;
pub mod elf;
pub mod modules;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use archive::Archive;
use cache::Cache;
use debian::{DebianError, Package};
use modules::Modules;

/// Changes whenever this code puts the same parts together differently.
const LAYOUT: u32 = 2;

/// The package of every image's shell and small tools.
const BUSYBOX: &str = "busybox-static";

/// Where the agent is inside.
pub const AGENT: &str = "usr/sbin/netyard-agent";

/// Why no image could be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Packages could not be had.
    #[error(transparent)]
    Debian(#[from] DebianError),
    /// A program was not what it must be.
    #[error(transparent)]
    Elf(#[from] elf::ElfError),
    /// A kernel module is missing.
    #[error(transparent)]
    Modules(#[from] modules::ModulesError),
    /// No agent.
    #[error(
        "found no statically linked netyard-agent (looked at {0}); build it with `make build`, or name it in NETYARD_AGENT"
    )]
    NoAgent(String),
    /// A package lacks a file.
    #[error("package {package} has no {file}; this version of it is not known to work")]
    NoFile {
        /// The package.
        package: String,
        /// The file.
        file: String,
    },
    /// A library is in none of the packages.
    #[error("no package among the dependencies holds the library {0}")]
    NoLibrary(String),
    /// The file system refused.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Gives a [`BuildError::File`] for a failed operation on a path.
fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BuildError {
    move |source| BuildError::File {
        what,
        path: path.to_path_buf(),
        source,
    }
}

/// Programs of one package.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    /// The package.
    pub package: &'static str,
    /// The names of programs in it.
    pub programs: &'static [&'static str],
}

/// What an image is made of.
#[derive(Debug, Clone, Copy)]
pub struct Recipe<'a> {
    /// Its name.
    pub name: &'static str,
    /// The package that depends on the newest kernel.
    pub kernel: &'a str,
    /// A folder of modules made for this kernel, all of which are there, instead of the package's where they have the same name.
    pub modules: Option<&'a Path>,
    /// Programs besides busybox and the agent.
    pub tools: &'static [Tool],
    /// Modules that init loads.
    pub load: &'static [&'static str],
    /// Modules that are there for whoever wants them.
    pub available: &'static [&'static str],
    /// Symbolic links as (path, target).
    pub links: &'static [(&'static str, &'static str)],
    /// Text files as (path, mode, contents); one of them is `init`.
    pub files: &'static [(&'static str, u32, &'static str)],
}

impl Recipe<'_> {
    /// Stands for everything that is ours in the image: the recipe itself and the agent.
    fn digest(&self, agent: &[u8]) -> Result<String, BuildError> {
        let mut hash = Sha256::new();
        hash.update(format!("{LAYOUT} {self:?}"));
        for path in self.own_modules()? {
            hash.update(fs::read(&path).map_err(failed("read", &path))?);
        }
        hash.update(agent);
        Ok(hex(&hash.finalize()))
    }

    /// The files in its folder of modules.
    fn own_modules(&self) -> Result<Vec<PathBuf>, BuildError> {
        let Some(folder) = self.modules else {
            return Ok(Vec::new());
        };
        let refused = failed("read", folder);
        let entries: io::Result<Vec<_>> = fs::read_dir(folder).and_then(Iterator::collect);
        let mut paths: Vec<_> = entries
            .map_err(refused)?
            .into_iter()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|kind| kind == "ko"))
            .collect();
        paths.sort();
        Ok(paths)
    }
}

/// What is known of a finished image; `image.json` in its folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The recipe's name.
    pub name: String,
    /// Stands for everything in it; part of the folder's name.
    pub key: String,
    /// Stands for recipe and agent alone.
    pub recipe: String,
    /// The kernel's release.
    pub kernel: String,
    /// Packages and their versions.
    pub packages: BTreeMap<String, String>,
}

/// A finished image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its folder.
    pub folder: PathBuf,
    /// What is known of it.
    pub manifest: Manifest,
}

impl Image {
    /// The kernel, a bzImage.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The initial RAM file system.
    pub fn initrd(&self) -> PathBuf {
        self.folder.join("initrd.cpio")
    }
}

/// Hears what a build is doing; every call is one line for a person.
pub type Progress<'a> = &'a dyn Fn(&str);

/// The newest image in the cache of this very recipe and agent, whatever its packages' versions; else a new one.
pub fn ensure(recipe: &Recipe<'_>, cache: &Cache, progress: Progress<'_>) -> Result<Image, BuildError> {
    let agent = read_agent()?;
    let digest = recipe.digest(&agent)?;
    match cache
        .images(recipe.name)?
        .into_iter()
        .find(|image| image.manifest.recipe == digest)
    {
        Some(image) => Ok(image),
        None => build(recipe, cache, progress),
    }
}

/// The image of the newest versions of all packages that this machine's package lists know; built if it is not in the cache.
pub fn build(recipe: &Recipe<'_>, cache: &Cache, progress: Progress<'_>) -> Result<Image, BuildError> {
    let agent = read_agent()?;
    progress("looking up packages");
    let packages = resolve(recipe)?;
    let mut hash = Sha256::new();
    let recipe_digest = recipe.digest(&agent)?;
    hash.update(&recipe_digest);
    for package in packages.values() {
        hash.update(format!("\n{} {}", package.name, package.version));
    }
    let key = hex(&hash.finalize())[..16].to_owned();

    let _lock = cache.lock(progress)?;
    if let Some(image) = cache
        .images(recipe.name)?
        .into_iter()
        .find(|image| image.manifest.key == key)
    {
        return Ok(image);
    }
    let debs = debian::fetch(packages.values(), &cache.packages_folder()?, progress)?;
    let work = cache.work_folder()?;
    let root = work.path().join("root");
    fs::create_dir(&root).map_err(failed("create", &root))?;
    progress("unpacking packages");
    for deb in debs.values() {
        debian::unpack(deb, &root)?;
    }
    progress("putting the image together");
    let release = kernel_release(&root)?;
    let tree = assemble(recipe, work.path(), &release, &agent)?;

    let finished = work.path().join("image");
    fs::create_dir(&finished).map_err(failed("create", &finished))?;
    let initrd = finished.join("initrd.cpio");
    tree.write(&initrd).map_err(failed("write", &initrd))?;
    let kernel = root.join(format!("boot/vmlinuz-{release}"));
    fs::copy(&kernel, finished.join("vmlinuz")).map_err(failed("copy", &kernel))?;
    let versions = packages
        .into_values()
        .map(|package| (package.name, package.version))
        .collect();
    let manifest = Manifest {
        name: recipe.name.to_owned(),
        key,
        recipe: recipe_digest,
        kernel: release,
        packages: versions,
    };
    cache.publish(&finished, manifest)
}

/// All packages needed: the kernel, busybox, the tools, and the libraries these depend on.
fn resolve(recipe: &Recipe<'_>) -> Result<BTreeMap<String, Package>, BuildError> {
    let kernel = debian::newest_kernel(recipe.kernel)?;
    let mut roots = vec![kernel.as_str(), BUSYBOX];
    roots.extend(recipe.tools.iter().map(|tool| tool.package));
    Ok(debian::closure(&roots)?)
}

fn assemble(recipe: &Recipe<'_>, work: &Path, release: &str, agent: &[u8]) -> Result<Archive, BuildError> {
    let root = &work.join("root");
    let mut tree = Archive::new();
    for folder in [
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "root",
        "var/tmp",
        "etc",
        "usr/bin",
        "usr/sbin",
        "usr/lib64",
    ] {
        tree.folder(folder);
    }
    for (link, target) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/sbin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
    ] {
        tree.symlink(link, target);
    }
    // The kernel opens it for init before anything is mounted.
    tree.character_device("dev/console", 5, 1);
    tree.character_device("dev/null", 1, 3);
    for &(path, mode, text) in recipe.files {
        tree.file(path, mode, text.as_bytes().to_vec());
    }
    for &(path, target) in recipe.links {
        tree.symlink(path, target);
    }
    tree.file(AGENT, 0o755, agent.to_vec());

    let mut programs = Vec::new();
    for tool in recipe.tools {
        for &name in tool.programs {
            let (folder, path) = find_program(root, name).ok_or_else(|| BuildError::NoFile {
                package: tool.package.to_owned(),
                file: name.to_owned(),
            })?;
            let bytes = fs::read(&path).map_err(failed("read", &path))?;
            programs.push((path, bytes.clone()));
            tree.file(&format!("{folder}/{name}"), 0o755, bytes);
        }
    }
    for (place, bytes) in elf::libraries(root, programs)? {
        tree.file(&place, 0o755, bytes);
    }
    add_busybox(&mut tree, root)?;

    let own = own_modules(recipe, root, release)?;
    let modules = Modules::of_kernel(root, release)?;
    let folder = format!("usr/lib/modules/{release}");
    let named = recipe.load.iter().chain(recipe.available).copied();
    let wanted = modules.select(named.chain(own.iter().map(String::as_str)))?;
    for (path, bytes) in modules.collect(&wanted, &work.join("modules"))? {
        tree.file(&format!("{folder}/{path}"), 0o644, bytes);
    }
    let load = modules.not_built_in(recipe.load.iter().copied()).join(" ");
    tree.file("etc/netyard/modules", 0o644, format!("{load}\n").into_bytes());
    Ok(tree)
}

/// Puts the recipe's own modules among the kernel's, where they come before others of their names; gives their names.
fn own_modules(recipe: &Recipe<'_>, root: &Path, release: &str) -> Result<Vec<String>, BuildError> {
    let folder = root.join("lib/modules").join(release).join("updates");
    let mut names = Vec::new();
    for path in recipe.own_modules()? {
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        let name = path.file_name().unwrap_or_default();
        fs::copy(&path, folder.join(name)).map_err(failed("copy", &path))?;
        names.push(name.to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Where packages put a program, with or without `usr`, and its folder in the image.
fn find_program(root: &Path, name: &str) -> Option<(&'static str, PathBuf)> {
    let folders = [
        ("usr/bin", "usr/bin"),
        ("usr/sbin", "usr/sbin"),
        ("usr/bin", "bin"),
        ("usr/sbin", "sbin"),
    ];
    folders
        .into_iter()
        .map(|(place, folder)| (place, root.join(folder).join(name)))
        .find(|(_, path)| path.exists())
}

/// Busybox and a link for each of its applets that no real tool has taken.
fn add_busybox(tree: &mut Archive, root: &Path) -> Result<(), BuildError> {
    let (_, path) = find_program(root, "busybox").ok_or_else(|| BuildError::NoFile {
        package: BUSYBOX.to_owned(),
        file: "busybox".to_owned(),
    })?;
    let bytes = fs::read(&path).map_err(failed("read", &path))?;
    tree.file("usr/bin/busybox", 0o755, bytes);
    let output = std::process::Command::new(&path)
        .arg("--list-full")
        .output()
        .map_err(failed("run", &path))?;
    for applet in String::from_utf8_lossy(&output.stdout).lines() {
        let Some(name) = applet.rsplit('/').next().filter(|name| !name.is_empty()) else {
            continue;
        };
        let folder = if applet.contains("sbin/") {
            "usr/sbin"
        } else {
            "usr/bin"
        };
        if !["usr/bin", "usr/sbin"]
            .iter()
            .any(|folder| tree.contains(&format!("{folder}/{name}")))
        {
            tree.symlink(&format!("{folder}/{name}"), "/usr/bin/busybox");
        }
    }
    Ok(())
}

/// The release of the one kernel unpacked in `root`.
fn kernel_release(root: &Path) -> Result<String, BuildError> {
    let boot = root.join("boot");
    for entry in fs::read_dir(&boot).map_err(failed("read", &boot))? {
        let name = entry
            .map_err(failed("read", &boot))?
            .file_name()
            .to_string_lossy()
            .into_owned();
        if let Some(release) = name.strip_prefix("vmlinuz-") {
            return Ok(release.to_owned());
        }
    }
    Err(BuildError::NoFile {
        package: "the kernel".to_owned(),
        file: "boot/vmlinuz-*".to_owned(),
    })
}

/// The agent's program: `NETYARD_AGENT`, else beside this program, else where `make install` puts it. It has to be static: the
/// image need not have the libraries of this machine.
fn read_agent() -> Result<Vec<u8>, BuildError> {
    let mut places = Vec::new();
    if let Some(path) = std::env::var_os("NETYARD_AGENT") {
        places.push(PathBuf::from(path));
    } else if let Ok(program) = std::env::current_exe() {
        // Test programs lie one folder deeper than the others.
        for folder in program.ancestors().skip(1).take(2) {
            places.push(folder.join("netyard-agent"));
            places.push(folder.join("../guest/netyard-agent"));
            places.push(folder.join("../libexec/netyard/netyard-agent"));
        }
    }
    for path in &places {
        if let Ok(bytes) = fs::read(path)
            && elf::is_static(&bytes)
        {
            return Ok(bytes);
        }
    }
    let places: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
    Err(BuildError::NoAgent(places.join(", ")))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
