//! The attributes that a physical function holds for its virtual functions, read and set through rtnetlink
//! (`IFLA_VFINFO_LIST`, `linux/if_link.h`).

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkVfInfo, VfInfo, VfInfoLinkState, VfInfoMac, VfInfoRate,
    VfInfoSpoofCheck, VfInfoTrust, VfInfoVlan, VfLinkState,
};
use rtnetlink::{Handle, LinkUnspec};
use serde::Serialize;

use crate::mac::Mac;
use crate::settings::{LinkState, Settings};

/// What the physical function holds for one virtual function.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Attributes {
    /// Index among the virtual functions.
    pub index: u32,
    /// Its address; all zero where none was set.
    pub mac: Mac,
    /// Its VLAN, 0 for none.
    pub vlan: u16,
    /// The priority in the VLAN tag.
    pub qos: u8,
    /// Whether frames with another source address are dropped.
    pub spoofchk: Option<bool>,
    /// Whether it is trusted.
    pub trust: Option<bool>,
    /// The link that it sees.
    pub state: Option<LinkState>,
    /// Guaranteed rate in Mbit/s; 0 for none.
    pub min_rate: u32,
    /// Limit of the rate in Mbit/s; 0 for none.
    pub max_rate: u32,
}

/// A virtual function's attribute that could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum VfError {
    /// No netlink socket.
    #[error("no rtnetlink socket could be opened: {0}")]
    Socket(std::io::Error),
    /// The list could not be read.
    #[error("the virtual functions of {pf} could not be read: {source}")]
    Read {
        /// The PF's interface.
        pf: String,
        /// What the kernel said.
        source: Box<rtnetlink::Error>,
    },
    /// One attribute was refused.
    #[error("{attribute} of VF {index} of {pf} was refused: {source}; {cure}")]
    Set {
        /// The PF's interface.
        pf: String,
        /// The VF.
        index: u32,
        /// `mac`, `vlan`, …
        attribute: &'static str,
        /// What the kernel said.
        source: Box<rtnetlink::Error>,
        /// What to do.
        cure: &'static str,
    },
    /// One attribute was taken without complaint, and is not there.
    #[error(
        "VF {index} of {pf}:{wanted} was taken by the driver without effect; it cannot do that: leave it out, or update the driver or the NIC's firmware"
    )]
    NoEffect {
        /// The PF's interface.
        pf: String,
        /// The VF.
        index: u32,
        /// What was set and does not read back, as `ip link` takes it.
        wanted: String,
    },
    /// The physical function's link could not be set.
    #[error("{pf} could not be set {}: {source}; {cure}", if *up { "up" } else { "down" })]
    Link {
        /// The PF's interface.
        pf: String,
        /// Up or down.
        up: bool,
        /// What the kernel said.
        source: Box<rtnetlink::Error>,
        /// What to do.
        cure: &'static str,
    },
    /// The VLAN or priority does not fit the tag.
    #[error(
        "VLAN {vlan} with priority {qos} fits no IEEE 802.1Q tag: VLANs go from 0 (none) to 4094, priorities from 0 to 7"
    )]
    Vlan {
        /// VLAN ID.
        vlan: u16,
        /// Priority.
        qos: u8,
    },
    /// No such virtual function.
    #[error("{pf} has no VF {index}: it has {count}; `sriov create {pf} N` makes more")]
    Unknown {
        /// The PF's interface.
        pf: String,
        /// What was asked for.
        index: u32,
        /// How many there are.
        count: usize,
    },
}

/// An rtnetlink connection, served by the current tokio runtime.
#[derive(Clone)]
pub struct Netlink(Handle);

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Netlink")
    }
}

impl Netlink {
    /// Opens a socket and serves it on the current runtime.
    pub fn open() -> Result<Self, VfError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(VfError::Socket)?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// The attributes of every virtual function of the interface with `index`.
    pub async fn attributes(&self, pf: &str, index: u32) -> Result<Vec<Attributes>, VfError> {
        let request = self
            .0
            .link()
            .get()
            .match_index(index)
            .set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::Vf]);
        let link = request
            .execute()
            .try_next()
            .await
            .map_err(|source| VfError::Read {
                pf: pf.to_owned(),
                source: Box::new(source),
            })?;
        let lists = link.into_iter().flat_map(|link| link.attributes);
        let infos = lists.filter_map(|attribute| match attribute {
            LinkAttribute::VfInfoList(list) => Some(list),
            _ => None,
        });
        Ok(infos.flatten().map(|info| attributes_of(&info)).collect())
    }

    /// Sets what `settings` names, one attribute after the other, so that a refusal names the one, and reads all of it back.
    pub async fn set(&self, pf: &str, pf_index: u32, vf: u32, settings: &Settings) -> Result<(), VfError> {
        let present = self.attributes(pf, pf_index).await?;
        let Some(present) = present.iter().find(|attributes| attributes.index == vf) else {
            return Err(VfError::Unknown {
                pf: pf.to_owned(),
                index: vf,
                count: present.len(),
            });
        };
        for (attribute, info) in changes(vf, settings, present)? {
            let message = LinkUnspec::new_with_index(pf_index)
                .append_extra_attribute(LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![info])]))
                .build();
            let set = self.0.link().set(message).execute().await;
            set.map_err(|source| VfError::Set {
                pf: pf.to_owned(),
                index: vf,
                attribute,
                cure: cure(&source),
                source: Box::new(source),
            })?;
        }
        let present = self.attributes(pf, pf_index).await?;
        let missing = present
            .iter()
            .find(|attributes| attributes.index == vf)
            .map_or_else(Settings::default, |present| settings.missing_in(present));
        if missing != Settings::default() {
            return Err(VfError::NoEffect {
                pf: pf.to_owned(),
                index: vf,
                wanted: missing.as_ip_words(),
            });
        }
        Ok(())
    }

    /// Sets the interface with `index` up or down.
    pub async fn set_link(&self, pf: &str, index: u32, up: bool) -> Result<(), VfError> {
        let message = LinkUnspec::new_with_index(index);
        let message = if up { message.up() } else { message.down() };
        let set = self.0.link().set(message.build()).execute().await;
        set.map_err(|source| VfError::Link {
            pf: pf.to_owned(),
            up,
            cure: cure(&source),
            source: Box::new(source),
        })
    }
}

fn cure(error: &rtnetlink::Error) -> &'static str {
    let rtnetlink::Error::NetlinkError(message) = error else {
        return "see the kernel log";
    };
    match message.raw_code().unsigned_abs() {
        1 | 13 => "run as root",
        95 => "this driver cannot do that",
        22 => "the driver takes no such value, or the physical function's link must be up first",
        _ => "see the kernel log",
    }
}

/// The netlink attributes that make `present` what `settings` wants.
fn changes(
    vf: u32,
    settings: &Settings,
    present: &Attributes,
) -> Result<Vec<(&'static str, VfInfo)>, VfError> {
    let mut all = Vec::new();
    if let Some(mac) = settings.mac {
        all.push(("mac", VfInfo::Mac(VfInfoMac::new(vf, &mac.0))));
    }
    if settings.vlan.is_some() || settings.qos.is_some() {
        let vlan = settings.vlan.unwrap_or(present.vlan);
        let qos = settings.qos.unwrap_or(present.qos);
        if vlan > 4094 || qos > 7 {
            return Err(VfError::Vlan { vlan, qos });
        }
        all.push(("vlan", VfInfo::Vlan(VfInfoVlan::new(vf, vlan.into(), qos.into()))));
    }
    if let Some(on) = settings.spoofchk {
        all.push(("spoofchk", VfInfo::SpoofCheck(VfInfoSpoofCheck::new(vf, on))));
    }
    if let Some(on) = settings.trust {
        all.push(("trust", VfInfo::Trust(VfInfoTrust::new(vf, on))));
    }
    if let Some(state) = settings.state {
        let state = match state {
            LinkState::Auto => VfLinkState::Auto,
            LinkState::Enable => VfLinkState::Enable,
            LinkState::Disable => VfLinkState::Disable,
        };
        all.push(("state", VfInfo::LinkState(VfInfoLinkState::new(vf, state))));
    }
    if settings.min_rate.is_some() || settings.max_rate.is_some() {
        // One attribute holds both, so the one that is not named is sent as it is.
        let min = settings.min_rate.unwrap_or(present.min_rate);
        let max = settings.max_rate.unwrap_or(present.max_rate);
        all.push(("rate", VfInfo::Rate(VfInfoRate::new(vf, min, max))));
    }
    Ok(all)
}

fn attributes_of(info: &LinkVfInfo) -> Attributes {
    let mut attributes = Attributes::default();
    for value in &info.0 {
        match value {
            VfInfo::Mac(mac) => {
                attributes.index = mac.vf_id;
                attributes.mac.0.copy_from_slice(&mac.mac[..6]);
            }
            VfInfo::Vlan(vlan) => {
                attributes.vlan = u16::try_from(vlan.vlan_id).unwrap_or(0);
                attributes.qos = u8::try_from(vlan.qos).unwrap_or(0);
            }
            VfInfo::SpoofCheck(check) => attributes.spoofchk = Some(check.enabled),
            VfInfo::Trust(trust) => attributes.trust = Some(trust.enabled),
            VfInfo::LinkState(link) => {
                attributes.state = match link.state {
                    VfLinkState::Auto => Some(LinkState::Auto),
                    VfLinkState::Enable => Some(LinkState::Enable),
                    VfLinkState::Disable => Some(LinkState::Disable),
                    _ => None,
                };
            }
            VfInfo::Rate(rate) => {
                attributes.min_rate = rate.min_tx_rate;
                attributes.max_rate = rate.max_tx_rate;
            }
            _ => {}
        }
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_is_not_sent() {
        assert_eq!(
            changes(0, &Settings::default(), &Attributes::default())
                .expect("valid")
                .len(),
            0
        );
    }

    #[test]
    fn the_other_half_of_a_pair_keeps_its_value() {
        let present = Attributes {
            vlan: 100,
            qos: 3,
            max_rate: 5000,
            ..Attributes::default()
        };
        let settings = Settings {
            qos: Some(5),
            min_rate: Some(10),
            ..Settings::default()
        };
        let sent: Vec<VfInfo> = changes(1, &settings, &present)
            .expect("valid")
            .into_iter()
            .map(|(_, info)| info)
            .collect();
        assert_eq!(
            sent,
            [
                VfInfo::Vlan(VfInfoVlan::new(1, 100, 5)),
                VfInfo::Rate(VfInfoRate::new(1, 10, 5000))
            ]
        );
    }

    #[test]
    fn a_tag_that_does_not_exist_is_refused() {
        let settings = Settings {
            vlan: Some(4095),
            ..Settings::default()
        };
        let error = changes(0, &settings, &Attributes::default()).expect_err("no such VLAN");
        assert!(error.to_string().contains("4095"), "{error}");
    }
}
