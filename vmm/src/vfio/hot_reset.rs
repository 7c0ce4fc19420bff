//! `VFIO_DEVICE_RESET`, and `VFIO_DEVICE_PCI_HOT_RESET` for devices without a reset of their own: all that is on their bus is reset
//! with them, so all of it has to be this VM's (`linux/vfio.h`).

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ptr, ioctl_with_ptr};

use super::Bdf;

/// `_IO(';', 100 + 11)`.
const RESET: libc::c_ulong = 0x3b6f;
/// `_IO(';', 100 + 12)`.
const AFFECTED: libc::c_ulong = 0x3b70;
/// `_IO(';', 100 + 13)`.
const HOT_RESET: libc::c_ulong = 0x3b71;
/// Words before the list: size, flags, count.
const HEADER: usize = 3;
/// Words of `struct vfio_pci_dependent_device`.
const ENTRY: usize = 2;
/// More functions than a bus and those behind it have in practice.
const MOST: usize = 1024;
/// The list names devices of an iommufd, and not groups.
const BY_DEVICE: u32 = 1;
/// A device that is not in the caller's hands (-1).
const NOT_OWNED: u32 = u32::MAX;

/// Why a device is not reset.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// The reset is one of its bus, which others are on.
    #[error("its only reset is that of its bus, which would reset {} that this VM does not have; give it these, too", list(.0))]
    NotOurs(Vec<Bdf>),
    /// Others on its bus are being used.
    #[error("its only reset is that of its bus, which would reset {} that the guest is using", list(.0))]
    InUse(Vec<Bdf>),
    /// The host has none, or it failed.
    #[error("the host has no reset for it: {0}")]
    Host(#[from] io::Error),
}

fn list(addresses: &[Bdf]) -> String {
    let addresses: Vec<String> = addresses.iter().map(Bdf::to_string).collect();
    addresses.join(", ")
}

/// Resets `device` alone where it can be, and otherwise its bus, if all that is on it is this VM's and none of it `is_used`.
pub(super) fn reset(device: &impl AsRawFd, is_used: impl Fn(Bdf) -> bool) -> Result<(), ResetError> {
    match function(device) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let groups = open_groups(Path::new("/proc/self/fd"))?;
            let groups = permitted(&affected(device)?, &groups, is_used)?;
            Ok(all(device, &groups)?)
        }
        done => Ok(done?),
    }
}

/// The groups to show for a hot reset of `affected`.
fn permitted(
    affected: &[Affected],
    open: &[(u32, RawFd)],
    is_used: impl Fn(Bdf) -> bool,
) -> Result<Vec<RawFd>, ResetError> {
    let addresses = |which: &dyn Fn(&Affected) -> bool| -> Vec<Bdf> {
        let found = affected.iter().filter(|affected| which(affected));
        found.map(|affected| affected.bdf).collect()
    };
    let descriptor = |group: u32| open.iter().find(|(open, _)| *open == group).map(|(_, fd)| *fd);
    let foreign = addresses(&|affected| match affected.held {
        Held::ByGroup(group) => descriptor(group).is_none(),
        Held::Yes => false,
        Held::No => true,
    });
    if !foreign.is_empty() {
        return Err(ResetError::NotOurs(foreign));
    }
    let used = addresses(&|affected| is_used(affected.bdf));
    if !used.is_empty() {
        return Err(ResetError::InUse(used));
    }
    let mut groups: Vec<RawFd> = affected
        .iter()
        .filter_map(|affected| match affected.held {
            Held::ByGroup(group) => descriptor(group),
            Held::Yes | Held::No => None,
        })
        .collect();
    groups.sort_unstable();
    groups.dedup();
    Ok(groups)
}

/// The IOMMU groups that this process has open, and their descriptors. `vfio-ioctls` opens them and does not show them.
fn open_groups(descriptors: &Path) -> io::Result<Vec<(u32, RawFd)>> {
    let entries = std::fs::read_dir(descriptors)?.flatten();
    let group = |entry: std::fs::DirEntry| {
        let target = std::fs::read_link(entry.path()).ok()?;
        let group = target.strip_prefix("/dev/vfio").ok()?.to_str()?.parse().ok()?;
        let descriptor = entry.file_name().to_str()?.parse().ok()?;
        Some((group, descriptor))
    };
    Ok(entries.filter_map(group).collect())
}

/// A device that a hot reset would reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Affected {
    bdf: Bdf,
    held: Held,
}

/// Whether the caller may have it reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// If it has this IOMMU group open.
    ByGroup(u32),
    Yes,
    No,
}

/// Resets the function alone. Fails with `EINVAL` where it has no such reset.
fn function(device: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: the request has no argument.
    check(unsafe { ioctl(device, RESET) })
}

/// What is reset together with `device`, itself among them.
fn affected(device: &impl AsRawFd) -> io::Result<Vec<Affected>> {
    let mut request = vec![0; HEADER + ENTRY * MOST];
    request[0] = u32::try_from(request.len() * size_of::<u32>()).unwrap_or(0);
    // SAFETY: the kernel writes as many bytes at most as the first word says, which is the length of the vector.
    check(unsafe { ioctl_with_mut_ptr(device, AFFECTED, request.as_mut_ptr()) })?;
    Ok(listed(&request))
}

fn listed(answer: &[u32]) -> Vec<Affected> {
    let [_, flags, count, entries @ ..] = answer else {
        return Vec::new();
    };
    let count = usize::try_from(*count).unwrap_or(MOST);
    let entry = |words: &[u32; ENTRY]| {
        let [segment_low, segment_high, bus, function] = words[1].to_le_bytes();
        let segment = u16::from_le_bytes([segment_low, segment_high]);
        let held = match words[0] {
            group if flags & BY_DEVICE == 0 => Held::ByGroup(group),
            NOT_OWNED => Held::No,
            _ => Held::Yes,
        };
        Affected {
            bdf: Bdf::of(segment.into(), bus, function),
            held,
        }
    };
    entries.as_chunks().0.iter().take(count).map(entry).collect()
}

/// Resets all that is affected. `groups` are their open groups, of which devices of an iommufd need none.
fn all(device: &impl AsRawFd, groups: &[RawFd]) -> io::Result<()> {
    let words = HEADER + groups.len();
    let count = u32::try_from(groups.len()).unwrap_or(0);
    let mut request = vec![u32::try_from(words * size_of::<u32>()).unwrap_or(0), 0, count];
    request.extend(groups.iter().map(|group| group.cast_unsigned()));
    // SAFETY: the kernel reads as many descriptors as the third word says, all of which are there, and checks each.
    check(unsafe { ioctl_with_ptr(device, HOT_RESET, request.as_ptr()) })
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two devices on bus 6, as the kernel lists them.
    fn answer(flags: u32, first: u32, second: u32) -> Vec<u32> {
        let place = |function: u8| u32::from_le_bytes([0, 0, 6, function]);
        let entries = [first, place(0x08), second, place(0x10), 9, 9];
        [&[36, flags, 2], &entries[..]].concat()
    }

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    #[test]
    fn what_shares_a_bus_is_read() {
        let (one, other) = (bdf("06:01.0"), bdf("06:02.0"));
        let held = |list: Vec<Affected>| -> Vec<_> { list.iter().map(|a| (a.bdf, a.held)).collect() };
        assert_eq!(
            held(listed(&answer(0, 7, 8))),
            [(one, Held::ByGroup(7)), (other, Held::ByGroup(8))]
        );
        assert_eq!(
            held(listed(&answer(BY_DEVICE, 0, u32::MAX))),
            [(one, Held::Yes), (other, Held::No)]
        );
        assert!(listed(&[12, 0, u32::MAX]).is_empty() && listed(&[]).is_empty());
    }

    #[test]
    fn a_bus_is_reset_when_all_of_it_is_ours_and_at_rest() {
        let rest = |_| false;
        let open = [(7, 20), (8, 21)];
        let by_group = listed(&answer(0, 7, 8));
        assert_eq!(permitted(&by_group, &open, rest).unwrap(), [20, 21]);
        assert_eq!(permitted(&listed(&answer(0, 7, 7)), &open, rest).unwrap(), [20]);
        let text = permitted(&by_group, &open[..1], rest).unwrap_err().to_string();
        assert!(
            text.contains("reset 0000:06:02.0 that this VM does not have"),
            "{text}"
        );
        let used = permitted(&by_group, &open, |address| address == bdf("06:01.0"));
        assert!(matches!(used, Err(ResetError::InUse(list)) if list == [bdf("06:01.0")]));
        let by_device = |second| permitted(&listed(&answer(BY_DEVICE, 1, second)), &[], rest);
        assert!(by_device(0).unwrap().is_empty());
        assert!(matches!(by_device(NOT_OWNED), Err(ResetError::NotOurs(_))));
    }

    #[test]
    fn open_groups_are_found_by_the_names_of_descriptors() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        for (descriptor, target) in [
            ("5", "/dev/vfio/12"),
            ("6", "/dev/vfio/vfio"),
            ("7", "/dev/null"),
            ("8", "/dev/vfio/devices/vfio0"),
        ] {
            symlink(target, folder.path().join(descriptor)).unwrap();
        }
        assert_eq!(open_groups(folder.path()).unwrap(), [(12, 5)]);
    }
}
