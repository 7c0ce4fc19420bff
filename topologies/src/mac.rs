//! Ethernet addresses of NICs: reading them, and making stable ones up.

use sha2::{Digest, Sha256};
use vswitch::mac::MacAddr;

/// The address of a NIC that was given none: locally administered, and the same every time for the same lab, node and
/// NIC number.
pub fn generate(lab: &str, node: &str, nic: usize) -> MacAddr {
    let mut hash = Sha256::new();
    // Names cannot hold a NUL, so no two (lab, node, nic) triples hash the same text.
    hash.update(format!("{lab}\0{node}\0{nic}"));
    let digest = hash.finalize();
    MacAddr::new([0x02, digest[0], digest[1], digest[2], digest[3], digest[4]])
}

/// Reads the address that a lab file gives a NIC, or says what is wrong with it.
pub(crate) fn parse(text: &str) -> Result<MacAddr, String> {
    let mac: MacAddr = text
        .parse()
        .map_err(|error: vswitch::mac::ParseMacError| error.to_string())?;
    if mac.is_zero() {
        return Err(format!(
            "{mac} cannot be a NIC's address; leave `mac` out to have a stable one made"
        ));
    }
    if mac.is_multicast() {
        return Err(format!(
            "{mac} is a group address, which no NIC can have; make the first byte even, as in 02:…"
        ));
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn generated_addresses_are_stable_local_and_distinct() {
        // A changed value here would give the NICs of running labs new addresses after an update.
        assert_eq!(generate("iperf", "a", 0).to_string(), "02:d5:48:04:d5:78");
        let distinct: HashSet<MacAddr> = (0..8)
            .flat_map(|nic| ["a", "b", "a0"].map(|node| generate("iperf", node, nic)))
            .chain([generate("iper", "fa", 0)])
            .collect();
        assert_eq!(distinct.len(), 25);
        assert!(distinct.iter().all(|mac| mac.octets()[0] == 0x02));
    }

    #[test]
    fn only_unicast_addresses_are_read() {
        assert_eq!(
            parse("52:54:00:AB:cd:ef").map(|mac| mac.to_string()),
            Ok("52:54:00:ab:cd:ef".into())
        );
        assert!(parse("52:54:00:ab:cd").unwrap_err().contains("not a MAC address"));
        assert!(parse("01:00:5e:00:00:01").unwrap_err().contains("group address"));
        assert!(
            parse("00:00:00:00:00:00")
                .unwrap_err()
                .contains("leave `mac` out")
        );
    }
}
