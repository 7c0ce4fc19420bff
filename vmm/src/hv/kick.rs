//! Getting a vCPU thread out of the guest, without a window in which the kick is lost.
//!
//! The kick is a signal. Its handler sets `immediate_exit` of the thread's own vCPU, so a signal that arrives just
//! before `KVM_RUN` makes it return at once, and one that arrives inside interrupts it.

use std::cell::Cell;
use std::ptr;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signal that kicks.
pub fn signal() -> libc::c_int {
    SIGRTMIN()
}

/// Makes the signal known to the process. Call once before the first vCPU thread starts.
pub fn install() -> Result<(), kvm_ioctls::Error> {
    register_signal_handler(signal(), handle)
}

extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: `Armed` keeps the pointer only while the vCPU's run page is mapped, and only in the vCPU's thread,
        // which is the one that this handler interrupts.
        unsafe { flag.write_volatile(1) };
    }
}

/// While it lives, a kick of this thread reaches `vcpu`.
#[derive(Debug)]
pub(super) struct Armed(());

impl Armed {
    /// Points the handler at `vcpu`, which must be neither moved out of this thread nor dropped before the result.
    pub(super) fn new(vcpu: &mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self(())
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}
