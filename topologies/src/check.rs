//! Checks a lab file's contents and fills in the defaults. Every problem is reported, not just the first.

mod nic;

use std::collections::HashMap;
use std::io::Read as _;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_saphyr::{Location, Spanned};
use vswitch::mac::MacAddr;

use crate::image;
use crate::lab::{Boot, Disk, Lab, Nic, Node, Switch, bridge_name, port_name};
use crate::mac;
use crate::memory_size;
use crate::paths::{MAX_SOCKET_PATH, RunDir};
use crate::problem::{Problem, Refused};
use crate::schema::{self, MAX_FILE_BYTES, RawDisk, RawLab, RawNic, RawNode, RawSwitch};

/// Longest name of a lab, a switch or a node: two of them and a dot make a bridge name.
const MAX_NAME: usize = 31;
const CPUS: RangeInclusive<u64> = 1..=32;
const QUEUES: RangeInclusive<u64> = 1..=16;
const AGEING: RangeInclusive<u64> = 1..=1_000_000;
const WORKERS: RangeInclusive<u64> = 1..=64;
const MAX_NICS: usize = 8;
const MAX_DISKS: usize = 8;
/// Least guest memory: below it a distribution's kernel does not unpack its initial RAM file system.
const MIN_MEMORY_MIB: u64 = 128;
/// What a node boots that says nothing of it.
const DEFAULT_IMAGE: &str = image::DEFAULT;
/// The same if it has a NIC of the host.
const HARDWARE_IMAGE: &str = image::WITH_DRIVERS;
const DEFAULT_MEMORY_MIB: u64 = 512;
/// The part of a kernel that says what it is.
const KERNEL_HEADER: u64 = 0x206;
/// The kernel refuses a longer command line; the rest is for the words that the lab adds.
const MAX_CMDLINE: usize = 1024;

/// Reads and checks the lab file `file`. `run` is where the lab's sockets would be.
pub fn load(file: &Path, run: &RunDir) -> Result<Lab, Refused> {
    let text = read(file)?;
    check(file, &text, run)
}

/// The name of the lab in `file`, even when the file has other faults.
pub fn name_of(file: &Path) -> Result<String, Refused> {
    let text = read(file)?;
    schema::parse_name(&text).or_else(|| stem(file)).ok_or_else(|| {
        let text = "this is no lab file: it has no name; name the lab with --lab instead".to_owned();
        Refused::new(
            file,
            vec![Problem {
                line: 0,
                column: 0,
                text,
            }],
        )
    })
}

fn read(file: &Path) -> Result<String, Refused> {
    let whole = |text: String| {
        Refused::new(
            file,
            vec![Problem {
                line: 0,
                column: 0,
                text,
            }],
        )
    };
    let size = std::fs::metadata(file)
        .map_err(|error| whole(format!("cannot be read: {error}")))?
        .len();
    if size > MAX_FILE_BYTES {
        return Err(whole(format!(
            "is {size} bytes long, more than a lab file's {MAX_FILE_BYTES}"
        )));
    }
    std::fs::read_to_string(file).map_err(|error| whole(format!("cannot be read: {error}")))
}

/// Checks the text of a lab file.
pub fn check(file: &Path, text: &str, run: &RunDir) -> Result<Lab, Refused> {
    let raw = schema::parse(file, text)?;
    let mut checker = Checker::new(file, run);
    let lab = checker.lab(raw);
    if checker.problems.is_empty() {
        Ok(lab)
    } else {
        Err(Refused::new(file, checker.problems))
    }
}

/// `iperf` of `labs/iperf.lab.yaml`.
fn stem(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let stem = [".lab.yaml", ".lab.yml", ".yaml", ".yml"]
        .iter()
        .find_map(|end| name.strip_suffix(end))
        .unwrap_or(name);
    Some(stem.to_owned())
}

/// What has been seen of a lab so far.
struct Checker<'a> {
    file: &'a Path,
    run: &'a RunDir,
    problems: Vec<Problem>,
    switches: Vec<Switch>,
    macs: HashMap<MacAddr, String>,
    addresses: HashMap<(String, std::net::IpAddr), String>,
    /// Functions of the host that a NIC is, by what they are called in the file.
    functions: HashMap<String, String>,
}

impl<'a> Checker<'a> {
    fn new(file: &'a Path, run: &'a RunDir) -> Self {
        Self {
            file,
            run,
            problems: Vec::new(),
            switches: Vec::new(),
            macs: HashMap::new(),
            addresses: HashMap::new(),
            functions: HashMap::new(),
        }
    }

    fn refuse(&mut self, at: Location, text: impl Into<String>) {
        self.problems.push(Problem::at(at, text));
    }

    fn lab(&mut self, raw: RawLab) -> Lab {
        let (name, at) = match raw.name {
            Some(name) => (name.value, name.referenced),
            None => (stem(self.file).unwrap_or_default(), Location::UNKNOWN),
        };
        self.name("lab", &name, at);
        for (switch, spec) in raw.switches.0 {
            self.switch(&name, &switch, spec.unwrap_or_default());
        }
        // Addresses that the file gives come before those that are made up, whatever their order.
        let given: Vec<(String, Spanned<String>)> = raw
            .nodes
            .0
            .iter()
            .flat_map(|(node, spec)| {
                spec.nics.iter().enumerate().filter_map(move |(index, nic)| {
                    Some((port_name(&node.value, index), nic.value.mac.clone()?))
                })
            })
            .collect();
        for (owner, text) in given {
            match mac::parse(&text.value) {
                Ok(mac) => self.claim_mac(mac, owner, text.referenced),
                Err(why) => self.refuse(text.referenced, why),
            }
        }
        let nodes: Vec<Node> = raw
            .nodes
            .0
            .into_iter()
            .map(|(node, spec)| self.node(&name, &node, spec))
            .collect();
        if nodes.is_empty() {
            self.refuse(
                Location::UNKNOWN,
                "the lab has no nodes; add at least one under `nodes`",
            );
        }
        Lab {
            name,
            switches: std::mem::take(&mut self.switches),
            nodes,
        }
    }

    fn name(&mut self, what: &str, name: &str, at: Location) {
        // A node's name is its host name as well, so an underscore is for the others only.
        let extra = if what == "node" { "" } else { "_" };
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || extra.contains(c);
        let ends = |c: char| c.is_ascii_alphanumeric();
        let good = (1..=MAX_NAME).contains(&name.len())
            && name.chars().all(allowed)
            && name.starts_with(ends)
            && name.ends_with(ends);
        if !good {
            let and = if extra.is_empty() {
                "and `-`"
            } else {
                "`-` and `_`"
            };
            self.refuse(
                at,
                format!(
                    "`{name}` cannot name a {what}; use 1 to {MAX_NAME} letters, digits, {and}, with a letter or digit \
                     at both ends"
                ),
            );
        }
    }

    fn number<T: TryFrom<u64>>(
        &mut self,
        key: &str,
        given: Option<Spanned<u64>>,
        allowed: RangeInclusive<u64>,
    ) -> Option<T> {
        let given = given?;
        if !allowed.contains(&given.value) {
            let (low, high) = allowed.into_inner();
            self.refuse(
                given.referenced,
                format!("`{key}` cannot be {}; use {low} to {high}", given.value),
            );
            return None;
        }
        T::try_from(given.value).ok()
    }

    fn switch(&mut self, lab: &str, name: &Spanned<String>, spec: RawSwitch) {
        self.name("switch", &name.value, name.referenced);
        let sizes = vswitch::fdb::SIZE_LIMITS;
        let switch = Switch {
            mtu: self
                .number(
                    "mtu",
                    spec.mtu,
                    u64::from(vswitch::config::MIN_MTU)..=u64::from(vswitch::config::MAX_MTU),
                )
                .unwrap_or(vswitch::config::DEFAULT_MTU),
            ageing_s: self.number("ageing", spec.ageing, AGEING),
            fdb_size: self.number(
                "fdb_size",
                spec.fdb_size,
                *sizes.start() as u64..=*sizes.end() as u64,
            ),
            on_full: spec.on_full,
            workers: self.number("workers", spec.workers, WORKERS),
            name: name.value.clone(),
        };
        let api = self.run.bridge(&bridge_name(lab, &switch.name)).join("api.sock");
        self.socket(&api, name.referenced);
        self.switches.push(switch);
    }

    fn socket(&mut self, path: &Path, at: Location) {
        let length = path.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            self.refuse(
                at,
                format!(
                    "its socket {} would have {length} bytes, more than the {MAX_SOCKET_PATH} of a Unix socket; use \
                     shorter names, or a shorter NETYARD_RUN_DIR",
                    path.display()
                ),
            );
        }
    }

    fn node(&mut self, lab: &str, name: &Spanned<String>, spec: RawNode) -> Node {
        let at = name.referenced;
        self.name("node", &name.value, at);
        let agent = spec.agent.as_ref().map(|agent| agent.value);
        let boot = self.boot(&spec);
        if spec.nics.len() > MAX_NICS {
            self.refuse(
                at,
                format!("has {} NICs; a node can have {MAX_NICS}", spec.nics.len()),
            );
        }
        if spec.disks.len() > MAX_DISKS {
            self.refuse(
                at,
                format!("has {} disks; a node can have {MAX_DISKS}", spec.disks.len()),
            );
        }
        if let Some(cmdline) = &spec.cmdline {
            self.cmdline(cmdline);
        }
        let nics: Vec<Nic> = spec
            .nics
            .into_iter()
            .enumerate()
            .map(|(index, nic)| self.nic(lab, &name.value, index, nic))
            .collect();
        for path in self.run.lab(lab).node(&name.value).sockets(nics.len()) {
            if path.as_os_str().len() > MAX_SOCKET_PATH {
                self.socket(&path, at);
                break;
            }
        }
        Node {
            name: name.value.clone(),
            agent: agent.unwrap_or(matches!(boot, Boot::Image(_))),
            boot,
            engine: spec.engine,
            cmdline: spec.cmdline.map(|cmdline| cmdline.value).unwrap_or_default(),
            cpus: self.number("cpus", spec.cpus, CPUS).unwrap_or(1),
            memory_mib: spec
                .memory
                .map_or(DEFAULT_MEMORY_MIB, |memory| self.memory(&memory)),
            nics,
            disks: spec.disks.iter().map(|disk| self.disk(disk)).collect(),
        }
    }

    fn boot(&mut self, spec: &RawNode) -> Boot {
        match (&spec.image, &spec.kernel) {
            (Some(image), Some(_)) => {
                self.refuse(
                    image.referenced,
                    "a node boots an image or a kernel; remove `image` or `kernel`",
                );
            }
            (Some(image), None) => {
                if let Some(initrd) = &spec.initrd {
                    self.refuse(
                        initrd.referenced,
                        "an image has its own initrd; remove `initrd`, or give a `kernel`",
                    );
                }
                self.name("image", &image.value, image.referenced);
                if image.value == DEFAULT_IMAGE && Self::default_image(spec) != DEFAULT_IMAGE {
                    self.refuse(
                        image.referenced,
                        format!(
                            "image `{DEFAULT_IMAGE}` has no drivers for NICs of the host; use `{HARDWARE_IMAGE}`, or leave `image` out"
                        ),
                    );
                }
                return Boot::Image(image.value.clone());
            }
            (None, Some(kernel)) => {
                let at = kernel.referenced;
                let kernel = self.existing(kernel);
                if is_kernel(&kernel) == Some(false) {
                    self.refuse(
                        at,
                        "is neither a bzImage nor an ELF file; name a kernel for x86-64, e.g. /boot/vmlinuz-…",
                    );
                }
                let initrd = spec.initrd.as_ref().map(|initrd| self.existing(initrd));
                return Boot::Kernel { kernel, initrd };
            }
            (None, None) => {
                if let Some(initrd) = &spec.initrd {
                    self.refuse(
                        initrd.referenced,
                        "an `initrd` needs a kernel to load it; add `kernel`",
                    );
                }
                return Boot::Image(Self::default_image(spec).to_owned());
            }
        }
        Boot::Image(String::new())
    }

    /// What a node boots that names neither image nor kernel.
    fn default_image(spec: &RawNode) -> &'static str {
        let of_host = |nic: &Spanned<RawNic>| nic.value.vf.is_some() || nic.value.pci.is_some();
        if spec.nics.iter().any(of_host) {
            HARDWARE_IMAGE
        } else {
            DEFAULT_IMAGE
        }
    }

    fn cmdline(&mut self, cmdline: &Spanned<String>) {
        if cmdline.value.len() > MAX_CMDLINE {
            let length = cmdline.value.len();
            self.refuse(
                cmdline.referenced,
                format!("has {length} bytes; a `cmdline` can have {MAX_CMDLINE}"),
            );
        }
        if cmdline.value.chars().any(char::is_control) {
            self.refuse(
                cmdline.referenced,
                "a `cmdline` is one line; remove the control characters",
            );
        }
    }

    fn memory(&mut self, memory: &Spanned<String>) -> u64 {
        match memory_size::parse_mib(&memory.value) {
            Ok(mib) if mib < MIN_MEMORY_MIB => {
                let given = &memory.value;
                self.refuse(
                    memory.referenced,
                    format!("{given} is too little memory; use at least {MIN_MEMORY_MIB}M"),
                );
            }
            Ok(mib) => return mib,
            Err(why) => self.refuse(memory.referenced, why),
        }
        DEFAULT_MEMORY_MIB
    }

    /// A file named in the lab file, relative to it.
    fn existing(&mut self, path: &Spanned<String>) -> PathBuf {
        let base = self.file.parent().unwrap_or(Path::new(""));
        let full = std::path::absolute(base.join(&path.value)).unwrap_or_else(|_| base.join(&path.value));
        if let Err(error) = std::fs::File::open(&full) {
            self.refuse(
                path.referenced,
                format!("{} cannot be opened: {error}", full.display()),
            );
        }
        // Both go into comma-separated options of the virtual machine monitors.
        if path.value.contains([',', '\n']) {
            self.refuse(
                path.referenced,
                "a path with a comma or a line break cannot be passed on; rename the file",
            );
        }
        full
    }

    fn disk(&mut self, disk: &RawDisk) -> Disk {
        Disk {
            path: self.existing(&disk.path),
            readonly: disk.readonly.unwrap_or(false),
        }
    }

    fn claim_mac(&mut self, mac: MacAddr, owner: String, at: Location) {
        if let Some(other) = self.macs.get(&mac) {
            let text = format!("{mac} is the address of NIC {other} already; give one of them another");
            self.refuse(at, text);
        } else {
            self.macs.insert(mac, owner);
        }
    }

    fn address(&mut self, switch: &str, port: &str, ip: &Spanned<String>) -> Option<IpNet> {
        let at = ip.referenced;
        match parse_address(&ip.value) {
            Ok(net) => {
                let key = (switch.to_owned(), net.addr());
                if let Some(other) = self.addresses.get(&key) {
                    let text = format!(
                        "{} is the address of NIC {other} already; give one of them another",
                        net.addr()
                    );
                    self.refuse(at, text);
                } else {
                    self.addresses.insert(key, port.to_owned());
                }
                Some(net)
            }
            Err(why) => {
                self.refuse(at, why);
                None
            }
        }
    }
}

/// Whether a file can be a kernel; `None` if it cannot be read.
fn is_kernel(path: &Path) -> Option<bool> {
    let mut start = Vec::new();
    std::fs::File::open(path)
        .ok()?
        .take(KERNEL_HEADER)
        .read_to_end(&mut start)
        .ok()?;
    Some(start.starts_with(b"\x7fELF") || start.get(0x202..0x206) == Some(b"HdrS"))
}

/// Reads a host's address with its prefix length.
fn parse_address(text: &str) -> Result<IpNet, String> {
    if text.parse::<std::net::IpAddr>().is_ok() {
        let example = if text.contains(':') { 64 } else { 24 };
        return Err(format!(
            "{text} has no prefix length; write e.g. {text}/{example}"
        ));
    }
    let net: IpNet = text
        .parse()
        .map_err(|_| format!("`{text}` is not an address with a prefix length; write e.g. 10.0.0.1/24"))?;
    let unusable = |kind: &str| Err(format!("{text} is {kind}, not a host's; choose another"));
    let addr = net.addr();
    if addr.is_unspecified() || addr.is_multicast() || addr.is_loopback() {
        return unusable("an unspecified, multicast or loopback address");
    }
    let host_bits = net.max_prefix_len() - net.prefix_len();
    if host_bits > 1 && addr == net.network() {
        return unusable("the address of the network");
    }
    if net.addr().is_ipv4() && host_bits > 1 && addr == net.broadcast() {
        return unusable("the broadcast address of the network");
    }
    Ok(net)
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
