//! How received frames are spread over a driver's queues, and hashed (VIRTIO 1.3 §5.1.6.5.6 and §5.1.6.5.7).

use serde::{Deserialize, Serialize};
use virtio::rss::{Hash, KEY_LEN, SUPPORTED, Toeplitz};

use super::MAX_TABLE;
use super::command::Command;

/// Which packets are hashed, and with which key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HashSettings {
    types: u32,
    key: Vec<u8>,
}

impl HashSettings {
    fn types(command: &mut Command<'_>) -> Option<u32> {
        let types = u32::from_le_bytes(command.take()?);
        (types & !SUPPORTED == 0).then_some(types)
    }

    fn key(command: &mut Command<'_>) -> Option<Vec<u8>> {
        let [len] = command.take()?;
        let len = usize::from(len);
        if len > KEY_LEN {
            return None;
        }
        let key = (0..len)
            .map(|_| command.take::<1>().map(|[byte]| byte))
            .collect::<Option<_>>()?;
        command.end()?;
        Some(key)
    }

    /// `struct virtio_net_hash_config`.
    pub(super) fn read(command: &mut Command<'_>) -> Option<Self> {
        let types = Self::types(command)?;
        command.skip(8)?;
        Some(Self {
            types,
            key: Self::key(command)?,
        })
    }

    pub(super) fn is_sane(&self) -> bool {
        self.types & !SUPPORTED == 0 && self.key.len() <= KEY_LEN
    }

    fn toeplitz(&self) -> Toeplitz {
        let mut key = [0; KEY_LEN];
        for (to, from) in key.iter_mut().zip(&self.key) {
            *to = *from;
        }
        Toeplitz::new(&key)
    }

    pub(super) fn steering(&self) -> Steering {
        Steering {
            hash: self.toeplitz(),
            types: self.types,
            table: Box::default(),
            unclassified: 0,
        }
    }
}

/// Receive-side scaling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RssSettings {
    hash: HashSettings,
    /// Queue pairs; as many as a power of two.
    table: Vec<u8>,
    /// The pair for packets without a hash.
    unclassified: u8,
    /// Queues that the driver transmits on.
    transmit: u16,
}

impl RssSettings {
    /// `struct virtio_net_rss_config`.
    pub(super) fn read(command: &mut Command<'_>, max_pairs: u16) -> Option<Self> {
        fn pair(command: &mut Command<'_>, max_pairs: u16) -> Option<u8> {
            let pair = u16::from_le_bytes(command.take()?);
            u8::try_from(pair).ok().filter(|_| pair < max_pairs)
        }
        let types = HashSettings::types(command)?;
        let len = usize::from(u16::from_le_bytes(command.take()?)) + 1;
        let unclassified = pair(command, max_pairs)?;
        if !len.is_power_of_two() || len > MAX_TABLE {
            return None;
        }
        let table = (0..len)
            .map(|_| pair(command, max_pairs))
            .collect::<Option<_>>()?;
        let transmit = u16::from_le_bytes(command.take()?);
        if !(1..=max_pairs).contains(&transmit) {
            return None;
        }
        Some(Self {
            hash: HashSettings {
                types,
                key: HashSettings::key(command)?,
            },
            table,
            unclassified,
            transmit,
        })
    }

    pub(super) fn is_sane(&self, max_pairs: u16) -> bool {
        let mut pairs = self.table.iter().chain([&self.unclassified]);
        self.hash.is_sane()
            && self.table.len().is_power_of_two()
            && self.table.len() <= MAX_TABLE
            && pairs.all(|pair| u16::from(*pair) < max_pairs)
            && (1..=max_pairs).contains(&self.transmit)
    }

    /// Queue pairs of which at least one queue is in use.
    pub(super) fn pairs(&self) -> u16 {
        let last = self.table.iter().copied().fold(self.unclassified, u8::max);
        self.transmit.max(u16::from(last) + 1)
    }

    pub(super) fn steering(&self) -> Steering {
        Steering {
            table: self.table.clone().into_boxed_slice(),
            unclassified: self.unclassified,
            ..self.hash.steering()
        }
    }
}

/// How received frames are spread over a driver's queues, and hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steering {
    hash: Toeplitz,
    types: u32,
    /// Queue pairs, as many as a power of two; none where frames are hashed only.
    table: Box<[u8]>,
    unclassified: u8,
}

impl Steering {
    /// The hash of the frame that begins with `frame`.
    pub fn hash(&self, frame: &[u8]) -> Hash {
        self.hash.of_frame(frame, self.types)
    }

    /// Whether frames are spread as the driver said.
    pub fn spreads(&self) -> bool {
        !self.table.is_empty()
    }

    /// The queue pair for the frame that begins with `frame`.
    pub fn pair(&self, frame: &[u8]) -> u8 {
        let hash = self.hash(frame);
        if hash.report == 0 {
            return self.unclassified;
        }
        // The table is never longer than `MAX_TABLE`.
        let at = hash.value as usize & self.table.len().wrapping_sub(1);
        self.table.get(at).copied().unwrap_or(self.unclassified)
    }
}
