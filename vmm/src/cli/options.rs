//! Options that have parts: `key=value,key=value`.

use std::path::PathBuf;
use std::str::FromStr;

use crate::machine::config::{ChannelConfig, DiskConfig, NetConfig, NodeConfig, SocketMode};
use crate::memory::{RamConfig, RamNode};
use crate::serial::SerialConfig;

#[cfg(test)]
mod tests;

/// Most queue pairs of a network card.
const MAX_QUEUE_PAIRS: u16 = 16;

/// The parts of an option that are not looked at yet.
struct Parts<'a>(Vec<(&'a str, Option<&'a str>)>);

impl<'a> Parts<'a> {
    fn new(text: &'a str) -> Self {
        let parts = text.split(',').filter(|part| !part.is_empty());
        Self(
            parts
                .map(|part| part.split_once('=').map_or((part, None), |(k, v)| (k, Some(v))))
                .collect(),
        )
    }

    fn take(&mut self, key: &str) -> Result<Option<&'a str>, String> {
        let Some(at) = self.0.iter().position(|(k, _)| *k == key) else {
            return Ok(None);
        };
        let (_, value) = self.0.remove(at);
        if self.0.iter().any(|(k, _)| *k == key) {
            return Err(format!("`{key}` is given twice"));
        }
        match value {
            Some(value) if !value.is_empty() => Ok(Some(value)),
            _ => Err(format!("`{key}` needs a value: {key}=…")),
        }
    }

    fn need(&mut self, key: &str) -> Result<&'a str, String> {
        self.take(key)?.ok_or_else(|| format!("`{key}=…` is missing"))
    }

    fn switch(&mut self, key: &str) -> Result<bool, String> {
        match self.take(key)? {
            None | Some("off") => Ok(false),
            Some("on") => Ok(true),
            Some(other) => Err(format!("`{key}={other}`: on or off")),
        }
    }

    fn finish(self, known: &str) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!("unknown part `{key}`; there are {known}")),
        }
    }
}

/// The value of `--memory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryOption(pub RamConfig);

impl FromStr for MemoryOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (size, rest) = text.split_once(',').unwrap_or((text, ""));
        let mut parts = Parts::new(rest);
        let hugepages = parts.switch("hugepages")?;
        parts.finish("hugepages")?;
        Ok(Self(RamConfig {
            size: size_in_bytes(size)?,
            hugepages,
        }))
    }
}

fn size_in_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size; write 512M or 2G");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "K" | "k" | "KiB" => 1 << 10,
        "M" | "m" | "MiB" => 1 << 20,
        "G" | "g" | "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    count.checked_mul(unit).ok_or_else(wrong)
}

/// The value of `--numa`.
pub fn numa(text: &str) -> Result<NodeConfig, String> {
    let mut parts = Parts::new(text);
    let cpus = parts.need("cpus")?;
    let (first, last) = cpus.split_once('-').unwrap_or((cpus, cpus));
    let cpus = match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first <= last => first..=last,
        _ => return Err(format!("`cpus={cpus}`: write 2, or 0-3")),
    };
    let size = size_in_bytes(parts.need("memory")?)?;
    let host_node = parts
        .take("host-node")?
        .map(|n| {
            n.parse()
                .map_err(|_| format!("`host-node={n}`: the number of a node"))
        })
        .transpose()?;
    parts.finish("cpus, memory, host-node")?;
    Ok(NodeConfig {
        cpus,
        ram: RamNode { size, host_node },
    })
}

/// The value of `--serial` and of `--console`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SerialOption {
    /// The other end.
    pub end: SerialConfig,
    /// A file that gets a copy.
    pub log: Option<PathBuf>,
}

impl FromStr for SerialOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (end, rest) = text.split_once(',').unwrap_or((text, ""));
        let mut parts = Parts::new(rest);
        let log = parts.take("log")?.map(PathBuf::from);
        parts.finish("log")?;
        let end = match end.split_once('=') {
            None if end == "stdio" => SerialConfig::Stdio,
            None if end == "pty" => SerialConfig::Pty,
            None if end == "off" => SerialConfig::Off,
            Some(("file", path)) if !path.is_empty() => SerialConfig::File(path.into()),
            Some(("socket", path)) if !path.is_empty() => SerialConfig::Socket(path.into()),
            _ => return Err(format!("`{end}`: stdio, pty, off, file=FILE or socket=PATH")),
        };
        Ok(Self { end, log })
    }
}

/// A name of letters, digits and `_ . -`.
pub fn name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if text.is_empty() || text.len() > 64 || !text.chars().all(plain) {
        return Err("a name has 1 to 64 letters, digits, dots, dashes and underscores".to_owned());
    }
    Ok(text.to_owned())
}

/// A kernel command line: text without zeros.
pub fn cmdline(text: &str) -> Result<String, String> {
    if text.contains('\0') {
        return Err("a command line has no zero bytes".to_owned());
    }
    Ok(text.to_owned())
}

/// The value of `--net`.
pub fn net(text: &str) -> Result<NetConfig, String> {
    let mut parts = Parts::new(text);
    let socket = parts.need("socket")?.into();
    let mac = parts.take("mac")?.map(mac_address).transpose()?;
    let queues = match parts.take("queues")? {
        None => 1,
        Some(n) => n
            .parse()
            .ok()
            .filter(|n| (1..=MAX_QUEUE_PAIRS).contains(n))
            .ok_or_else(|| format!("`queues={n}`: 1 to {MAX_QUEUE_PAIRS}"))?,
    };
    let mode = match parts.take("mode")? {
        None | Some("client") => SocketMode::Client,
        Some("server") => SocketMode::Server,
        Some(other) => return Err(format!("`mode={other}`: client or server")),
    };
    parts.finish("socket, mac, queues, mode")?;
    Ok(NetConfig {
        socket,
        mac,
        queues,
        mode,
    })
}

fn mac_address(text: &str) -> Result<[u8; 6], String> {
    let wrong = || format!("`mac={text}`: write six bytes as 02:00:00:00:00:01");
    let mut mac = [0; 6];
    let mut bytes = text.split(':');
    for slot in &mut mac {
        let byte = bytes
            .next()
            .filter(|b| b.len() == 2 && b.bytes().all(|c| c.is_ascii_hexdigit()))
            .ok_or_else(wrong)?;
        *slot = u8::from_str_radix(byte, 16).map_err(|_| wrong())?;
    }
    if bytes.next().is_some() {
        return Err(wrong());
    }
    if mac[0] & 1 != 0 || mac == [0; 6] {
        return Err(format!(
            "`mac={text}`: a card's address is neither a group's nor zero; use 02:…"
        ));
    }
    Ok(mac)
}

/// The value of `--disk`.
pub fn disk(text: &str) -> Result<DiskConfig, String> {
    let mut parts = Parts::new(text);
    let path = parts.need("path")?.into();
    let readonly = parts.switch("readonly")?;
    parts.finish("path, readonly")?;
    Ok(DiskConfig { path, readonly })
}

/// The value of `--channel`.
pub fn channel(text: &str) -> Result<ChannelConfig, String> {
    let mut parts = Parts::new(text);
    let name = name(parts.need("name")?)?;
    let socket = parts.need("socket")?.into();
    parts.finish("name, socket")?;
    Ok(ChannelConfig { name, socket })
}
