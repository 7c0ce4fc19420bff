//! Which frames a driver wants to receive (VIRTIO 1.3 §5.1.6.5.1 to §5.1.6.5.3).

use serde::{Deserialize, Serialize};

use super::command::Command;

/// Addresses kept of each kind; with more, all of that kind are accepted, as the standard lets a device do.
const TABLE: usize = 64;
const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0];
const BROADCAST: [u8; 6] = [0xff; 6];

/// Addresses of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct MacTable {
    addresses: Vec<[u8; 6]>,
    /// There were more than are kept.
    overflow: bool,
}

impl MacTable {
    fn read(command: &mut Command<'_>) -> Option<Self> {
        let count = usize::try_from(u32::from_le_bytes(command.take()?)).ok()?;
        let mut table = Self {
            addresses: Vec::with_capacity(count.min(TABLE)),
            overflow: count > TABLE,
        };
        for _ in 0..count.min(TABLE) {
            table.addresses.push(command.take()?);
        }
        command.skip(count.saturating_sub(TABLE).checked_mul(6)?)?;
        Some(table)
    }

    fn has(&self, address: [u8; 6]) -> bool {
        self.overflow || self.addresses.contains(&address)
    }
}

/// VLANs, one bit each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Vlans(Vec<u64>);

impl Vlans {
    const WORDS: usize = 4096 / 64;

    fn has(&self, vlan: u16) -> bool {
        self.0
            .get(usize::from(vlan / 64))
            .is_some_and(|word| word & 1 << (vlan % 64) != 0)
    }
}

/// Which frames a driver wants to receive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are switched one by one, as the standard has them"
)]
pub struct ReceiveFilter {
    promiscuous: bool,
    all_multicast: bool,
    all_unicast: bool,
    no_multicast: bool,
    no_unicast: bool,
    no_broadcast: bool,
    /// The device's own address; while it isn't known, all addresses are accepted.
    mac: Option<[u8; 6]>,
    unicast: MacTable,
    multicast: MacTable,
    /// VLANs whose frames are wanted, if the driver filters them.
    vlans: Option<Vlans>,
}

impl ReceiveFilter {
    /// What is wanted before a driver has said anything: all but tagged frames, if it is going to name VLANs.
    pub(super) fn new(mac: Option<[u8; 6]>, vlans: bool) -> Self {
        Self {
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            mac,
            unicast: MacTable::default(),
            multicast: MacTable::default(),
            vlans: vlans.then(|| Vlans(vec![0; Vlans::WORDS])),
        }
    }

    /// Nothing is known of what is wanted, so everything is.
    pub fn unknown() -> Self {
        Self {
            vlans: Some(Vlans(vec![u64::MAX; Vlans::WORDS])),
            ..Self::new(None, false)
        }
    }

    pub(super) fn set_mac(&mut self, mac: Option<[u8; 6]>) {
        self.mac = mac;
    }

    /// Whether a driver could have set this.
    pub(super) fn is_sane(&self) -> bool {
        let tables = [&self.unicast, &self.multicast];
        tables.iter().all(|table| table.addresses.len() <= TABLE)
            && self
                .vlans
                .as_ref()
                .is_none_or(|vlans| vlans.0.len() == Vlans::WORDS)
    }

    /// Everything is wanted.
    pub(super) fn is_open(&self) -> bool {
        self.promiscuous && self.vlans.is_none()
    }

    /// Carries out a command of the classes for receive modes, addresses and VLANs.
    pub(super) fn apply(&mut self, command: &mut Command<'_>) -> Option<()> {
        match (command.class, command.number) {
            (0, mode) => {
                let [on] = command.take()?;
                command.end()?;
                *self.mode(mode)? = on != 0;
            }
            (1, 0) => {
                let unicast = MacTable::read(command)?;
                let multicast = MacTable::read(command)?;
                command.end()?;
                self.unicast = unicast;
                self.multicast = multicast;
            }
            (1, 1) => {
                let mac: [u8; 6] = command.take()?;
                command.end()?;
                if mac[0] & 1 != 0 || mac == [0; 6] {
                    return None;
                }
                self.mac = Some(mac);
            }
            (2, delete) => {
                let vlan = u16::from_le_bytes(command.take()?);
                command.end()?;
                let word = self.vlans.as_mut()?.0.get_mut(usize::from(vlan / 64))?;
                let bit = 1 << (vlan % 64);
                if delete == 0 {
                    *word |= bit;
                } else {
                    *word &= !bit;
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn mode(&mut self, command: u8) -> Option<&mut bool> {
        Some(match command {
            0 => &mut self.promiscuous,
            1 => &mut self.all_multicast,
            2 => &mut self.all_unicast,
            3 => &mut self.no_multicast,
            4 => &mut self.no_unicast,
            5 => &mut self.no_broadcast,
            _ => return None,
        })
    }

    /// Whether the driver wants the frame that begins with `frame`.
    pub fn accepts(&self, frame: &[u8]) -> bool {
        let Some(destination) = frame.first_chunk::<6>() else {
            return false;
        };
        if let (Some(vlans), Some([e0, e1, t0, t1])) = (&self.vlans, frame.get(12..16))
            && [*e0, *e1] == ETHERTYPE_VLAN
        {
            // VLAN 0 is none: such a frame has a priority only.
            let vlan = u16::from_be_bytes([*t0 & 0xf, *t1]);
            if vlan != 0 && !vlans.has(vlan) {
                return false;
            }
        }
        if self.promiscuous {
            true
        } else if *destination == BROADCAST {
            !self.no_broadcast
        } else if destination[0] & 1 != 0 {
            !self.no_multicast && (self.all_multicast || self.multicast.has(*destination))
        } else {
            let own = self.mac.is_none_or(|mac| mac == *destination);
            !self.no_unicast && (self.all_unicast || own || self.unicast.has(*destination))
        }
    }
}
