//! What the guest agent and its clients share, and the agent itself.
//!
//! A guest has named virtio-serial ports `netyard.agent.0`, `netyard.agent.1`, …; on the outside each is a Unix socket. Every
//! port is one *channel* and carries one session at a time: a client greets ([`frame::Kind::Hello`]), then runs commands one
//! after another. Both directions carry the frames of [`frame`].
//!
//! - [`frame`] and [`message`] are the protocol; clients need nothing else.
//! - [`serve`] runs the sessions of one channel.
//! - [`launch`] is the short-lived process between the agent and a command.
//! - [`ports`] finds the channels of this machine, [`power`] obeys its power button.
#![forbid(unsafe_code)]

pub mod frame;
pub mod launch;
pub mod message;
pub mod ports;
pub mod power;
pub mod serve;
