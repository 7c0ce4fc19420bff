//! The region in which a front-end keeps for the next back-end what this one knows.

use std::fs::File;

use vhost::vhost_user::Result;
use vhost::vhost_user::message::VhostUserInflight;

use super::super::inflight::Inflight;
use super::{Handler, refused};

impl Handler {
    /// `GET_INFLIGHT_FD`: a new region.
    pub(super) fn make_inflight(&self, asked: VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (file, len) = Inflight::make(self.port.vrings()).map_err(refused)?;
        Ok((
            VhostUserInflight {
                mmap_size: len,
                mmap_offset: 0,
                ..asked
            },
            file,
        ))
    }

    /// `SET_INFLIGHT_FD`: the region to go by from now on.
    pub(super) fn take_inflight(&mut self, described: VhostUserInflight, file: File) -> Result<()> {
        if self.rings.iter().any(|ring| ring.running) {
            return Err(refused(
                "the inflight region cannot change while rings run; stop them first",
            ));
        }
        let VhostUserInflight {
            mmap_size,
            mmap_offset,
            ..
        } = described;
        let mapped = Inflight::map(file.into(), mmap_offset, mmap_size, self.port.vrings());
        self.inflight = Some(mapped.map_err(refused)?);
        Ok(())
    }

    /// Keep what the driver has set for a back-end that may have to go on.
    pub(super) fn keep_control(&mut self) {
        if let (Some(inflight), Some(state)) = (&mut self.inflight, &self.control.state) {
            inflight.keep(state);
        }
    }
}
