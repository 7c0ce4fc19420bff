//! What is to be true of a virtual function, as far as its physical function decides it.

use serde::{Deserialize, Serialize};

use crate::mac::Mac;
use crate::vf::Attributes;

/// What is to change about one virtual function; what is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Its address, as the physical function tells it.
    pub mac: Option<Mac>,
    /// The VLAN that the NIC puts it in; 0 for none (IEEE 802.1Q).
    pub vlan: Option<u16>,
    /// The priority in the VLAN tag, 0 to 7.
    pub qos: Option<u8>,
    /// Whether frames with another source address are dropped.
    pub spoofchk: Option<bool>,
    /// Whether it may ask for more addresses and for promiscuous mode.
    pub trust: Option<bool>,
    /// The link that it sees.
    pub state: Option<LinkState>,
    /// Guaranteed rate in Mbit/s; 0 for none.
    pub min_rate: Option<u32>,
    /// Limit of the rate in Mbit/s; 0 for none.
    pub max_rate: Option<u32>,
}

/// The link that a virtual function sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// That of the physical function.
    Auto,
    /// Up whatever the physical function's is, so that VFs reach each other without a cable.
    Enable,
    /// Down.
    Disable,
}

impl Settings {
    /// Settings that make a virtual function what `present` says, as far as its driver tells.
    pub fn all_of(present: &Attributes) -> Self {
        Self {
            mac: Some(present.mac),
            vlan: Some(present.vlan),
            qos: Some(present.qos),
            spoofchk: present.spoofchk,
            trust: present.trust,
            state: present.state,
            min_rate: Some(present.min_rate),
            max_rate: Some(present.max_rate),
        }
    }

    /// The part of these settings that is not true of `present`.
    #[must_use]
    pub fn missing_in(&self, present: &Attributes) -> Self {
        fn unless_same<T: PartialEq>(wanted: Option<T>, present: &T) -> Option<T> {
            wanted.filter(|wanted| wanted != present)
        }
        fn unless_told<T: PartialEq>(wanted: Option<T>, present: Option<&T>) -> Option<T> {
            wanted.filter(|wanted| present != Some(wanted))
        }
        Self {
            mac: unless_same(self.mac, &present.mac),
            vlan: unless_same(self.vlan, &present.vlan),
            qos: unless_same(self.qos, &present.qos),
            spoofchk: unless_told(self.spoofchk, present.spoofchk.as_ref()),
            trust: unless_told(self.trust, present.trust.as_ref()),
            state: unless_told(self.state, present.state.as_ref()),
            min_rate: unless_same(self.min_rate, &present.min_rate),
            max_rate: unless_same(self.max_rate, &present.max_rate),
        }
    }

    /// The words that `ip link set PF vf N` takes for these settings, each with a space before it.
    pub fn as_ip_words(&self) -> String {
        let on = |on: bool| if on { "on" } else { "off" }.to_owned();
        let words = [
            ("mac", self.mac.map(|mac| mac.to_string())),
            ("vlan", self.vlan.map(|vlan| vlan.to_string())),
            ("qos", self.qos.map(|qos| qos.to_string())),
            ("spoofchk", self.spoofchk.map(on)),
            ("trust", self.trust.map(on)),
            (
                "state",
                self.state.map(|state| format!("{state:?}").to_lowercase()),
            ),
            ("min_tx_rate", self.min_rate.map(|rate| rate.to_string())),
            ("max_tx_rate", self.max_rate.map(|rate| rate.to_string())),
        ];
        let words = words
            .into_iter()
            .filter_map(|(word, value)| Some(format!(" {word} {}", value?)));
        words.collect()
    }

    /// The `ip link` command that does the same, for a dry run.
    pub fn as_ip_command(&self, pf: &str, index: u32) -> String {
        format!("ip link set {pf} vf {index}{}", self.as_ip_words())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_holds_needs_no_change() {
        let present = Attributes {
            vlan: 5,
            trust: Some(true),
            ..Attributes::default()
        };
        let settings = |vlan| Settings {
            vlan: Some(vlan),
            trust: Some(true),
            ..Settings::default()
        };
        let nothing = Settings::default();
        assert_eq!(nothing.missing_in(&present), nothing);
        assert_eq!(settings(5).missing_in(&present), nothing);
        let missing = settings(6).missing_in(&present);
        assert_eq!((missing.vlan, missing.trust), (Some(6), None));
        assert_eq!(Settings::all_of(&present).missing_in(&present), nothing);
        assert_eq!(
            settings(6).as_ip_command("eth0", 1),
            "ip link set eth0 vf 1 vlan 6 trust on"
        );
    }
}
