//! The hash of a packet's addresses and ports (VIRTIO 1.3 §5.1.6.4.3), for receive-side scaling and hash reports.
//!
//! It is the Toeplitz hash: the exclusive or of one 32-bit window of the key for each bit set in the input. The windows of four
//! bits together are looked up in a table made once for each key.

mod extension;

/// Bytes of a hash key, and the most that a device needs: IPv6 addresses and ports, and a window behind them.
pub const KEY_LEN: usize = 40;
/// Bytes that are hashed at most: two IPv6 addresses and two ports.
const INPUT_LEN: usize = 36;
const ETHERNET_LEN: usize = 14;
/// VLAN tags looked behind; a packet behind more has no hash.
const MAX_VLAN_TAGS: usize = 2;

/// `hash_types`: addresses of IPv4.
pub const HASH_IPV4: u32 = 1 << 0;
/// `hash_types`: addresses and ports of TCP over IPv4.
pub const HASH_TCPV4: u32 = 1 << 1;
/// `hash_types`: addresses and ports of UDP over IPv4.
pub const HASH_UDPV4: u32 = 1 << 2;
/// `hash_types`: addresses of IPv6.
pub const HASH_IPV6: u32 = 1 << 3;
/// `hash_types`: addresses and ports of TCP over IPv6.
pub const HASH_TCPV6: u32 = 1 << 4;
/// `hash_types`: addresses and ports of UDP over IPv6.
pub const HASH_UDPV6: u32 = 1 << 5;
/// `hash_types`: addresses of IPv6 with extension headers, as far as those say others.
pub const HASH_IP_EX: u32 = 1 << 6;
/// `hash_types`: the same addresses, and ports of TCP.
pub const HASH_TCP_EX: u32 = 1 << 7;
/// `hash_types`: the same addresses, and ports of UDP.
pub const HASH_UDP_EX: u32 = 1 << 8;
/// The types that are supported: all that there are.
pub const SUPPORTED: u32 = HASH_IPV4
    | HASH_TCPV4
    | HASH_UDPV4
    | HASH_IPV6
    | HASH_TCPV6
    | HASH_UDPV6
    | HASH_IP_EX
    | HASH_TCP_EX
    | HASH_UDP_EX;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A packet's hash, and of what it is (`hash_report` in the header of a received packet).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hash {
    /// The value; 0 without one.
    pub value: u32,
    /// `VIRTIO_NET_HASH_REPORT_*`; 0 without a hash.
    pub report: u16,
}

/// A key, ready for use.
#[derive(Clone, PartialEq, Eq)]
pub struct Toeplitz {
    /// For each half of each byte, what each of its values adds to the hash.
    windows: Box<[[u32; 16]; 2 * INPUT_LEN]>,
}

impl std::fmt::Debug for Toeplitz {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key is the guest's secret: who knows it can aim at one of its queues.
        f.debug_struct("Toeplitz").finish_non_exhaustive()
    }
}

impl Toeplitz {
    /// The tables of `key`; a shorter one goes on with zeros.
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        let mut windows = Box::new([[0; 16]; 2 * INPUT_LEN]);
        for (half, values) in windows.iter_mut().enumerate() {
            for (value, sum) in values.iter_mut().enumerate() {
                *sum = (0..4)
                    .filter(|bit| value & 8 >> bit != 0)
                    .fold(0, |sum, bit| sum ^ window(key, 4 * half + bit));
            }
        }
        Self { windows }
    }

    /// The hash of `input`, of which no more than addresses and ports of IPv6 are looked at.
    #[inline]
    pub fn hash(&self, input: &[u8]) -> u32 {
        input
            .iter()
            .zip(self.windows.chunks_exact(2))
            .fold(0, |hash, (&byte, halves)| {
                hash ^ halves[0][usize::from(byte >> 4)] ^ halves[1][usize::from(byte & 0xf)]
            })
    }

    /// The hash of the packet in an Ethernet frame, whose first bytes `frame` has, by the best of `types` that it fits.
    pub fn of_frame(&self, frame: &[u8], types: u32) -> Hash {
        let mut input = [0; INPUT_LEN];
        match input_of(frame, types, &mut input) {
            Some((len, kind)) => Hash {
                value: self.hash(&input[..len]),
                // The reports are numbered as the types are, from 1 on.
                report: u16::try_from(kind.trailing_zeros() + 1).unwrap_or(0),
            },
            None => Hash::default(),
        }
    }
}

/// The 32 bits of the key from `bit` on.
fn window(key: &[u8; KEY_LEN], bit: usize) -> u32 {
    let byte = |at: usize| u64::from(key.get(bit / 8 + at).copied().unwrap_or(0));
    let five = (0..5).fold(0, |word, at| word << 8 | byte(at));
    // 40 bits, of which the first 0 to 7 are not wanted.
    u32::try_from(five >> (8 - bit % 8) & u64::from(u32::MAX)).unwrap_or(0)
}

/// What of a packet is hashed.
struct Parts<'a> {
    /// Source and destination.
    addresses: &'a [u8],
    /// The protocol, and what begins with the ports; none in a fragment.
    ports: Option<(u8, &'a [u8])>,
    /// The types for addresses, TCP and UDP.
    types: [u32; 3],
}

/// What of a frame is hashed: how many bytes, and as which type.
fn input_of(frame: &[u8], types: u32, input: &mut [u8; INPUT_LEN]) -> Option<(usize, u32)> {
    let header: &[u8; ETHERNET_LEN] = frame.first_chunk()?;
    let mut ethertype = u16::from_be_bytes([header[12], header[13]]);
    let mut packet = &frame[ETHERNET_LEN..];
    for _ in 0..MAX_VLAN_TAGS {
        if !matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ) {
            break;
        }
        let [_, _, t0, t1] = *packet.first_chunk::<4>()?;
        ethertype = u16::from_be_bytes([t0, t1]);
        packet = &packet[4..];
    }
    let mut ends = [0; 32];
    let parts = match ethertype {
        ETHERTYPE_IPV4 => {
            let header: &[u8; 20] = packet.first_chunk()?;
            let len = usize::from(header[0] & 0xf) * 4;
            // No fragment has ports: the later ones could not be told to belong to the first.
            // Flag "more fragments", and the offset.
            let fragment = (header[6] & 0x3f, header[7]) != (0, 0);
            let whole = !fragment && len >= 20;
            let ports = whole.then(|| packet.get(len..)).flatten();
            Parts {
                addresses: &header[12..],
                ports: ports.map(|at| (header[9], at)),
                types: [HASH_IPV4, HASH_TCPV4, HASH_UDPV4],
            }
        }
        ETHERTYPE_IPV6 => {
            let header: &[u8; 40] = packet.first_chunk()?;
            let plain = Parts {
                addresses: &header[8..],
                ports: Some((header[6], &packet[40..])),
                types: [HASH_IPV6, HASH_TCPV6, HASH_UDPV6],
            };
            if extension::is_one(header[6]) {
                ends.copy_from_slice(&header[8..]);
                let ports = extension::skip(header[6], &packet[40..], &mut ends);
                let extended = Parts {
                    addresses: &ends,
                    ports,
                    types: [HASH_IP_EX, HASH_TCP_EX, HASH_UDP_EX],
                };
                // Where those types are not wanted, the extension headers count for nothing.
                let found = put(&extended, types, input);
                return found.or_else(|| put(&Parts { ports, ..plain }, types, input));
            }
            plain
        }
        _ => return None,
    };
    put(&parts, types, input)
}

/// Puts together what is hashed of these parts by the best of `types`.
#[inline]
fn put(parts: &Parts<'_>, types: u32, input: &mut [u8; INPUT_LEN]) -> Option<(usize, u32)> {
    let Parts {
        addresses,
        ports,
        types: [ip, tcp, udp],
    } = *parts;
    input[..addresses.len()].copy_from_slice(addresses);
    let kind = match ports {
        Some((TCP, _)) => tcp,
        Some((UDP, _)) => udp,
        _ => 0,
    };
    if types & kind != 0
        && let Some(ports) = ports.and_then(|(_, at)| at.first_chunk::<4>())
    {
        let len = addresses.len() + ports.len();
        input[addresses.len()..len].copy_from_slice(ports);
        return Some((len, kind));
    }
    (types & ip != 0).then_some((addresses.len(), ip))
}

#[cfg(test)]
mod tests;
