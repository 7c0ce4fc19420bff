//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

/// The text was not an Ethernet address.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a MAC address; write six hexadecimal pairs, as in 52:54:00:12:34:56")]
pub struct ParseMacError(String);

impl MacAddr {
    /// The address with these octets, in transmission order.
    pub const fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// The octets in transmission order.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Whether the group bit is set: multicast, broadcast included.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether every bit is zero, which no station may use.
    pub const fn is_zero(self) -> bool {
        matches!(self.0, [0, 0, 0, 0, 0, 0])
    }

    /// Whether a frame may carry this address as its source.
    pub const fn is_valid_source(self) -> bool {
        !self.is_multicast() && !self.is_zero()
    }

    /// Whether this is one of the group addresses that IEEE 802.1D reserves for bridges
    /// (01:80:c2:00:00:00 to :0f), which a bridge never forwards.
    pub const fn is_bridge_reserved(self) -> bool {
        matches!(self.0, [0x01, 0x80, 0xc2, 0x00, 0x00, 0x00..=0x0f])
    }

    /// The address as a number below 2⁴⁸, first octet most significant.
    pub(crate) const fn to_bits(self) -> u64 {
        let [o0, o1, o2, o3, o4, o5] = self.0;
        u64::from_be_bytes([0, 0, o0, o1, o2, o3, o4, o5])
    }

    /// The address whose [`to_bits`](Self::to_bits) are the low 48 bits of `bits`.
    pub(crate) const fn from_bits(bits: u64) -> Self {
        let [_, _, o0, o1, o2, o3, o4, o5] = bits.to_be_bytes();
        Self([o0, o1, o2, o3, o4, o5])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [o0, o1, o2, o3, o4, o5] = self.0;
        write!(f, "{o0:02x}:{o1:02x}:{o2:02x}:{o3:02x}:{o4:02x}:{o5:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseMacError(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().ok_or_else(refuse)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(refuse());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        if parts.next().is_some() {
            return Err(refuse());
        }
        Ok(Self(octets))
    }
}

impl TryFrom<String> for MacAddr {
    type Error = ParseMacError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_octets_round_trip() {
        let mac: MacAddr = "52:54:00:aB:cd:0f".parse().unwrap();
        assert_eq!(mac.octets(), [0x52, 0x54, 0, 0xab, 0xcd, 0x0f]);
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:0f");
        assert_eq!(MacAddr::from_bits(mac.to_bits()), mac);
        assert_eq!("52-54-00-ab-cd-0f".parse::<MacAddr>().unwrap(), mac);
    }

    #[test]
    fn near_misses_are_refused_with_an_example() {
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "5:54:00:12:34:56",
            "+1:54:00:12:34:56",
        ] {
            let error = text.parse::<MacAddr>().unwrap_err().to_string();
            assert!(error.contains("52:54:00:12:34:56"), "{error}");
        }
    }

    #[test]
    fn classes_of_address() {
        let mac = |text: &str| text.parse::<MacAddr>().unwrap();
        assert!(mac("ff:ff:ff:ff:ff:ff").is_multicast());
        assert!(!mac("00:00:00:00:00:00").is_valid_source());
        assert!(mac("01:80:c2:00:00:0e").is_bridge_reserved());
        assert!(!mac("01:80:c2:00:00:10").is_bridge_reserved());
        assert!(mac("52:54:00:12:34:56").is_valid_source());
    }
}
