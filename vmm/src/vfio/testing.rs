//! A device that is made of a recorded configuration space and plain memory, and writes down what it is asked for.

use std::io;
use std::ops::Range;
use std::sync::Mutex;

use vmm_sys_util::eventfd::EventFd;

use super::host::{CONFIG, HostDevice, Irq};
use super::hot_reset::ResetError;
use crate::hv::device_memory::DeviceMemory;

/// What was asked for, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Kind, first vector, and which of them have an eventfd.
    Triggers(Irq, u32, Vec<bool>),
    Unmask,
    Disable(Irq),
    Reset,
    Write(u32, u64, Vec<u8>),
}

#[derive(Debug)]
pub(super) struct FakeDevice {
    /// Configuration space.
    pub(super) config: Mutex<Vec<u8>>,
    /// Lengths of the regions before it.
    pub(super) regions: [u64; 7],
    /// Interrupts of the kinds `INTx`, MSI and MSI-X.
    pub(super) irqs: [u32; 3],
    pub(super) can_add: bool,
    pub(super) asked: Mutex<Vec<Asked>>,
    /// What the host signals when it has something to say.
    pub(super) notices: Mutex<Vec<(Irq, EventFd)>>,
}

/// Each record is the offset of a register and hexadecimal digits from there on.
pub(super) fn recorded(records: &[(usize, &str)]) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    for (at, digits) in records {
        for (index, pair) in digits.as_bytes().chunks(2).enumerate() {
            let pair = std::str::from_utf8(pair).unwrap();
            bytes[at + index] = u8::from_str_radix(pair, 16).unwrap();
        }
    }
    bytes
}

/// An 82576, as the host's kernel shows it: MSI, MSI-X with ten vectors in BAR 3, PCI Express, and behind the first 256 bytes
/// error reporting, ARI and SR-IOV.
pub(super) fn igb() -> FakeDevice {
    let config = recorded(&[
        (
            0,
            "8680c910070110000100000200000000000080fe000082fe01e00000040084fe",
        ),
        (0x28, "00000000f41a00110000000040000000000000000a010000"),
        (0x40, "01502200"),
        (0x50, "0570800100000000"),
        (0x70, "11a009000300000003200000"),
        (0xa0, "100002002080801000000000110400000000110000000000"),
        (0x100, "01000115000000000000400230204600"),
        (0x150, "0e000116"),
        (0x160, "10000100000000001900000008000800"),
    ]);
    FakeDevice {
        config: Mutex::new(config),
        regions: [0x20000, 0x20000, 0x20, 0x4000, 0, 0, 0],
        irqs: [1, 1, 10],
        can_add: false,
        asked: Mutex::default(),
        notices: Mutex::default(),
    }
}

/// An 82574L: the same, with a serial number and without SR-IOV.
pub(super) fn e1000e() -> FakeDevice {
    let config = recorded(&[
        (
            0,
            "8680d310030110000000000200000000000060fe000062fe01d00000000064fe",
        ),
        (0x28, "000000008680000000000000c8000000000000000b010000"),
        (0xa0, "110004000300000003200000"),
        (0xc8, "01d0220000000000"),
        (0xd0, "05e0800000000000"),
        (0xe0, "10a0010020808010000000001104000000001100"),
        (0x100, "01000214000000000000400230204600"),
        (0x140, "03000100573412ffff005452"),
    ]);
    FakeDevice {
        config: Mutex::new(config),
        regions: [0x20000, 0x20000, 0x20, 0x4000, 0, 0, 0],
        irqs: [1, 1, 5],
        ..igb()
    }
}

impl FakeDevice {
    pub(super) fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn note(&self, asked: Asked) {
        self.asked.lock().unwrap().push(asked);
    }
}

impl HostDevice for FakeDevice {
    fn region_size(&self, region: u32) -> u64 {
        if region == CONFIG {
            return self.config.lock().unwrap().len() as u64;
        }
        self.regions[region as usize]
    }

    fn mappable(&self, region: u32) -> Vec<Range<u64>> {
        std::iter::once(0..self.region_size(region)).collect()
    }

    fn map(&self, _region: u32, part: Range<u64>) -> io::Result<DeviceMemory> {
        let file = rustix::fs::memfd_create("registers", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, part.end - part.start)?;
        DeviceMemory::map(file, 0, part.end - part.start)
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if region == CONFIG {
            let start = usize::try_from(offset).unwrap();
            data.copy_from_slice(&self.config.lock().unwrap()[start..start + data.len()]);
        }
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) {
        if region == CONFIG {
            let start = usize::try_from(offset).unwrap();
            self.config.lock().unwrap()[start..start + data.len()].copy_from_slice(data);
        }
        self.note(Asked::Write(region, offset, data.to_vec()));
    }

    fn irq_count(&self, irq: Irq) -> u32 {
        match irq {
            Irq::Intx => self.irqs[0],
            Irq::Msi => self.irqs[1],
            Irq::Msix => self.irqs[2],
            Irq::Error | Irq::Request => 1,
        }
    }

    fn can_add_vectors(&self, _irq: Irq) -> bool {
        self.can_add
    }

    fn set_triggers(&self, irq: Irq, start: u32, events: &[Option<&EventFd>]) -> io::Result<()> {
        let there = events.iter().map(Option::is_some).collect();
        self.note(Asked::Triggers(irq, start, there));
        if matches!(irq, Irq::Error | Irq::Request) {
            let mut notices = self.notices.lock().unwrap();
            notices.extend(
                events
                    .iter()
                    .flatten()
                    .map(|event| (irq, event.try_clone().unwrap())),
            );
        }
        Ok(())
    }

    fn set_unmask(&self, _event: &EventFd) -> io::Result<()> {
        self.note(Asked::Unmask);
        Ok(())
    }

    fn disable(&self, irq: Irq) -> io::Result<()> {
        self.note(Asked::Disable(irq));
        Ok(())
    }

    fn reset(&self) -> Result<(), ResetError> {
        self.note(Asked::Reset);
        Ok(())
    }
}
