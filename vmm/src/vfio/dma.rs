//! The memory that devices reach: guest RAM in the IOMMU, and nothing else.
//!
//! All devices of a VM share one address space, in which an address is what it is in the guest. It is made by the kernel's
//! older interface (container and groups) or by the newer one (iommufd and a file for each device), whichever the device has.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use iommufd_ioctls::{IommuFd, IommufdError};
use kvm_bindings::{kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO};
use rustix::process::{Resource, getrlimit};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioDeviceFd, VfioError, VfioIommufd, VfioOps};

use super::host::{Peers, Physical};
use super::{OpenError, Source};
use crate::hv::{Vm, doing};
use crate::memory::{GuestRam, MemoryObserver, RamRegion};

/// How the kernel is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// `/dev/vfio/vfio` and `/dev/vfio/GROUP`.
    Container,
    /// `/dev/iommu` and `/dev/vfio/devices/vfioN`.
    Iommufd,
}

impl Interface {
    /// The one for `source`: the newer one where the kernel has it for this device.
    fn of(source: &Source, iommufd: &Path) -> Self {
        let has_file = source
            .folder()
            .is_none_or(|folder| folder.join("vfio-dev").is_dir());
        if has_file && iommufd.exists() {
            Self::Iommufd
        } else {
            Self::Container
        }
    }
}

/// An address space of devices.
pub struct DmaSpace {
    ops: Arc<dyn VfioOps>,
    iommufd: Option<Arc<VfioIommufd>>,
    interface: Interface,
    ram: GuestRam,
    /// Devices in it; with the first one guest RAM is mapped, with the last one unmapped.
    users: Mutex<usize>,
}

impl fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaSpace")
            .field("interface", &self.interface)
            .field("users", &self.users)
            .finish_non_exhaustive()
    }
}

/// An open device, in its address space until it is dropped.
#[derive(Debug)]
pub struct Attached {
    /// The device. `None` only while it is dropped.
    device: Option<Arc<Physical>>,
    space: Arc<DmaSpace>,
}

impl Attached {
    /// The device.
    pub fn device(&self) -> Option<&Arc<Physical>> {
        self.device.as_ref()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut users = self.space.users();
        *users -= 1;
        if *users == 0 {
            // While there is a device: without one the container has no IOMMU to unmap from.
            self.space.unmap();
        }
        let device = self.device.take();
        // `vfio-ioctls` asks sysfs for the group once more after it has closed the device, and panics when the host, which was
        // waiting for just that, has removed the device meanwhile. The group is closed with the space then.
        if catch_unwind(AssertUnwindSafe(|| drop(device))).is_err() {
            tracing::warn!("the host removed a device as it was closed");
        }
    }
}

/// The address spaces of a VM: one for each of the kernel's interfaces that its devices need, while they need it. A group that
/// had several devices is only closed with the whole space.
#[derive(Default)]
pub struct DmaSpaces {
    spaces: Vec<Weak<DmaSpace>>,
    peers: Peers,
    /// KVM's view of the devices. There can be one in the life of a VM.
    tracking: Option<Arc<VfioDeviceFd>>,
}

impl fmt::Debug for DmaSpaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaSpaces")
            .field("spaces", &self.spaces)
            .finish_non_exhaustive()
    }
}

const IOMMUFD: &str = "/dev/iommu";

impl DmaSpaces {
    /// Opens a device and lets it reach guest RAM.
    pub fn attach(&mut self, source: &Source, vm: &Vm, ram: &GuestRam) -> Result<Attached, OpenError> {
        check(source)?;
        let interface = Interface::of(source, Path::new(IOMMUFD));
        self.spaces.retain(|space| space.strong_count() > 0);
        let mut spaces = self.spaces.iter().filter_map(Weak::upgrade);
        let space = if let Some(space) = spaces.find(|space| space.interface == interface) {
            space
        } else {
            let tracking = self.tracking(source, vm)?;
            let space = Arc::new(DmaSpace::new(interface, source, tracking, ram)?);
            self.spaces.push(Arc::downgrade(&space));
            space
        };
        space.attach(source, &self.peers)
    }

    fn tracking(&mut self, source: &Source, vm: &Vm) -> Result<Arc<VfioDeviceFd>, OpenError> {
        if let Some(tracking) = &self.tracking {
            return Ok(Arc::clone(tracking));
        }
        let mut device = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
            ..Default::default()
        };
        let device = vm
            .fd()
            .create_device(&mut device)
            .map_err(doing("follow devices that are passed through"))
            .map_err(|error| OpenError::Hypervisor(source.clone(), error))?;
        let device = Arc::new(VfioDeviceFd::new_from_kvm(device));
        Ok(Arc::clone(self.tracking.insert(device)))
    }

    /// True if guest RAM is pinned for a device.
    pub fn in_use(&self) -> bool {
        let mut spaces = self.spaces.iter().filter_map(Weak::upgrade);
        spaces.any(|space| *space.users() > 0)
    }
}

/// What can be said before VFIO is asked, and more clearly than it says it.
fn check(source: &Source) -> Result<(), OpenError> {
    let Some(folder) = source.folder() else {
        return Ok(());
    };
    if !folder.exists() {
        return Err(OpenError::Missing(source.clone()));
    }
    let name_of = |link: &str| {
        let target = std::fs::read_link(folder.join(link)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    };
    if name_of("iommu_group").is_none() {
        return Err(OpenError::NoIommu(source.clone()));
    }
    let driver = name_of("driver").unwrap_or_else(|| "nothing".to_owned());
    // Drivers with device-specific help for VFIO are named for their device.
    if driver != "vfio-pci" && !driver.contains("vfio") {
        return Err(OpenError::OtherDriver(source.clone(), driver));
    }
    Ok(())
}

impl DmaSpace {
    fn new(
        interface: Interface,
        source: &Source,
        tracking: Arc<VfioDeviceFd>,
        ram: &GuestRam,
    ) -> Result<Self, OpenError> {
        let refused = |error| refusal(source, error);
        let (ops, iommufd): (Arc<dyn VfioOps>, _) = match interface {
            Interface::Container => (
                Arc::new(VfioContainer::new(Some(tracking)).map_err(refused)?),
                None,
            ),
            Interface::Iommufd => {
                let iommufd = IommuFd::new().map_err(|error| match error {
                    IommufdError::OpenIommufd(error) => {
                        OpenError::Permission(source.clone(), IOMMUFD.into(), error)
                    }
                    other => refused(VfioError::NewVfioIommufd(other)),
                })?;
                let space = VfioIommufd::new(Arc::new(iommufd), None, Some(tracking)).map_err(refused)?;
                let space = Arc::new(space);
                (Arc::clone(&space) as _, Some(space))
            }
        };
        Ok(Self {
            ops,
            iommufd,
            interface,
            ram: ram.clone(),
            users: Mutex::new(0),
        })
    }

    fn users(&self) -> std::sync::MutexGuard<'_, usize> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attach(self: &Arc<Self>, source: &Source, peers: &Peers) -> Result<Attached, OpenError> {
        let device = self.open(source)?;
        let mut users = self.users();
        if *users == 0 {
            self.ram
                .announce(&**self)
                .map_err(|error| OpenError::Memory(source.clone(), error.to_string()))?;
        }
        *users += 1;
        Ok(Attached {
            device: Some(Physical::new(device, source.address(), peers)),
            space: Arc::clone(self),
        })
    }

    fn open(&self, source: &Source) -> Result<VfioDevice, OpenError> {
        let refused = |error| refusal(source, error);
        match (source, &self.iommufd) {
            (Source::Descriptor(fd), Some(space)) => {
                let file = duplicate(*fd).map_err(|e| OpenError::Descriptor(source.clone(), e))?;
                VfioDevice::new_from_fd(File::from(file), Arc::clone(space), true).map_err(refused)
            }
            (Source::Descriptor(_), None) => {
                let error = io::Error::other(format!("this kernel has no {IOMMUFD}"));
                Err(OpenError::Descriptor(source.clone(), error))
            }
            (Source::Address(_) | Source::Folder(_), _) => {
                let folder = source.folder().unwrap_or_default();
                VfioDevice::new(&folder, Arc::clone(&self.ops), true).map_err(refused)
            }
        }
    }

    fn unmap(&self) {
        for region in &self.ram.regions {
            self.ram_removed(region);
        }
    }
}

impl MemoryObserver for DmaSpace {
    fn name(&self) -> &'static str {
        "the IOMMU"
    }

    fn ram_added(&self, region: &RamRegion) -> Result<(), String> {
        let len = usize::try_from(region.len).map_err(|e| e.to_string())?;
        let host = std::ptr::with_exposed_provenance_mut(usize::try_from(region.host_addr).unwrap_or(0));
        // SAFETY: a RamRegion is a live mapping of `len` bytes at `host_addr`, which `self.ram` keeps mapped until after it
        // is unmapped here, and guest memory is only ever used through volatile and atomic accesses.
        let mapped = unsafe { self.ops.vfio_dma_map(region.guest_addr, len, host) };
        mapped.map_err(|error| pinning_refused(&error, region.len))
    }

    fn ram_removed(&self, region: &RamRegion) {
        let Ok(len) = usize::try_from(region.len) else {
            return;
        };
        if let Err(error) = self.ops.vfio_dma_unmap(region.guest_addr, len) {
            tracing::error!(%error, "the IOMMU keeps guest memory mapped until the last device is closed");
        }
    }
}

fn pinning_refused(error: &VfioError, len: u64) -> String {
    let errno = match error {
        VfioError::IommuDmaMap(error) | VfioError::IommufdIoctlError(IommufdError::IommuIoasMap(error)) => {
            error.errno()
        }
        _ => 0,
    };
    let limit = getrlimit(Resource::Memlock).current;
    match limit {
        Some(limit) if errno == libc::ENOMEM => format!(
            "{len} bytes of guest memory have to stay in place and this process may lock {limit} bytes; raise the limit \
             (`ulimit -l`, LimitMEMLOCK=) or lower --memory"
        ),
        _ => error.to_string(),
    }
}

/// Says what VFIO means.
fn refusal(source: &Source, error: VfioError) -> OpenError {
    let source = source.clone();
    match error {
        VfioError::OpenGroup(error, group) if error.raw_os_error() == Some(libc::EBUSY) => {
            OpenError::InUse(source, group)
        }
        VfioError::OpenGroup(error, group) => {
            OpenError::Permission(source, Path::new("/dev/vfio").join(group), error)
        }
        VfioError::OpenContainer(error) => {
            OpenError::Permission(source, PathBuf::from("/dev/vfio/vfio"), error)
        }
        VfioError::OpenDeviceCdev(error) => {
            OpenError::Permission(source, PathBuf::from("/dev/vfio/devices"), error)
        }
        VfioError::GroupViable => OpenError::NotViable(source),
        other => OpenError::Vfio(source, other),
    }
}

/// Another descriptor of what `fd` stands for.
fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes any number and refuses those that are no open descriptor.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newer_interface_is_taken_where_kernel_and_device_have_it() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("0000:01:00.0");
        std::fs::create_dir_all(device.join("vfio-dev/vfio0")).unwrap();
        let here = folder.path();
        let newer = Source::Folder(device);
        let older = Source::Folder(here.join("0000:02:00.0"));
        let absent = here.join("iommu");
        assert_eq!(Interface::of(&newer, here), Interface::Iommufd);
        assert_eq!(Interface::of(&newer, &absent), Interface::Container);
        assert_eq!(Interface::of(&older, here), Interface::Container);
        assert_eq!(Interface::of(&Source::Descriptor(9), here), Interface::Iommufd);
    }

    #[test]
    fn refusals_name_the_cure() {
        let source: Source = "0000:01:10.0".parse().unwrap();
        let busy = io::Error::from_raw_os_error(libc::EBUSY);
        let text = refusal(&source, VfioError::OpenGroup(busy, "9".into())).to_string();
        assert!(text.contains("group 9 is in use"), "{text}");
        let text = refusal(&source, VfioError::GroupViable).to_string();
        assert!(text.contains("sriov bind 0000:01:10.0 --group"), "{text}");
        let none = VfioError::IommuDmaMap(vmm_sys_util::errno::Error::new(libc::EINVAL));
        assert!(!pinning_refused(&none, 1).contains("limit"));
        duplicate(-1).unwrap_err();
    }

    #[test]
    fn a_device_is_looked_at_before_vfio_is_asked() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("0000:01:10.0");
        let source = Source::Folder(device.clone());
        assert!(matches!(check(&source), Err(OpenError::Missing(_))));
        std::fs::create_dir(&device).unwrap();
        assert!(matches!(check(&source), Err(OpenError::NoIommu(_))));
        symlink("/groups/7", device.join("iommu_group")).unwrap();
        assert!(matches!(check(&source), Err(OpenError::OtherDriver(_, driver)) if driver == "nothing"));
        symlink("/drivers/igbvf", device.join("driver")).unwrap();
        assert!(matches!(check(&source), Err(OpenError::OtherDriver(_, driver)) if driver == "igbvf"));
        std::fs::remove_file(device.join("driver")).unwrap();
        symlink("/drivers/vfio-pci", device.join("driver")).unwrap();
        check(&source).unwrap();
    }
}
