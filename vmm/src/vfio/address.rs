//! Which device is meant: by PCI address, by folder in sysfs, by descriptor.
//!
//! The `sriov` crate reads PCI addresses, too. It knows nothing of virtual machines, and this crate depends on no other of ours but
//! `virtio`: thirty lines twice are less than an arrow between them.

use std::fmt;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A PCI address: domain, bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bdf {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl Bdf {
    /// From how the kernel has it: device and function are one number.
    pub(super) fn of(domain: u32, bus: u8, function: u8) -> Self {
        Self {
            domain,
            bus,
            device: function >> 3,
            function: function & 7,
        }
    }

    /// The number of the function in its device.
    pub fn function(self) -> u8 {
        self.function
    }

    /// The first function of the same device.
    #[must_use]
    pub fn first(self) -> Self {
        Self { function: 0, ..self }
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl FromStr for Bdf {
    type Err = String;

    /// `0000:01:10.0`, or `01:10.0` in domain 0.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no PCI address; write 0000:01:10.0");
        let hex = |part: &str, digits: std::ops::RangeInclusive<usize>| {
            let fits = digits.contains(&part.len()) && part.bytes().all(|c| c.is_ascii_hexdigit());
            let value = fits.then(|| u32::from_str_radix(part, 16).ok()).flatten();
            value.ok_or_else(wrong)
        };
        let byte = |part: &str| hex(part, 2..=2).and_then(|v| u8::try_from(v).map_err(|_| wrong()));
        let (rest, function) = text.rsplit_once('.').ok_or_else(wrong)?;
        let (rest, device) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let (domain, bus) = match rest.rsplit_once(':') {
            Some((domain, bus)) => (hex(domain, 4..=8)?, bus),
            None => (0, rest),
        };
        let (bus, device) = (byte(bus)?, byte(device)?);
        let function = hex(function, 1..=1)?;
        match u8::try_from(function) {
            Ok(function) if function < 8 && device < 32 => Ok(Self {
                domain,
                bus,
                device,
                function,
            }),
            _ => Err(wrong()),
        }
    }
}

/// Which device of the host is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Source {
    /// The one at this address.
    Address(Bdf),
    /// The one with this folder in sysfs.
    Folder(PathBuf),
    /// The one that this descriptor of `/dev/vfio/devices/vfioN` stands for.
    Descriptor(RawFd),
}

impl Source {
    /// Its folder in sysfs, unless it came as a descriptor.
    pub fn folder(&self) -> Option<PathBuf> {
        match self {
            Self::Address(bdf) => Some(Path::new("/sys/bus/pci/devices").join(bdf.to_string())),
            Self::Folder(path) => Some(path.clone()),
            Self::Descriptor(_) => None,
        }
    }

    /// Its address, unless it came as a descriptor.
    pub fn address(&self) -> Option<Bdf> {
        match self {
            Self::Address(bdf) => Some(*bdf),
            Self::Folder(path) => path.file_name()?.to_str()?.parse().ok(),
            Self::Descriptor(_) => None,
        }
    }

    /// A name for it: its address where that is known.
    pub fn name(&self) -> String {
        match self {
            Self::Folder(path) => path.file_name().map_or_else(
                || path.display().to_string(),
                |name| name.to_string_lossy().into(),
            ),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(bdf) => bdf.fmt(f),
            Self::Folder(path) => path.display().fmt(f),
            Self::Descriptor(fd) => write!(f, "fd={fd}"),
        }
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

impl TryFrom<String> for Source {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(fd) = text.strip_prefix("fd=") {
            let number = fd.parse().ok().filter(|fd| *fd > 2);
            let wrong = || format!("`{text}`: the number of an open descriptor above 2");
            number.map(Self::Descriptor).ok_or_else(wrong)
        } else if text.starts_with('/') {
            let path = Path::new(text);
            let last = path.file_name().map(|name| name.to_string_lossy());
            match last.map(|name| name.parse::<Bdf>()) {
                Some(Ok(_)) => Ok(Self::Folder(path.to_path_buf())),
                _ => Err(format!(
                    "`{text}` is no PCI device's folder; write /sys/bus/pci/devices/0000:01:10.0"
                )),
            }
        } else {
            text.parse().map(Self::Address)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_in_three_ways() {
        let name = |text: &str| text.parse::<Source>().map(|source| source.name());
        assert_eq!(name("01:10.2").unwrap(), "0000:01:10.2");
        assert_eq!(name("10000:e1:00.0").unwrap(), "10000:e1:00.0");
        assert_eq!(name("/sys/bus/pci/devices/0000:01:10.0").unwrap(), "0000:01:10.0");
        assert_eq!(name("fd=7").unwrap(), "fd=7");
        for wrong in [
            "",
            "01:10",
            "1:10.0",
            "01:10.8",
            "01:20.0",
            "01:+1.0",
            "0:01:10.0",
            "/dev/null",
            "fd=2",
            "fd=x",
        ] {
            name(wrong).unwrap_err();
        }
    }
}
