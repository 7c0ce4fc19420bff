//! What PCI functions there are: physical and virtual functions, their drivers, network devices and IOMMU groups.

use serde::Serialize;

use crate::address::Bdf;
use crate::mac::Mac;
use crate::sysfs::Sysfs;

const DEVICES: &str = "sys/bus/pci/devices";
/// PCI classes "PCI-to-PCI bridge" and "semi-transparent PCI-to-PCI bridge" (PCI Code and ID Assignment Specification).
const CLASS_BRIDGES: [u32; 2] = [0x0604, 0x0609];
/// The flag of an interface that is set up (`linux/if.h`).
const IFF_UP: u32 = 1;
/// PCI base class "network controller".
const CLASS_NETWORK: u32 = 0x02;

/// One PCI function as sysfs shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Function {
    /// Its address.
    pub bdf: Bdf,
    /// PCI vendor ID.
    pub vendor: u16,
    /// PCI device ID.
    pub device: u16,
    /// Class code: base class, subclass, programming interface.
    pub class: u32,
    /// The driver bound to it.
    pub driver: Option<String>,
    /// The only driver that may bind to it, where one was set.
    pub driver_override: Option<String>,
    /// Its network devices.
    pub net: Vec<NetDevice>,
    /// The IOMMU group that it is in; none without an IOMMU.
    pub iommu_group: Option<u32>,
    /// The NUMA node that it is nearest to.
    pub numa_node: Option<i32>,
    /// The ways in which it can be reset, in the order in which the kernel tries them.
    pub reset_methods: Vec<String>,
    /// Its SR-IOV capability, where it is a physical function.
    pub sriov: Option<Sriov>,
    /// Where it is a virtual function, which one.
    pub virtual_function: Option<VirtualFunction>,
}

/// A network device of a PCI function.
#[derive(Debug, Clone, Serialize)]
pub struct NetDevice {
    /// Interface name.
    pub name: String,
    /// Interface index.
    pub index: u32,
    /// Current address.
    pub mac: Mac,
    /// Whether the host has set it up.
    pub up: bool,
    /// Whether it works: `up`, `down`, … (RFC 2863).
    pub operstate: String,
    /// Link speed in Mbit/s, where the link is up.
    pub speed: Option<u32>,
}

/// The SR-IOV capability of a physical function.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sriov {
    /// `TotalVFs`: how many virtual functions it can have.
    pub total_vfs: u32,
    /// `NumVFs`: how many it has.
    pub num_vfs: u32,
}

/// Which virtual function of which physical function.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct VirtualFunction {
    /// The physical function.
    pub pf: Bdf,
    /// The index among its virtual functions, from 0.
    pub index: u32,
}

/// A name that stands for no function.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// No such function or interface.
    #[error(
        "there is no PCI function or interface {name:?}{}; `sriov list --all` shows what there is",
        nearest(name, known)
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// Interfaces of PCI functions.
        known: Vec<String>,
    },
    /// A function without the SR-IOV capability.
    #[error(
        "{0} is no physical function: it has no SR-IOV capability, or SR-IOV is off in the firmware or the driver"
    )]
    NoPf(String),
}

fn nearest(name: &str, known: &[String]) -> String {
    let best = known.iter().max_by(|a, b| {
        let distance = |other: &str| strsim::jaro_winkler(name, other);
        distance(a).total_cmp(&distance(b))
    });
    best.map_or_else(String::new, |best| format!(", did you mean {best:?}?"))
}

impl Function {
    /// The function at `bdf`, if there is one.
    pub fn read(sysfs: &Sysfs, bdf: Bdf) -> Option<Self> {
        let dir = format!("{DEVICES}/{bdf}");
        let vendor = sysfs.number(format!("{dir}/vendor"))?;
        let pf = sysfs
            .link_name(format!("{dir}/physfn"))
            .and_then(|name| name.parse().ok());
        Some(Self {
            bdf,
            vendor,
            device: sysfs.number(format!("{dir}/device"))?,
            class: sysfs.number(format!("{dir}/class"))?,
            driver: sysfs.link_name(format!("{dir}/driver")),
            driver_override: sysfs
                .text(format!("{dir}/driver_override"))
                .filter(|text| text != "(null)"),
            net: net_devices(sysfs, &dir),
            iommu_group: sysfs
                .link_name(format!("{dir}/iommu_group"))
                .and_then(|name| name.parse().ok()),
            // The kernel writes -1 where it knows none.
            numa_node: sysfs.number(format!("{dir}/numa_node")).filter(|node| *node >= 0),
            reset_methods: sysfs
                .text(format!("{dir}/reset_method"))
                .map(|text| text.split_whitespace().map(str::to_owned).collect())
                .unwrap_or_default(),
            sriov: sysfs
                .number(format!("{dir}/sriov_totalvfs"))
                .map(|total_vfs| Sriov {
                    total_vfs,
                    num_vfs: sysfs.number(format!("{dir}/sriov_numvfs")).unwrap_or(0),
                }),
            virtual_function: pf.and_then(|pf| {
                let index = virtual_functions(sysfs, pf)
                    .into_iter()
                    .find(|(_, vf)| *vf == bdf)?
                    .0;
                Some(VirtualFunction { pf, index })
            }),
        })
    }

    /// Whether it is a bridge to another PCI bus, which VFIO never hands to anyone.
    pub fn is_bridge(&self) -> bool {
        CLASS_BRIDGES.contains(&(self.class >> 8))
    }

    /// Whether it is a network controller.
    pub fn is_network(&self) -> bool {
        self.class >> 16 == CLASS_NETWORK
    }

    /// Its first network device.
    pub fn first_net(&self) -> Option<&NetDevice> {
        self.net.first()
    }

    /// The name that people know it by: its interface, else its address.
    pub fn name(&self) -> String {
        self.first_net()
            .map_or_else(|| self.bdf.to_string(), |net| net.name.clone())
    }
}

fn net_devices(sysfs: &Sysfs, dir: &str) -> Vec<NetDevice> {
    let device = |name: String| {
        let net = format!("{dir}/net/{name}");
        Some(NetDevice {
            index: sysfs.number(format!("{net}/ifindex"))?,
            mac: sysfs
                .text(format!("{net}/address"))
                .and_then(|text| text.parse().ok())
                .unwrap_or_default(),
            up: sysfs
                .number(format!("{net}/flags"))
                .is_some_and(|flags: u32| flags & IFF_UP != 0),
            operstate: sysfs
                .text(format!("{net}/operstate"))
                .unwrap_or_else(|| "unknown".to_owned()),
            speed: sysfs.number(format!("{net}/speed")),
            name,
        })
    };
    sysfs
        .names(format!("{dir}/net"))
        .into_iter()
        .filter_map(device)
        .collect()
}

/// Every PCI function, by address.
pub fn functions(sysfs: &Sysfs) -> Vec<Function> {
    let names = sysfs.names(DEVICES);
    let mut all: Vec<Function> = names
        .iter()
        .filter_map(|name| Function::read(sysfs, name.parse().ok()?))
        .collect();
    all.sort_by_key(|function| function.bdf);
    all
}

/// The virtual functions of `pf` with their indexes, in that order.
pub fn virtual_functions(sysfs: &Sysfs, pf: Bdf) -> Vec<(u32, Bdf)> {
    let dir = format!("{DEVICES}/{pf}");
    let mut all: Vec<(u32, Bdf)> = sysfs
        .names(&dir)
        .iter()
        .filter_map(|name| {
            let index = name.strip_prefix("virtfn")?.parse().ok()?;
            let bdf = sysfs.link_name(format!("{dir}/{name}"))?.parse().ok()?;
            Some((index, bdf))
        })
        .collect();
    all.sort_unstable();
    all
}

/// The functions in an IOMMU group, by address.
pub fn group_members(sysfs: &Sysfs, group: u32) -> Vec<Bdf> {
    let mut members: Vec<Bdf> = sysfs
        .names(format!("sys/kernel/iommu_groups/{group}/devices"))
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    members.sort_unstable();
    members
}

/// The function that `name` stands for: an address or an interface.
pub fn find(sysfs: &Sysfs, name: &str) -> Result<Function, InventoryError> {
    if let Some(function) = name.parse().ok().and_then(|bdf| Function::read(sysfs, bdf)) {
        return Ok(function);
    }
    let all = functions(sysfs);
    let known = || {
        all.iter()
            .flat_map(|function| function.net.iter().map(|net| net.name.clone()))
            .collect()
    };
    let found = all
        .iter()
        .find(|function| function.net.iter().any(|net| net.name == name));
    found.cloned().ok_or_else(|| InventoryError::Unknown {
        name: name.to_owned(),
        known: known(),
    })
}

/// The physical function that `name` stands for, with its SR-IOV capability.
pub fn find_pf(sysfs: &Sysfs, name: &str) -> Result<(Function, Sriov), InventoryError> {
    let function = find(sysfs, name)?;
    match function.sriov {
        Some(sriov) => Ok((function, sriov)),
        None => Err(InventoryError::NoPf(name.to_owned())),
    }
}
