//! Split virtqueues from outside: against `virtio-queue` as the oracle, end against end, and against hostile peers.

mod ends;
mod hostile;
mod malformed;
mod notify;
mod oracle;
mod rig;
