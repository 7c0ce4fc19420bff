//! PCI addresses: domain, bus, device and function.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a PCI function sits, written `0000:01:10.0` as in sysfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Bdf {
    /// PCI segment group; more than 16 bits behind some host controllers.
    pub domain: u32,
    /// Bus number.
    pub bus: u8,
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

/// A text that is no PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no PCI address: write it as DOMAIN:BUS:DEVICE.FUNCTION in hexadecimal, such as 0000:01:10.0"
)]
pub struct InvalidBdf(pub String);

impl FromStr for Bdf {
    type Err = InvalidBdf;

    fn from_str(text: &str) -> Result<Self, InvalidBdf> {
        parse(text).ok_or_else(|| InvalidBdf(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Bdf> {
    let (slot, function) = text.rsplit_once('.')?;
    let (bus, device) = slot.rsplit_once(':')?;
    // The domain may be left out, as lspci prints it.
    let (domain, bus) = bus.split_once(':').unwrap_or(("0", bus));
    let hex = |digits: &str, longest: usize| {
        let plain =
            !digits.is_empty() && digits.len() <= longest && digits.bytes().all(|b| b.is_ascii_hexdigit());
        plain.then(|| u32::from_str_radix(digits, 16).ok())?
    };
    let bdf = Bdf {
        domain: hex(domain, 8)?,
        bus: u8::try_from(hex(bus, 2)?).ok()?,
        device: u8::try_from(hex(device, 2)?).ok()?,
        function: u8::try_from(hex(function, 1)?).ok()?,
    };
    (bdf.device < 32 && bdf.function < 8).then_some(bdf)
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

impl From<Bdf> for String {
    fn from(bdf: Bdf) -> Self {
        bdf.to_string()
    }
}

impl TryFrom<String> for Bdf {
    type Error = InvalidBdf;

    fn try_from(text: String) -> Result<Self, InvalidBdf> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_sysfs_does() {
        for text in ["0000:01:10.0", "0000:ff:1f.7", "10000:e1:00.0"] {
            assert_eq!(
                text.parse::<Bdf>().map(|bdf| bdf.to_string()),
                Ok(text.to_owned())
            );
        }
        assert_eq!(
            "01:10.2".parse::<Bdf>().map(|bdf| bdf.to_string()),
            Ok("0000:01:10.2".to_owned())
        );
    }

    #[test]
    fn refuses_what_is_no_address() {
        for text in [
            "",
            "eth0",
            "01:20.0",
            "01:00.8",
            "0000:01:10",
            "0000:01:10.0.1",
            "0000:01:+1.0",
            "../01:10.0",
        ] {
            assert_eq!(text.parse::<Bdf>(), Err(InvalidBdf(text.to_owned())));
        }
    }
}
