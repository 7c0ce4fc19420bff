//! Kernel images: which kind a file is, and getting it into guest memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{GuestAddress, GuestMemoryMmap};

#[cfg(test)]
mod tests;

/// Kernels start at 1 MiB.
const LOAD_ADDR: u64 = 0x10_0000;
/// Where the 64-bit entry of a bzImage is, from its start.
const ENTRY_64: u64 = 0x200;
/// `XLF_KERNEL_64`: the kernel has a 64-bit entry.
const HAS_ENTRY_64: u16 = 1;
/// The boot protocol that has `xloadflags` and `init_size`.
const PROTOCOL: u16 = 0x020c;
/// The length that an ELF kernel takes on trust.
const ELF_CMDLINE_MAX: usize = 2047;

/// Why a kernel was refused.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("kernel {0} refused: {1}; check --kernel")]
    Read(PathBuf, #[source] std::io::Error),
    /// The file is neither a bzImage nor an ELF file.
    #[error("kernel {0} refused: it is neither a bzImage nor a 64-bit ELF file; give vmlinuz or vmlinux")]
    Unknown(PathBuf),
    /// The bzImage is too old or for 32 bits.
    #[error(
        "kernel {0} refused: it has no 64-bit entry (boot protocol {1:#06x}); give a 64-bit kernel of 3.8 or later"
    )]
    No64(PathBuf, u16),
    /// The ELF kernel has no PVH entry.
    #[error("kernel {0} refused: it has no PVH entry; build it with CONFIG_PVH or give the bzImage")]
    NoPvh(PathBuf),
    /// The kernel does not fit into memory, or the file is damaged.
    #[error("kernel {0} refused: {1}; check the file, or raise --memory")]
    Load(PathBuf, String),
}

/// A kernel file, kept open.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    file: File,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    BzImage,
    Elf,
}

/// A kernel in guest memory.
#[derive(Debug)]
pub enum LoadedKernel {
    /// From a bzImage.
    Linux64(Box<Linux64Kernel>),
    /// From an ELF file.
    Pvh(PvhKernel),
}

/// A bzImage in guest memory.
#[derive(Debug)]
pub struct Linux64Kernel {
    /// Its 64-bit entry.
    pub entry: u64,
    /// The end of what it needs until it has its own memory map.
    pub end: u64,
    /// Its header.
    pub header: setup_header,
}

/// An ELF kernel in guest memory.
#[derive(Debug)]
pub struct PvhKernel {
    /// Its PVH entry.
    pub entry: u32,
    /// The end of its image.
    pub end: u64,
}

impl LoadedKernel {
    /// The first address that is free.
    pub fn end(&self) -> u64 {
        match self {
            Self::Linux64(k) => k.end,
            Self::Pvh(k) => k.end,
        }
    }

    /// The longest command line that it takes, without the terminating zero.
    pub fn cmdline_max(&self) -> usize {
        match self {
            Self::Linux64(k) => usize::try_from(k.header.cmdline_size).unwrap_or(usize::MAX),
            Self::Pvh(_) => ELF_CMDLINE_MAX,
        }
    }

    /// The end of the addresses where an initrd may be.
    pub fn initrd_end(&self) -> u64 {
        match self {
            Self::Linux64(k) => u64::from(k.header.initrd_addr_max) + 1,
            Self::Pvh(_) => u64::MAX,
        }
    }
}

impl Kernel {
    /// Opens a kernel and finds out what it is.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let refused = |e| LoadError::Read(path.to_owned(), e);
        let mut file = File::open(path).map_err(refused)?;
        let mut head = Vec::with_capacity(0x206);
        (&mut file).take(0x206).read_to_end(&mut head).map_err(refused)?;
        let kind = if head.starts_with(b"\x7fELF\x02") {
            Kind::Elf
        } else if head.get(0x202..0x206) == Some(b"HdrS") {
            Kind::BzImage
        } else {
            return Err(LoadError::Unknown(path.to_owned()));
        };
        Ok(Self {
            path: path.to_owned(),
            file,
            kind,
        })
    }

    /// Puts the kernel into guest memory.
    pub fn load(&self, mem: &GuestMemoryMmap) -> Result<LoadedKernel, LoadError> {
        let mut file = self
            .file
            .try_clone()
            .map_err(|e| LoadError::Read(self.path.clone(), e))?;
        file.seek(SeekFrom::Start(0))
            .map_err(|e| LoadError::Read(self.path.clone(), e))?;
        match self.kind {
            Kind::BzImage => self.load_bzimage(mem, &mut file),
            Kind::Elf => self.load_elf(mem, &mut file),
        }
    }

    fn load_bzimage(&self, mem: &GuestMemoryMmap, file: &mut File) -> Result<LoadedKernel, LoadError> {
        let loaded =
            BzImage::load(mem, Some(GuestAddress(LOAD_ADDR)), file, None).map_err(|e| self.broken(&e))?;
        let header = loaded
            .setup_header
            .ok_or_else(|| LoadError::Unknown(self.path.clone()))?;
        if header.version < PROTOCOL || header.xloadflags & HAS_ENTRY_64 == 0 {
            return Err(LoadError::No64(self.path.clone(), header.version));
        }
        // It unpacks itself to where it prefers to be, or in place if that is lower.
        let start = header.pref_address.max(LOAD_ADDR);
        let end = start
            .saturating_add(u64::from(header.init_size))
            .max(loaded.kernel_end);
        Ok(LoadedKernel::Linux64(Box::new(Linux64Kernel {
            entry: LOAD_ADDR + ENTRY_64,
            end,
            header,
        })))
    }

    fn load_elf(&self, mem: &GuestMemoryMmap, file: &mut File) -> Result<LoadedKernel, LoadError> {
        let loaded =
            Elf::load(mem, None, file, Some(GuestAddress(LOAD_ADDR))).map_err(|e| self.broken(&e))?;
        let PvhBootCapability::PvhEntryPresent(GuestAddress(entry)) = loaded.pvh_boot_cap else {
            return Err(LoadError::NoPvh(self.path.clone()));
        };
        let entry = u32::try_from(entry)
            .map_err(|_| LoadError::Load(self.path.clone(), "its entry is above 4 GiB".to_owned()))?;
        Ok(LoadedKernel::Pvh(PvhKernel {
            entry,
            end: loaded.kernel_end,
        }))
    }

    fn broken(&self, error: &linux_loader::loader::Error) -> LoadError {
        LoadError::Load(self.path.clone(), error.to_string())
    }
}
