//! A wire that gives every frame back on the pair that sent it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vhost_net_backend::nic::{Delivery, Nic, Receiver};
use vhost_net_backend::wire::{Sent, Wire};
use virtio::memory::{GuestSlice, chain_len, read_chain};
use virtio::net::NetHeader;

/// Frames that may wait for the guest.
const DEPTH: usize = 1024;

#[derive(Default)]
pub(crate) struct Echo {
    frames: VecDeque<(NetHeader, Vec<u8>)>,
}

impl Wire for Echo {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn event(&mut self) {}

    fn features_acked(&mut self, _acked: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        if !enabled {
            self.frames.clear();
        }
        Ok(())
    }

    fn send(&mut self, header: &NetHeader, chain: &[GuestSlice<'_>], off: usize) -> Sent {
        if self.frames.len() == DEPTH {
            return Sent::Refused;
        }
        let mut frame = vec![0; chain_len(chain) - off];
        read_chain(chain, off, &mut frame);
        self.frames.push_back((*header, frame));
        Sent::Done
    }

    fn flush(&mut self) {}

    fn receive(&mut self, receiver: &mut Receiver<'_>) {
        while let Some((header, frame)) = self.frames.front().filter(|_| receiver.wants_more()) {
            if receiver.deliver(header, frame) == Delivery::NoRoom {
                break;
            }
            self.frames.pop_front();
        }
    }

    fn is_ready(&mut self) -> bool {
        !self.frames.is_empty()
    }
}

/// A NIC whose frames all come back.
pub(crate) fn echo(pairs: u16, mtu: Option<u16>) -> Arc<Nic> {
    Nic::start(
        (0..pairs)
            .map(|_| Box::<Echo>::default() as Box<dyn Wire>)
            .collect(),
        mtu,
    )
    .unwrap()
}
