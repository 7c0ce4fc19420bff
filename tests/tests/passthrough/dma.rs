//! What a device reaches, as the IOMMU has it: looked at from outside of the host that set it up.

use netyard_tests::bin;
use netyard_tests::deadline::wait_for;
use netyard_tests::iommu::{self, Mapping, Reach};

use crate::rig::{PATIENCE, Rig};

const PAGE: u64 = 4096;

/// The device's bus, and its device number with the function.
fn place(device: &str) -> (u8, u8) {
    let number = |text: &str| u8::from_str_radix(text, 16).expect("hexadecimal");
    let parts: Vec<&str> = device.split([':', '.']).collect();
    let [_, bus, slot, function] = parts[..] else {
        panic!("{device} is no address")
    };
    (number(bus), number(slot) << 3 | number(function))
}

fn reach(rig: &Rig<'_>, device: &str) -> Reach {
    let (bus, function) = place(device);
    let mut monitor = rig.lab.yard().monitor();
    monitor.frozen(|monitor| iommu::reach(monitor, bus, function))
}

/// The device reaches the guest's RAM at the addresses that it has in the guest, and nothing else: each page is the very page
/// that the VMM, whose process `vmm` names in a shell, has there.
pub(crate) fn reaches_guest_memory_alone(rig: &Rig<'_>, device: &str, mib: u64, vmm: &str) {
    let reach = reach(rig, device);
    let ranges = reach.ranges();
    assert_eq!(ranges, Some(std::iter::once(0..mib << 20).collect()), "{device}");
    let Reach::Pages(mappings) = reach else { return };
    let pages = guest_pages(rig, vmm);
    assert_eq!(pages.len() as u64, (mib << 20) / PAGE);
    for Mapping {
        device: at,
        physical,
        len,
        write,
    } in mappings
    {
        assert!(write, "{device} reads {at:#x} only");
        for offset in (0..len).step_by(4096) {
            let index = usize::try_from((at + offset) / PAGE).expect("a number of pages");
            assert_eq!(pages[index], physical + offset, "{device} at {:#x}", at + offset);
        }
    }
}

pub(crate) fn reaches_nothing(rig: &Rig<'_>, device: &str) {
    assert_eq!(reach(rig, device), Reach::Pages(Vec::new()), "{device}");
}

/// Waits until the kernel has closed what a killed VMM had open.
pub(crate) fn comes_to_reach_nothing(rig: &Rig<'_>, device: &str) {
    wait_for("the map of a killed VMM to end", PATIENCE, || {
        (reach(rig, device) == Reach::Pages(Vec::new())).then_some(())
    });
}

/// Where each page of the guest's RAM is, by the page table of the VMM (`Documentation/admin-guide/mm/pagemap.rst`).
fn guest_pages(rig: &Rig<'_>, vmm: &str) -> Vec<u64> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    // Of the mappings of this memory, the devices' is the one that is there as a whole.
    let script = format!(
        "cd /proc/{vmm}; \
         set -- $(busybox awk '/^[0-9a-f]+-/ {{ range = /memfd:netyard-ram/ ? $1 : \"\" }} /^Size:/ {{ size = $2 }} \
         /^Rss:/ && range != \"\" && $2 == size {{ split(range, ends, \"-\"); print \"0x\" ends[1], \"0x\" ends[2]; exit }}' smaps); \
         [ $# = 2 ] && \
         dd if=pagemap bs=65536 iflag=skip_bytes,count_bytes skip=$(($1 / 512)) count=$((($2 - $1) / 512)) 2>/dev/null"
    );
    let output = bin::finish(&mut rig.lab.on_host(&["sh", "-c", &script]));
    assert!(output.status.success(), "{output:?}");
    let entry = |bytes: &[u8; 8]| {
        let entry = u64::from_le_bytes(*bytes);
        assert_ne!(entry & PRESENT, 0, "a page of the guest is not in memory");
        (entry & FRAME) * PAGE
    };
    let (entries, rest) = output.stdout.as_chunks::<8>();
    assert!(rest.is_empty(), "half an entry");
    entries.iter().map(entry).collect()
}
