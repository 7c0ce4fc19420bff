//! One virtual CPU: its state after power-on, and running it from exit to exit.

use std::fmt;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, Msrs, kvm_debugregs, kvm_fpu, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_run,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::kick::Armed;
use super::{HvError, Vm, doing};
use crate::bus::Bus;

mod fault;

pub use fault::FaultReport;

/// Why a vCPU came out of the guest for good, or for a moment.
#[derive(Debug)]
pub enum Exit {
    /// An access to a device was served, or nothing of note happened: run on.
    Handled,
    /// Somebody kicked the thread.
    Kicked,
    /// The guest has no way on (triple fault): real hardware resets.
    Shutdown,
    /// The hypervisor cannot go on with this vCPU.
    Fault(FaultReport),
}

/// Model-specific registers as KVM sets them at power-on, but for those that belong to one vCPU or to time.
type PristineMsrs = Arc<Vec<kvm_msr_entry>>;

struct Pristine {
    regs: kvm_regs,
    sregs: kvm_sregs,
    fpu: kvm_fpu,
    /// Not every KVM has these.
    xcrs: Option<kvm_xcrs>,
    debugregs: kvm_debugregs,
    events: kvm_vcpu_events,
    lapic: kvm_lapic_state,
    mp_state: kvm_mp_state,
    msrs: PristineMsrs,
}

/// One virtual CPU.
pub struct Vcpu {
    fd: VcpuFd,
    index: u8,
    pristine: Pristine,
}

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

/// Time-stamp counter, its adjustment, the local APIC's base, and the deadline timer: set by other means or on purpose.
const NOT_PRISTINE: [u32; 4] = [0x10, 0x3b, 0x1b, MSR_TSC_DEADLINE];
const MSR_TSC_DEADLINE: u32 = 0x6e0;

impl Vcpu {
    /// Makes `count` vCPUs with APIC ids from 0, where `cpuid` says what each one is told about itself, given its
    /// time-stamp counter's frequency if known.
    pub fn create(
        vm: &Vm,
        count: u8,
        cpuid: impl Fn(u8, Option<u32>) -> Result<CpuId, HvError>,
    ) -> Result<Vec<Self>, HvError> {
        let mut vcpus: Vec<Self> = Vec::with_capacity(usize::from(count));
        for index in 0..count {
            let fd = vm
                .fd()
                .create_vcpu(u64::from(index))
                .map_err(doing("create a vCPU"))?;
            // Before anything that depends on features: KVM hides registers of features that the vCPU lacks.
            let tsc_khz = fd.get_tsc_khz().ok();
            fd.set_cpuid2(&cpuid(index, tsc_khz)?)
                .map_err(doing("set CPUID"))?;
            let msrs = match vcpus.first() {
                Some(first) => Arc::clone(&first.pristine.msrs),
                None => Arc::new(read_msrs(vm, &fd)?),
            };
            let pristine = Pristine {
                regs: fd.get_regs().map_err(doing("read registers"))?,
                sregs: fd.get_sregs().map_err(doing("read special registers"))?,
                fpu: fd.get_fpu().map_err(doing("read FPU registers"))?,
                xcrs: fd.get_xcrs().ok(),
                debugregs: fd.get_debug_regs().map_err(doing("read debug registers"))?,
                events: fd.get_vcpu_events().map_err(doing("read vCPU events"))?,
                lapic: fd.get_lapic().map_err(doing("read the local APIC"))?,
                mp_state: fd.get_mp_state().map_err(doing("read the vCPU's state"))?,
                msrs,
            };
            vcpus.push(Self { fd, index, pristine });
        }
        Ok(vcpus)
    }

    /// Which one it is; also its APIC id.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Back to the state after power-on.
    pub fn reset(&self) -> Result<(), HvError> {
        let p = &self.pristine;
        // The APIC's base is in the special registers, and its timer needs its mode before the deadline.
        self.fd
            .set_sregs(&p.sregs)
            .map_err(doing("reset special registers"))?;
        self.fd.set_regs(&p.regs).map_err(doing("reset registers"))?;
        self.fd.set_fpu(&p.fpu).map_err(doing("reset FPU registers"))?;
        if let Some(xcrs) = &p.xcrs {
            self.fd
                .set_xcrs(xcrs)
                .map_err(doing("reset extended control registers"))?;
        }
        self.fd
            .set_debug_regs(&p.debugregs)
            .map_err(doing("reset debug registers"))?;
        self.fd
            .set_lapic(&p.lapic)
            .map_err(doing("reset the local APIC"))?;
        self.set_msrs(&p.msrs)?;
        self.set_msrs(&[msr(MSR_TSC_DEADLINE, 0)])?;
        self.fd
            .set_vcpu_events(&p.events)
            .map_err(doing("reset vCPU events"))?;
        self.fd
            .set_mp_state(p.mp_state)
            .map_err(doing("reset the vCPU's state"))
    }

    /// The special registers.
    pub fn sregs(&self) -> Result<kvm_sregs, HvError> {
        self.fd.get_sregs().map_err(doing("read special registers"))
    }

    /// Sets the registers that a program starts with.
    pub fn set_registers(&self, regs: &kvm_regs, sregs: &kvm_sregs) -> Result<(), HvError> {
        self.fd.set_sregs(sregs).map_err(doing("set special registers"))?;
        self.fd.set_regs(regs).map_err(doing("set registers"))
    }

    /// Sets model-specific registers; those that this KVM does not have are left out.
    pub fn set_msrs(&self, entries: &[kvm_msr_entry]) -> Result<(), HvError> {
        let mut rest = entries;
        while !rest.is_empty() {
            let msrs = Msrs::from_entries(rest)
                .map_err(|_| HvError::Ioctl("take so many MSRs", kvm_ioctls::Error::new(libc::E2BIG)))?;
            let done = self.fd.set_msrs(&msrs).map_err(doing("set MSRs"))?;
            rest = rest.get(done..).unwrap_or_default();
            if let Some((refused, after)) = rest.split_first() {
                tracing::debug!(
                    index = format_args!("{:#x}", refused.index),
                    "KVM does not let this MSR be set"
                );
                rest = after;
            }
        }
        Ok(())
    }

    /// Tells the guest's clock that it was stopped, so that its watchdogs don't bark. Call before running on.
    pub fn resumed(&self) {
        // EINVAL: the guest has not set up the clock.
        let _ = self.fd.kvmclock_ctrl();
    }

    /// Lets kicks of this thread interrupt [`run`](Self::run).
    pub(crate) fn arm(&mut self) -> impl Sized + use<> {
        Armed::new(&mut self.fd)
    }

    /// Forgets a kick. Look for what the kick was about after this, not before.
    pub fn clear_kick(&mut self) {
        self.fd.set_kvm_immediate_exit(0);
    }

    /// Runs guest code until something happens that needs us; accesses to devices are served here.
    pub fn run(&mut self, pio: &Bus, mmio: &Bus) -> Exit {
        match self.fd.run() {
            Ok(VcpuExit::IoIn(..)) => {
                let io = port_io(self.fd.get_kvm_run());
                for unit in io.data.chunks_exact_mut(io.width) {
                    pio.read(io.port, unit);
                }
                Exit::Handled
            }
            Ok(VcpuExit::IoOut(..)) => {
                let io = port_io(self.fd.get_kvm_run());
                for unit in io.data.chunks_exact(io.width) {
                    pio.write(io.port, unit);
                }
                Exit::Handled
            }
            Ok(VcpuExit::MmioRead(addr, data)) => {
                mmio.read(addr, data);
                Exit::Handled
            }
            Ok(VcpuExit::MmioWrite(addr, data)) => {
                mmio.write(addr, data);
                Exit::Handled
            }
            Ok(VcpuExit::Shutdown) => Exit::Shutdown,
            Ok(VcpuExit::Hlt | VcpuExit::Intr) => Exit::Handled,
            Ok(VcpuExit::InternalError) => Exit::Fault(self.internal_error()),
            Ok(VcpuExit::FailEntry(reason, _)) => Exit::Fault(self.report(format!(
                "the processor refused to enter the guest (reason {reason:#x})"
            ))),
            Ok(other) => {
                let what = format!("unexpected exit {other:?}");
                Exit::Fault(self.report(what))
            }
            Err(error) => match error.errno() {
                libc::EINTR => Exit::Kicked,
                libc::EAGAIN => Exit::Handled,
                _ => Exit::Fault(self.report(format!("KVM_RUN failed: {error}"))),
            },
        }
    }
}

/// A MSR entry.
pub fn msr(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

/// All registers that KVM lists and that can be read, as they are now.
fn read_msrs(vm: &Vm, fd: &VcpuFd) -> Result<Vec<kvm_msr_entry>, HvError> {
    let list = vm.kvm().get_msr_index_list().map_err(doing("list MSRs"))?;
    let wanted: Vec<_> = list
        .as_slice()
        .iter()
        .filter(|i| !NOT_PRISTINE.contains(i))
        .map(|i| msr(*i, 0))
        .collect();
    let mut rest = wanted.as_slice();
    let mut read = Vec::with_capacity(rest.len());
    while !rest.is_empty() {
        let mut msrs = Msrs::from_entries(rest)
            .map_err(|_| HvError::Ioctl("take so many MSRs", kvm_ioctls::Error::new(libc::E2BIG)))?;
        let done = fd.get_msrs(&mut msrs).map_err(doing("read MSRs"))?;
        read.extend_from_slice(msrs.as_slice().get(..done).unwrap_or_default());
        // KVM stops at a register that this processor does not have after all.
        rest = rest.get(done + 1..).unwrap_or_default();
    }
    Ok(read)
}

struct PortIo<'a> {
    port: u64,
    /// Bytes of one access; a string instruction makes many.
    width: usize,
    data: &'a mut [u8],
}

/// The data of a port access. `run` must be that of a vCPU that has just come out with `KVM_EXIT_IO`.
fn port_io(run: &mut kvm_run) -> PortIo<'_> {
    let base = (&raw mut *run).cast::<u8>();
    // SAFETY: the exit reason says that this is the union's live member.
    let io = unsafe { run.__bindgen_anon_1.io };
    let width = usize::from(io.size).max(1);
    let len = width * usize::try_from(io.count).unwrap_or(0);
    // SAFETY: KVM places the data of `count` accesses of `size` bytes `data_offset` bytes into the mapping that
    // begins with `run`; the borrow of `run` keeps others from it.
    let data = unsafe {
        std::slice::from_raw_parts_mut(base.add(usize::try_from(io.data_offset).unwrap_or(0)), len)
    };
    PortIo {
        port: u64::from(io.port),
        width,
        data,
    }
}
