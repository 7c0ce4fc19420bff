//! Extension headers of IPv6 (RFC 8200 §4), and the addresses in them that stand for those of the header (RFC 6275).

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;

/// Headers looked at; no packet in order has more.
const MAX_HEADERS: usize = 8;
/// Options looked at in one of them.
const MAX_OPTIONS: usize = 16;

/// Routing header type 2: the home address of a mobile node, for which the packet is.
const ROUTING_TYPE_2: u8 = 2;
/// The option that says the home address of a mobile node from which the packet is.
const HOME_ADDRESS: u8 = 201;
const PAD1: u8 = 0;

/// Whether a packet goes on with an extension header.
pub(super) fn is_one(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION | MOBILITY)
}

/// Goes past extension headers, of which the first is of kind `next`; `ends` are source and destination, and become those that
/// are said in them. Returns the protocol and what follows; none for a fragment, or where a header is cut short.
pub(super) fn skip<'a>(mut next: u8, mut rest: &'a [u8], ends: &mut [u8; 32]) -> Option<(u8, &'a [u8])> {
    for _ in 0..MAX_HEADERS {
        if !is_one(next) {
            return Some((next, rest));
        }
        if next == FRAGMENT {
            let header: &[u8; 8] = rest.first_chunk()?;
            // The offset, and "more fragments"; with neither it is whole.
            if (header[2], header[3] & 0xf9) != (0, 0) {
                return None;
            }
            (next, rest) = (header[0], &rest[8..]);
            continue;
        }
        let len = 8 + 8 * usize::from(*rest.get(1)?);
        let header = rest.get(..len)?;
        match next {
            ROUTING if header[2] == ROUTING_TYPE_2 => {
                if let Some(home) = header.get(8..24) {
                    ends[16..].copy_from_slice(home);
                }
            }
            DESTINATION => {
                if let Some(home) = home_address(&header[2..]) {
                    ends[..16].copy_from_slice(home);
                }
            }
            _ => {}
        }
        (next, rest) = (header[0], &rest[len..]);
    }
    None
}

/// The home address among options.
fn home_address(mut options: &[u8]) -> Option<&[u8; 16]> {
    for _ in 0..MAX_OPTIONS {
        let kind = *options.first()?;
        if kind == PAD1 {
            options = &options[1..];
            continue;
        }
        let len = usize::from(*options.get(1)?);
        let value = options.get(2..2 + len)?;
        if kind == HOME_ADDRESS {
            return value.first_chunk();
        }
        options = &options[2 + len..];
    }
    None
}
