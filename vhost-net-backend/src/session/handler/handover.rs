//! A front-end's device, put into words and back.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use virtio::memory::{MemoryMap, Region};

use super::super::handover::{ConnectionState, Fds, RegionState, SavedKick, SavedRing};
use super::super::inflight::Inflight;
use super::super::rings::{Addresses, Kicking, RingState};
use super::Handler;
use crate::eventfd::{Call, Kick};

fn again(fd: &impl AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}

impl Handler {
    /// Stop every ring and say where everything is. The memory stays mapped until the handler goes.
    pub(in super::super) fn save(&mut self) -> io::Result<(ConnectionState, Vec<OwnedFd>)> {
        let mut fds = Vec::new();
        let (socket, link_known) = self.back_channel.save();
        let back_channel = socket.is_some();
        fds.extend(socket.map(again).transpose()?);
        for (_, file) in &self.files {
            fds.push(again(file)?);
        }
        let regions = self.files.iter().map(|(region, _)| *region).collect();
        let mut rings = Vec::new();
        for index in 0..self.port.vrings() {
            let control = self.is_control(index).then(|| self.stop_control()).flatten();
            let ring = &mut self.rings[usize::from(index)];
            if std::mem::take(&mut ring.running) {
                ring.base = control.unwrap_or_else(|| self.plane.ring_stopped(index));
                ring.kick = ring.watched.take().map_or(Kicking::Never, Kicking::Fd);
            }
            let (kick, fd) = match &ring.kick {
                Kicking::Unknown => (SavedKick::Unknown, None),
                Kicking::Never => (SavedKick::Never, None),
                Kicking::Fd(kick) => (SavedKick::Fd, Some(again(kick)?)),
            };
            fds.extend(fd);
            for call in [&ring.call, &ring.err].into_iter().flatten() {
                fds.push(again(call)?);
            }
            rings.push(SavedRing {
                size: ring.size,
                addresses: ring.addresses.map(|at| [at.desc, at.avail, at.used]),
                base: ring.base,
                enabled: ring.enabled,
                kick,
                call: ring.call.is_some(),
                err: ring.err.is_some(),
            });
        }
        let inflight = match &self.inflight {
            Some(inflight) => {
                let (offset, file) = inflight.save()?;
                fds.push(file);
                Some((offset, inflight.region_len()))
            }
            None => None,
        };
        let state = ConnectionState {
            inflight,
            features: self.features,
            protocol: self.negotiated.then_some(self.protocol),
            mtu: self.shared.status().mtu,
            regions,
            rings,
            back_channel,
            link_known,
            control: self.control.state.clone().map(Box::new),
            mac: self.control.mac,
        };
        Ok((state, fds))
    }

    /// Go on where another handler stopped; features are negotiated already.
    pub(in super::super) fn restore(&mut self, state: &ConnectionState, fds: &mut Fds) -> io::Result<()> {
        if state.rings.len() != self.rings.len() {
            return Err(io::Error::other("it has another number of rings"));
        }
        let socket = fds.next_if(state.back_channel)?;
        self.back_channel.restore(socket, state.link_known);
        let mut regions = Vec::new();
        for region in &state.regions {
            let file = fds.next()?;
            let RegionState {
                guest_addr,
                user_addr,
                len,
                offset,
            } = *region;
            let mapped =
                Region::map(file.as_fd(), offset, guest_addr, user_addr, len).map_err(io::Error::other)?;
            regions.push(mapped);
            self.files.push((*region, file));
        }
        if !regions.is_empty() {
            self.memory = Some(Arc::new(MemoryMap::new(regions).map_err(io::Error::other)?));
        }
        for (ring, saved) in self.rings.iter_mut().zip(&state.rings) {
            *ring = restored(saved, fds)?;
        }
        if let Some((offset, len)) = state.inflight {
            let file = fds.next()?;
            self.inflight = Some(Inflight::map(file, offset, len, self.port.vrings())?);
        }
        self.shared.status().mtu = state.mtu;
        self.control.mac = state.mac;
        self.control.state = state.control.as_deref().cloned();
        self.start_all().map_err(io::Error::other)?;
        self.publish_status();
        Ok(())
    }
}

fn restored(saved: &SavedRing, fds: &mut Fds) -> io::Result<RingState> {
    let kick = match saved.kick {
        SavedKick::Unknown => Kicking::Unknown,
        SavedKick::Never => Kicking::Never,
        SavedKick::Fd => Kicking::Fd(Kick::new(File::from(fds.next()?)).map_err(io::Error::other)?),
    };
    let mut call = |there| {
        let fd = fds.next_if(there)?;
        let call = fd.map(|fd| Call::new(File::from(fd)).map_err(io::Error::other));
        call.transpose()
    };
    Ok(RingState {
        size: saved.size,
        addresses: saved
            .addresses
            .map(|[desc, avail, used]| Addresses { desc, avail, used }),
        base: saved.base,
        kick,
        call: call(saved.call)?,
        err: call(saved.err)?,
        enabled: saved.enabled,
        ..RingState::default()
    })
}
