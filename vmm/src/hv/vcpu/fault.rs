//! What is told when a vCPU cannot go on.

use std::fmt;

use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES};

use super::Vcpu;

/// Where and why a vCPU stopped for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultReport {
    /// Which vCPU.
    pub vcpu: u8,
    /// What happened.
    pub what: String,
    /// Its instruction pointer, if KVM still tells.
    pub rip: Option<u64>,
    /// The bytes of the instruction there, as far as known.
    pub instruction: Vec<u8>,
    /// Guest-physical address of the instruction, for those who can read guest memory.
    pub instruction_at: Option<u64>,
}

impl fmt::Display for FaultReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}: {}", self.vcpu, self.what)?;
        if let Some(rip) = self.rip {
            write!(f, " at RIP {rip:#x}")?;
        }
        if !self.instruction.is_empty() {
            f.write_str(", instruction bytes")?;
            for byte in &self.instruction {
                write!(f, " {byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl Vcpu {
    pub(super) fn report(&self, what: String) -> FaultReport {
        let rip = self.fd.get_regs().ok().map(|r| r.rip);
        let linear = rip.and_then(|rip| Some(self.fd.get_sregs().ok()?.cs.base.wrapping_add(rip)));
        let physical = linear
            .and_then(|at| self.fd.translate_gva(at).ok())
            .filter(|t| t.valid != 0);
        FaultReport {
            vcpu: self.index,
            what,
            rip,
            instruction: Vec::new(),
            instruction_at: physical.map(|t| t.physical_address),
        }
    }

    pub(super) fn internal_error(&mut self) -> FaultReport {
        let run = self.fd.get_kvm_run();
        // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR; `emulation_failure` extends `internal` and all of its
        // bytes are initialised, being in a page that KVM shares.
        let error = unsafe { run.__bindgen_anon_1.emulation_failure };
        let mut instruction = Vec::new();
        let flag = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
        let what = if error.suberror == KVM_INTERNAL_ERROR_EMULATION {
            if error.ndata >= 3 && error.flags & flag != 0 {
                // SAFETY: the union has one member, and the flag says that it is filled in.
                let bytes = unsafe { error.__bindgen_anon_1.__bindgen_anon_1 };
                let len = usize::from(bytes.insn_size).min(bytes.insn_bytes.len());
                instruction.extend_from_slice(&bytes.insn_bytes[..len]);
            }
            "KVM could not emulate an instruction".to_owned()
        } else {
            format!("KVM internal error {}", error.suberror)
        };
        FaultReport {
            instruction,
            ..self.report(what)
        }
    }
}
