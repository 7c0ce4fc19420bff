//! Waits for what the host has to say about a device: it wants it back, or the device has failed.

use std::io;

use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::host::{HostDevice, Irq};
use crate::fd;

/// What the host says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It wants the device back. It says so again until it has it.
    Wanted,
    /// The device has reported an error that it does not recover from.
    Failed,
}

/// A thread that waits, until it is dropped.
#[derive(Debug)]
pub struct Watch {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Has `tell` hear of everything about `device`.
    pub fn start(device: &dyn HostDevice, tell: impl Fn(Notice) + Send + 'static) -> io::Result<Self> {
        let new = || EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let (wanted, failed, stop) = (new()?, new()?, new()?);
        for (irq, event) in [(Irq::Request, &wanted), (Irq::Error, &failed)] {
            // Not every device can report errors, nor every host ask for one.
            if device.irq_count(irq) > 0
                && let Err(error) = device.set_triggers(irq, 0, &[Some(event)])
            {
                tracing::warn!(?irq, %error, "the host's notices about a device are not heard");
            }
        }
        let stopped = stop.try_clone()?;
        let thread = std::thread::Builder::new()
            .name("vfio".to_owned())
            .spawn(move || wait(&wanted, &failed, &stopped, &tell))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

fn wait(wanted: &EventFd, failed: &EventFd, stop: &EventFd, tell: &dyn Fn(Notice)) {
    loop {
        let mut fds =
            [stop, failed, wanted].map(|event| PollFd::from_borrowed_fd(fd::borrow(event), PollFlags::IN));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "the host's notices about a device are not heard any more");
                return;
            }
        }
        if stop.read().is_ok() {
            return;
        }
        for (event, notice) in [(failed, Notice::Failed), (wanted, Notice::Wanted)] {
            if event.read().is_ok() {
                tell(notice);
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;
    use crate::vfio::testing::igb;

    #[test]
    fn the_host_is_heard_until_the_watch_ends() {
        let device = igb();
        let (sender, receiver) = channel();
        let watch = Watch::start(&device, move |notice| sender.send(notice).unwrap()).unwrap();
        let notices = std::mem::take(&mut *device.notices.lock().unwrap());
        assert_eq!(notices.len(), 2);
        for (irq, event) in &notices {
            event.write(1).unwrap();
            let notice = if *irq == Irq::Error {
                Notice::Failed
            } else {
                Notice::Wanted
            };
            assert_eq!(receiver.recv_timeout(Duration::from_secs(20)), Ok(notice));
        }
        drop(watch);
        // The thread has ended, and with it the sender.
        receiver.recv().unwrap_err();
    }
}
