//! Virtqueues from outside: against `virtio-queue` as the oracle, against a model, end against end, and against hostile peers.

mod either;
mod ends;
mod hostile;
mod in_order;
mod malformed;
mod model;
mod notify;
mod oracle;
mod packed;
mod recover;
mod rig;
