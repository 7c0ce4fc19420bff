//! Tiny guests in 32-bit protected mode, written byte by byte. They need `/dev/kvm`, but no virtualization hardware;
//! where there is no `/dev/kvm`, they have nothing to test and say so.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::vcpu::Vcpu;
use super::*;
use crate::board::boot::Entry;
use crate::board::cpuid;
use crate::bus::{Bus, BusDevice};
use crate::machine::vcpus::{Guest, VcpuEvent, VcpuThreads};
use crate::memory::{GuestRam, RamConfig};

mod exits;
mod interrupts;
mod threads;

const CODE: u64 = 0x1000;
const IDT: u64 = 0x2000;
const LIMIT: Duration = Duration::from_secs(20);
/// Nobody's memory: accesses leave the guest.
const DEVICE: u32 = 0xd000_0000;
/// Writes here tell the test something.
const PORT: u16 = 0x80;

/// A device that tells the test of every access.
struct Probe(Mutex<Sender<Access>>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
}

impl BusDevice for Probe {
    fn read(&self, base: u64, offset: u64, data: &mut [u8]) {
        data.fill(0x5a);
        let _ = self
            .0
            .lock()
            .unwrap()
            .send(Access::Read(base + offset, data.len()));
    }

    fn write(&self, base: u64, offset: u64, data: &[u8]) {
        let _ = self
            .0
            .lock()
            .unwrap()
            .send(Access::Write(base + offset, data.to_vec()));
    }
}

/// A machine with a program.
struct Rig {
    vm: Arc<Vm>,
    ram: GuestRam,
    guest: Arc<Guest>,
    vcpus: Vec<Vcpu>,
    accesses: Receiver<Access>,
    events: Receiver<VcpuEvent>,
}

impl Rig {
    /// `None` without KVM.
    fn new(program: &[u8]) -> Option<Self> {
        let vm = match Vm::new() {
            Ok(vm) => vm,
            Err(error) => {
                eprintln!("nothing tested: {error}");
                return None;
            }
        };
        kick::install().unwrap();
        let ram = GuestRam::new(RamConfig {
            size: 2 << 20,
            hugepages: false,
        })
        .unwrap();
        ram.announce(&*vm).unwrap();
        let template = cpuid::Template::new(vm.kvm(), 1).unwrap();
        let vcpus = Vcpu::create(&vm, 1, |id, khz| template.for_cpu(id, khz)).unwrap();

        let (sender, accesses) = channel();
        let probe = Arc::new(Probe(Mutex::new(sender)));
        let (pio, mmio) = (Bus::new(), Bus::new());
        pio.insert(
            u64::from(PORT)..u64::from(PORT) + 8,
            Arc::clone(&probe) as Arc<dyn BusDevice>,
        )
        .unwrap();
        mmio.insert(u64::from(DEVICE)..u64::from(DEVICE) + 0x1000, probe)
            .unwrap();
        let (sender, events) = channel();
        let sender = Mutex::new(sender);
        let guest = Arc::new(Guest {
            pio: Arc::new(pio),
            mmio: Arc::new(mmio),
            report: Box::new(move |event| {
                let _ = sender.lock().unwrap().send(event);
            }),
        });
        let rig = Self {
            vm,
            ram,
            guest,
            vcpus,
            accesses,
            events,
        };
        rig.load(program);
        Some(rig)
    }

    fn load(&self, program: &[u8]) {
        self.ram.mem.write_slice(program, GuestAddress(CODE)).unwrap();
        Entry::Protected {
            eip: u32::try_from(CODE).unwrap(),
            start_info: 0,
        }
        .apply(&self.vcpus[0])
        .unwrap();
    }

    fn start(&mut self) -> VcpuThreads {
        VcpuThreads::start(std::mem::take(&mut self.vcpus), &self.guest).unwrap()
    }

    #[track_caller]
    fn next(&self) -> Access {
        self.accesses.recv_timeout(LIMIT).unwrap_or_else(|_| {
            panic!(
                "the guest does not come to its next access: {:?}",
                self.events.try_recv()
            )
        })
    }

    fn stop(&mut self, threads: VcpuThreads) {
        self.vcpus = threads.stop().unwrap();
    }
}

/// `mov dx, PORT; mov al, value; out dx, al`.
fn tell(value: u8) -> Vec<u8> {
    [&[0x66, 0xba][..], &PORT.to_le_bytes(), &[0xb0, value, 0xee]].concat()
}

/// `mov eax, value; mov [addr], eax`.
fn store(addr: u32, value: u32) -> Vec<u8> {
    [&[0xb8][..], &value.to_le_bytes(), &[0xa3], &addr.to_le_bytes()].concat()
}

/// `hlt; jmp -3`.
const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];
