//! The region that a back-end has us keep for the next one (vhost-user, "Inflight I/O tracking"). Nobody here looks into it.

use std::fs::File;
use std::os::fd::AsRawFd;

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserInflight, VhostUserProtocolFeatures};

use super::{Link, LinkError, Step, Vring};

/// A region of a back-end's making, for as long as the guest's driver uses its rings.
pub(in crate::vhost_user) struct Kept {
    file: File,
    described: VhostUserInflight,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Kept").field(&self.file).finish()
    }
}

impl Link {
    /// Whether the back-end has something to keep.
    pub(super) fn keeps(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    }

    /// Gives the back-end what the one before it had us keep, or asks for something to keep.
    pub(super) fn hand_kept_over(
        &mut self,
        step: &Step,
        kept: &mut Option<Kept>,
        rings: &[Vring<'_>],
    ) -> Result<(), LinkError> {
        if !self.keeps() {
            return Ok(());
        }
        // What this back-end refuses is not offered to it again.
        let region = if let Some(region) = kept.take() {
            region
        } else {
            let queues = rings.iter().map(|ring| ring.index + 1).max().unwrap_or(1);
            let size = rings.iter().map(|ring| ring.size).max().unwrap_or(1);
            let asked = VhostUserInflight::new(0, 0, queues, size);
            let made = self.plain(|frontend| frontend.get_inflight_fd(&asked));
            let (described, file) = step.check("GET_INFLIGHT_FD", made)?;
            Kept { file, described }
        };
        let frontend = &mut self.requests.0;
        let taken = frontend.set_inflight_fd(&region.described, region.file.as_raw_fd());
        step.check("SET_INFLIGHT_FD", taken)?;
        *kept = Some(region);
        Ok(())
    }
}
