//! Which devices share a slot: functions of one device of the host, given together, are functions of one device in the guest.

use std::path::Path;

use crate::vfio::{Bdf, Source};

/// The devices of a slot, with their numbers in it.
pub(super) type Mates<'a> = Vec<(u8, &'a Source)>;

/// True if the function at this address is a virtual one. These have addresses like functions of a device, and are none.
pub(super) fn is_virtual(address: Bdf) -> bool {
    Path::new("/sys/bus/pci/devices")
        .join(address.to_string())
        .join("physfn")
        .exists()
}

/// The devices of each slot. They have the numbers that they have on the host where one of them has 0,
/// without which a guest looks for no others; elsewhere they are numbered from 0.
pub(super) fn share(sources: &[Source], is_virtual: impl Fn(Bdf) -> bool) -> Vec<Mates<'_>> {
    let mut slots: Vec<(Option<Bdf>, Mates<'_>)> = Vec::new();
    for source in sources {
        let address = source.address().filter(|address| !is_virtual(*address));
        let device = address.map(Bdf::first);
        let entry = (address.map_or(0, Bdf::function), source);
        match slots.iter_mut().find(|(of, _)| of.is_some() && *of == device) {
            Some((_, mates)) => mates.push(entry),
            None => slots.push((device, vec![entry])),
        }
    }
    for (_, mates) in &mut slots {
        mates.sort_by_key(|(number, _)| *number);
        if mates[0].0 != 0 {
            for (number, mate) in (0..).zip(mates) {
                mate.0 = number;
            }
        }
    }
    slots.into_iter().map(|(_, mates)| mates).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_a_device_share_a_slot_and_virtual_ones_do_not() {
        let sources: Vec<Source> = [
            "04:00.1",
            "01:10.0",
            "fd=5",
            "01:10.2",
            "/sys/bus/pci/devices/0000:04:00.0",
            "fd=6",
            "05:00.3",
            "05:00.2",
        ]
        .map(|text| text.parse().unwrap())
        .to_vec();
        let shared = share(&sources, |address| address.to_string().starts_with("0000:01:10"));
        let names: Vec<Vec<_>> = shared
            .iter()
            .map(|mates| {
                mates
                    .iter()
                    .map(|(number, source)| (*number, source.name()))
                    .collect()
            })
            .collect();
        let expected = |list: &[(u8, &str)]| -> Vec<_> {
            list.iter()
                .map(|(number, name)| (*number, (*name).to_owned()))
                .collect()
        };
        assert_eq!(
            names,
            [
                expected(&[(0, "0000:04:00.0"), (1, "0000:04:00.1")]),
                expected(&[(0, "0000:01:10.0")]),
                expected(&[(0, "fd=5")]),
                expected(&[(0, "0000:01:10.2")]),
                expected(&[(0, "fd=6")]),
                expected(&[(0, "0000:05:00.2"), (1, "0000:05:00.3")]),
            ]
        );
    }
}
