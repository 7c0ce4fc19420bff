//! The guest image: a stock Debian kernel for virtual machines with busybox, network tools and the agent, all in memory.

use crate::initramfs::cache::Cache;
use crate::initramfs::{self, BuildError, Image, Progress, Recipe, Tool};

/// The name of the guest image.
pub const DEFAULT: &str = "debian";

/// The name of the guest image with drivers for NICs and drives of the host.
pub const WITH_DRIVERS: &str = "debian-hardware";

/// All images that there are recipes for.
const RECIPES: [&Recipe<'static>; 2] = [&GUEST, &HARDWARE];

/// The same with Debian's kernel for real machines and drivers for the PCI devices that guests are given.
const HARDWARE: Recipe<'static> = Recipe {
    name: WITH_DRIVERS,
    kernel: "linux-image-amd64",
    available: &["tun", "8021q", "igb", "igbvf", "e1000e", "nvme", "xhci_pci"],
    ..GUEST
};

const GUEST: Recipe<'static> = Recipe {
    name: DEFAULT,
    kernel: "linux-image-cloud-amd64",
    modules: None,
    tools: &[
        // Busybox's shell takes its own applets for the real ip and tc, whatever PATH says.
        Tool {
            package: "dash",
            programs: &["dash"],
        },
        Tool {
            package: "bash",
            programs: &["bash"],
        },
        Tool {
            package: "iperf3",
            programs: &["iperf3"],
        },
        Tool {
            package: "tcpdump",
            programs: &["tcpdump"],
        },
        Tool {
            package: "ethtool",
            programs: &["ethtool"],
        },
        Tool {
            package: "iproute2",
            programs: &["ip", "ss", "bridge", "tc"],
        },
    ],
    load: &[
        "virtio_pci",
        "virtio_console",
        "virtio_net",
        "virtio_blk",
        "virtio_rng",
        "button",
        "evdev",
        "pvpanic_mmio",
        "pvpanic_pci",
        "af_packet",
        "ext4",
    ],
    available: &["tun", "8021q"],
    links: &[("usr/bin/sh", "dash")],
    files: &[
        ("init", 0o755, include_str!("image/init.sh")),
        ("etc/inittab", 0o644, include_str!("image/inittab")),
        ("etc/netyard/nics", 0o755, include_str!("image/nics.sh")),
        ("etc/profile", 0o644, include_str!("image/profile.sh")),
        (
            "etc/passwd",
            0o644,
            "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        ),
        ("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n"),
        ("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n"),
        (
            "etc/services",
            0o644,
            "ssh 22/tcp\ndomain 53/udp\nhttp 80/tcp\nhttps 443/tcp\n",
        ),
    ],
};

/// Why an image could not be had by name.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No recipe has this name.
    #[error("there is no image called {name}; images that can be built: {known}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// It could not be built.
    #[error("cannot build image {name}: {source}")]
    Build {
        /// The image.
        name: String,
        /// Why.
        source: BuildError,
    },
}

fn recipe(name: &str) -> Result<&'static Recipe<'static>, ImageError> {
    RECIPES
        .into_iter()
        .find(|recipe| recipe.name == name)
        .ok_or_else(|| ImageError::Unknown {
            name: name.to_owned(),
            known: RECIPES.map(|recipe| recipe.name).join(", "),
        })
}

/// The image `name` for a guest to boot: one that is there, or a new one. Takes no look at the package lists if one is there.
pub fn ensure(name: &str, cache: &Cache, progress: Progress<'_>) -> Result<Image, ImageError> {
    let failed = |source| ImageError::Build {
        name: name.to_owned(),
        source,
    };
    initramfs::ensure(recipe(name)?, cache, progress).map_err(failed)
}

/// The image `name` with the newest packages; built unless it is there already.
pub fn build(name: &str, cache: &Cache, progress: Progress<'_>) -> Result<Image, ImageError> {
    let failed = |source| ImageError::Build {
        name: name.to_owned(),
        source,
    };
    initramfs::build(recipe(name)?, cache, progress).map_err(failed)
}
