//! MAC addresses of virtual functions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// An IEEE 802 MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mac(pub [u8; 6]);

/// A text that is no usable MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no unicast MAC address: write six hexadecimal pairs whose first is even, such as 02:00:00:00:00:01"
)]
pub struct InvalidMac(pub String);

impl Mac {
    /// Whether all its bits are zero, which is how a PF driver shows that none was set.
    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }

    /// The address that virtual function `index` of the PF with address `pf` gets when nobody names one: the same on every boot,
    /// unicast, locally administered.
    pub fn stable(pf: Mac, index: u32) -> Self {
        let digest = Sha256::new()
            .chain_update(b"netyard vf mac")
            .chain_update(pf.0)
            .chain_update(index.to_be_bytes())
            .finalize();
        let mut mac = [0; 6];
        mac.copy_from_slice(&digest[..6]);
        mac[0] = (mac[0] & 0xfc) | 0x02;
        Self(mac)
    }
}

impl FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let refused = || InvalidMac(text.to_owned());
        let mut mac = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut mac {
            let pair = pairs.next().filter(|pair| pair.len() == 2).ok_or_else(refused)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| refused())?;
        }
        let multicast = mac[0] & 1 != 0;
        if pairs.next().is_some() || multicast || text.contains('+') {
            return Err(refused());
        }
        Ok(Self(mac))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ":" };
            write!(f, "{separator}{byte:02x}")?;
        }
        Ok(())
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = InvalidMac;

    fn try_from(text: String) -> Result<Self, InvalidMac> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stable_addresses_are_local_unicast_and_differ() {
        let pf = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        let all: std::collections::HashSet<_> = (0..64).map(|index| Mac::stable(pf, index)).collect();
        assert_eq!(all.len(), 64);
        assert!(all.iter().all(|mac| mac.0[0] & 3 == 2));
        assert_eq!(Mac::stable(pf, 7), Mac::stable(pf, 7));
    }

    #[test]
    fn parses_what_it_prints_and_nothing_else() {
        let mac = Mac([2, 0, 0xab, 0, 0, 1]);
        assert_eq!(mac.to_string().parse(), Ok(mac));
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "01:00:00:00:00:01",
            "02:0:00:00:00:00",
            "+2:00:00:00:00:00",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
