//! Checks one NIC: on a switch, a virtual function, or a PCI device.

use std::ops::RangeInclusive;

use serde_saphyr::{Location, Spanned};
use sriov::address::Bdf;
use sriov::plan::VfName;
use vswitch::mac::MacAddr;

use super::{Checker, QUEUES};
use crate::lab::{Nic, NicKind, SwitchNic, VfNic, bridge_name, port_name};
use crate::mac;
use crate::problem::did_you_mean;
use crate::schema::RawNic;

/// VLANs that a virtual function can be put in (IEEE 802.1Q, 9.6).
pub(super) const VLANS: RangeInclusive<u64> = 1..=4094;

impl Checker<'_> {
    pub(super) fn nic(&mut self, lab: &str, node: &str, index: usize, nic: Spanned<RawNic>) -> Nic {
        let at = nic.referenced;
        let mut nic = nic.value;
        self.one_kind(at, &nic);
        match (nic.switch.take(), nic.vf.take(), nic.pci.take()) {
            (Some(switch), _, _) => self.switch_nic(lab, node, index, &switch, nic),
            (None, Some(vf), _) => self.vf_nic(lab, node, index, &vf, nic),
            (None, None, pci) => self.pci_nic(node, index, pci, nic),
        }
    }

    fn one_kind(&mut self, at: Location, nic: &RawNic) {
        let given: Vec<(&str, Location)> = [("switch", &nic.switch), ("vf", &nic.vf), ("pci", &nic.pci)]
            .into_iter()
            .filter_map(|(key, value)| Some((key, value.as_ref()?.referenced)))
            .collect();
        match given[..] {
            [] => self.refuse(
                at,
                "a NIC is on a switch, a virtual function or a PCI device; add `switch`, `vf` or `pci`",
            ),
            [_] => {}
            [(first, _), (second, at), ..] => self.refuse(
                at,
                format!("a NIC cannot have both `{first}` and `{second}`; remove one of them"),
            ),
        }
    }

    /// Refuses keys that mean nothing for this kind of NIC.
    fn not_for(&mut self, kind: &str, keys: &[(&str, Option<Location>)]) {
        for (key, at) in keys {
            if let Some(at) = at {
                self.refuse(*at, format!("{kind} has no `{key}`; remove it"));
            }
        }
    }

    fn switch_nic(
        &mut self,
        lab: &str,
        node: &str,
        index: usize,
        wanted: &Spanned<String>,
        nic: RawNic,
    ) -> Nic {
        let at = wanted.referenced;
        self.not_for(
            "a NIC on a switch",
            &[
                ("vlan", place(nic.vlan.as_ref())),
                ("promisc", place(nic.promisc.as_ref())),
            ],
        );
        let control_queue = is_true(nic.control_queue.as_ref());
        if control_queue && is_true(nic.isolate.as_ref()) {
            let what = "a NIC with a process of its own";
            self.not_for(what, &[("control_queue", place(nic.control_queue.as_ref()))]);
        }
        let known: Vec<String> = self.switches.iter().map(|switch| switch.name.clone()).collect();
        let switch = self.switches.iter().find(|switch| switch.name == wanted.value);
        let switch_mtu = switch.map_or(vswitch::config::DEFAULT_MTU, |switch| switch.mtu);
        if switch.is_none() {
            let near = did_you_mean(&wanted.value, known.iter().map(String::as_str));
            let list = if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            };
            let wanted = &wanted.value;
            self.refuse(
                at,
                format!("there is no switch `{wanted}`{near} (switches of this lab: {list})"),
            );
        }
        let port = port_name(node, index);
        let socket = self.run.port_socket(&bridge_name(lab, &wanted.value), &port);
        self.socket(&socket, at);
        Nic {
            mac: Some(self.mac_of(lab, node, index, &nic, at)),
            ip: nic.ip.and_then(|ip| self.address(&wanted.value, &port, &ip)),
            // A NIC may be told to send less than its switch carries, never more.
            mtu: self.mtu(nic.mtu, switch_mtu).unwrap_or(switch_mtu),
            kind: NicKind::Switch(SwitchNic {
                switch: wanted.value.clone(),
                queues: self.number("queues", nic.queues, QUEUES).unwrap_or(1),
                isolate: is_true(nic.isolate.as_ref()),
                spoof: nic.spoof.is_none_or(|spoof| spoof.value),
                control_queue,
            }),
        }
    }

    fn vf_nic(&mut self, lab: &str, node: &str, index: usize, vf: &Spanned<String>, nic: RawNic) -> Nic {
        let at = vf.referenced;
        self.not_for(
            "a virtual function",
            &[
                ("queues", place(nic.queues.as_ref())),
                ("isolate", place(nic.isolate.as_ref())),
                ("control_queue", place(nic.control_queue.as_ref())),
            ],
        );
        let name = vf.value.parse::<VfName>().unwrap_or_else(|error| {
            self.refuse(at, error.to_string());
            VfName {
                pf: vf.value.clone(),
                index: None,
            }
        });
        let port = port_name(node, index);
        if name.index.is_some() {
            self.claim_function(format!("VF {}", vf.value), &port, at);
        }
        let vlan = self.number("vlan", nic.vlan.clone(), VLANS);
        // Frames of one VLAN of one physical function meet.
        let network = format!("{} {vlan:?}", name.pf);
        Nic {
            mac: Some(self.mac_of(lab, node, index, &nic, at)),
            ip: nic.ip.and_then(|ip| self.address(&network, &port, &ip)),
            mtu: self
                .mtu(nic.mtu, u16::MAX)
                .unwrap_or(vswitch::config::DEFAULT_MTU),
            kind: NicKind::Vf(VfNic {
                pf: name.pf,
                index: name.index,
                vlan,
                promisc: is_true(nic.promisc.as_ref()),
                spoof: is_true(nic.spoof.as_ref()),
            }),
        }
    }

    fn pci_nic(&mut self, node: &str, index: usize, pci: Option<Spanned<String>>, nic: RawNic) -> Nic {
        let port = port_name(node, index);
        let mut device = Bdf {
            domain: 0,
            bus: 0,
            device: 0,
            function: 0,
        };
        if let Some(pci) = pci {
            let at = pci.referenced;
            self.not_for(
                "a PCI device",
                &[
                    ("mac", place(nic.mac.as_ref())),
                    ("queues", place(nic.queues.as_ref())),
                    ("isolate", place(nic.isolate.as_ref())),
                    ("vlan", place(nic.vlan.as_ref())),
                    ("promisc", place(nic.promisc.as_ref())),
                    ("spoof", place(nic.spoof.as_ref())),
                    ("control_queue", place(nic.control_queue.as_ref())),
                ],
            );
            match pci.value.parse() {
                Ok(bdf) => device = bdf,
                Err(error) => self.refuse(at, format!("{error}")),
            }
            self.claim_function(format!("PCI device {device}"), &port, at);
        }
        Nic {
            mac: None,
            ip: nic
                .ip
                .and_then(|ip| self.address(&format!("pci {device}"), &port, &ip)),
            mtu: self
                .mtu(nic.mtu, u16::MAX)
                .unwrap_or(vswitch::config::DEFAULT_MTU),
            kind: NicKind::Pci { pci: device },
        }
    }

    fn mtu(&mut self, given: Option<Spanned<u64>>, most: u16) -> Option<u16> {
        let low = u64::from(vswitch::config::MIN_MTU);
        self.number("mtu", given, low..=u64::from(most))
    }

    /// The address that the file gives, or one made for this NIC.
    fn mac_of(&mut self, lab: &str, node: &str, index: usize, nic: &RawNic, at: Location) -> MacAddr {
        let given = nic.mac.as_ref().and_then(|text| mac::parse(&text.value).ok());
        given.unwrap_or_else(|| {
            let mac = mac::generate(lab, node, index);
            self.claim_mac(mac, port_name(node, index), at);
            mac
        })
    }

    fn claim_function(&mut self, function: String, owner: &str, at: Location) {
        if let Some(other) = self.functions.get(&function) {
            let text = format!("{function} is NIC {other} already; give one of them another");
            self.refuse(at, text);
        } else {
            self.functions.insert(function, owner.to_owned());
        }
    }
}

fn place<T>(value: Option<&Spanned<T>>) -> Option<Location> {
    value.map(|value| value.referenced)
}

fn is_true(value: Option<&Spanned<bool>>) -> bool {
    value.is_some_and(|value| value.value)
}
