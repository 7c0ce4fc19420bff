//! What the guest's processors say about themselves.
//!
//! KVM's list of what it supports is the start. Over it goes what depends on the VM: APIC ids and topology (one
//! socket, one thread a core), the deadline timer that KVM never lists, and the clock's frequencies.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use crate::hv::{HvError, doing};

#[cfg(test)]
mod tests;

/// Leaf that says how many hypervisor leaves there are; KVM's own.
const HYPERVISOR: u32 = 0x4000_0000;
/// Leaf with the frequencies of time-stamp counter and APIC timer.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
/// KVM's APIC timer counts nanoseconds.
const APIC_BUS_KHZ: u32 = 1_000_000;

const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The same for all processors of a guest.
#[derive(Debug)]
pub struct Template {
    entries: Vec<kvm_cpuid_entry2>,
    cpus: u8,
    vendor: Vendor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Intel,
    Amd,
}

impl Template {
    /// What `kvm` supports, for a guest with `cpus` processors.
    pub fn new(kvm: &Kvm, cpus: u8) -> Result<Self, HvError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(doing("list the CPUID leaves it supports"))?;
        let deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self::from_supported(supported.as_slice(), cpus, deadline_timer))
    }

    fn from_supported(supported: &[kvm_cpuid_entry2], cpus: u8, deadline_timer: bool) -> Self {
        let vendor = supported
            .iter()
            .find(|e| e.function == 0)
            .map_or(Vendor::Intel, |e| {
                // "AuthenticAMD" and "HygonGenuine" in EBX.
                if matches!(e.ebx, 0x6874_7541 | 0x6f67_7948) {
                    Vendor::Amd
                } else {
                    Vendor::Intel
                }
            });
        let mut template = Self {
            entries: supported.to_vec(),
            cpus,
            vendor,
        };
        for entry in &mut template.entries {
            match entry.function {
                1 => {
                    entry.ecx |= 1 << 31;
                    set_bit(&mut entry.ecx, 24, deadline_timer);
                    set_bit(&mut entry.edx, 28, cpus > 1);
                }
                // Performance counters are not offered: they would have to be saved, restored and reset.
                0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
                // Energy bias and thermal sensors belong to the host; the timer goes on in deep sleep.
                6 => (entry.eax, entry.ebx, entry.ecx) = (1 << 2, 0, 0),
                HYPERVISOR => entry.eax = entry.eax.max(HYPERVISOR_TIMING),
                _ => {}
            }
        }
        template
            .entries
            .retain(|e| !matches!(e.function, 0xb | 0x1f | HYPERVISOR_TIMING | 0x8000_0026));
        template
    }

    /// What the processor with APIC id `id` is told; `tsc_khz` is the frequency of its time-stamp counter, if known.
    pub fn for_cpu(&self, id: u8, tsc_khz: Option<u32>) -> Result<CpuId, HvError> {
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            self.place(entry, id);
        }
        let max_basic = self.entries.iter().find(|e| e.function == 0).map_or(0, |e| e.eax);
        for leaf in [0xb, 0x1f] {
            if max_basic >= leaf {
                entries.extend(self.topology(leaf, id));
            }
        }
        if let Some(tsc_khz) = tsc_khz {
            entries.push(kvm_cpuid_entry2 {
                function: HYPERVISOR_TIMING,
                eax: tsc_khz,
                ebx: APIC_BUS_KHZ,
                ..Default::default()
            });
        }
        entries.sort_by_key(|e| (e.function, e.index));
        CpuId::from_entries(&entries)
            .map_err(|_| HvError::Ioctl("take so many CPUID leaves", kvm_ioctls::Error::new(libc::E2BIG)))
    }

    /// Bits of an APIC id that tell cores apart.
    fn core_bits(&self) -> u32 {
        u32::from(self.cpus).next_power_of_two().trailing_zeros()
    }

    fn place(&self, entry: &mut kvm_cpuid_entry2, id: u8) {
        let cpus = u32::from(self.cpus);
        let id = u32::from(id);
        match entry.function {
            1 => {
                // Logical processors, rounded up: the field tells the space of ids.
                entry.ebx = (entry.ebx & 0x0000_ffff) | (1 << self.core_bits()).min(255) << 16 | id << 24;
            }
            // Deterministic cache parameters: the third level is everybody's, the others are a core's own.
            4 if self.vendor == Vendor::Intel && entry.eax & 0x1f != 0 => {
                let sharing = if entry.eax >> 5 & 7 >= 3 {
                    (1 << self.core_bits()) - 1
                } else {
                    0
                };
                let cores = ((1 << self.core_bits()) - 1).min(0x3f);
                entry.eax = (entry.eax & 0x3fff) | sharing << 14 | cores << 26;
            }
            0x8000_001d if self.vendor == Vendor::Amd && entry.eax & 0x1f != 0 => {
                let sharing = if entry.eax >> 5 & 7 >= 3 { cpus - 1 } else { 0 };
                entry.eax = (entry.eax & 0x3fff) | sharing << 14;
            }
            // Legacy multi-processing: the processors of the package are cores and not threads.
            0x8000_0001 if self.vendor == Vendor::Amd => set_bit(&mut entry.ecx, 1, cpus > 1),
            0x8000_0008 if self.vendor == Vendor::Amd => {
                entry.ecx = (cpus - 1) | self.core_bits() << 12;
            }
            0x8000_001e if self.vendor == Vendor::Amd => {
                (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0);
            }
            _ => {}
        }
    }

    /// Extended topology: threads, cores, end.
    fn topology(&self, function: u32, id: u8) -> [kvm_cpuid_entry2; 3] {
        let level = |index: u32, kind: u32, shift: u32, below: u32| kvm_cpuid_entry2 {
            function,
            index,
            flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: below,
            ecx: index | kind << 8,
            edx: u32::from(id),
            ..Default::default()
        };
        [
            level(0, LEVEL_SMT, 0, 1),
            level(1, LEVEL_CORE, self.core_bits(), u32::from(self.cpus)),
            level(2, 0, 0, 0),
        ]
    }
}

fn set_bit(word: &mut u32, bit: u32, on: bool) {
    *word = *word & !(1 << bit) | u32::from(on) << bit;
}
