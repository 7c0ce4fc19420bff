//! From the other end to the guest: one thread that reads only what the guest has room for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::EventFd;

use super::ends::{RawMode, Source};
use super::output::Output;
use crate::listener::Listener;

/// Ctrl-A, then x: leave. Ctrl-A twice: one for the guest.
const ESCAPE: u8 = 1;
const LEAVE: u8 = b'x';

/// Where input goes.
pub(super) trait Sink: Send + Sync + 'static {
    /// Bytes that it takes now.
    fn room(&self) -> usize;
    /// Takes bytes, at most as many as there is room for.
    fn put(&self, bytes: &[u8]);
    /// What to wait for on what, when there is no room.
    fn drained(&self) -> (BorrowedFd<'_>, PollFlags);
    /// It has happened: the next wait is for the next time.
    fn rearm(&self);
    /// The way back to the same end.
    fn output(&self) -> &Output;
}

pub(super) fn spawn(
    source: Source,
    sink: Arc<impl Sink>,
    stop: EventFd,
    escape: impl Fn() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let (mut reader, keep) = Reader::new(source)?;
    std::thread::Builder::new()
        .name("serial".to_owned())
        .spawn(move || {
            if let Err(error) = run(&mut reader, &*sink, &stop, &escape) {
                tracing::warn!(%error, "serial input has ended");
            }
            drop(keep);
        })
}

struct Reader {
    /// Where bytes come from now.
    fd: Option<OwnedFd>,
    /// Where the next client comes from.
    listener: Option<Listener>,
    /// Set while a terminal is in raw mode; the flag says that the last byte was the escape.
    terminal: Option<(RawMode, bool)>,
}

impl Reader {
    /// A reader, and what has to stay open while it reads.
    fn new(source: Source) -> io::Result<(Self, Option<OwnedFd>)> {
        let mut reader = Self {
            fd: None,
            listener: None,
            terminal: None,
        };
        let mut keep = None;
        match source {
            Source::Stdin(raw) => {
                reader.fd = Some(io::stdin().as_fd().try_clone_to_owned()?);
                reader.terminal = raw.map(|raw| (raw, false));
            }
            Source::Pty { controller, user } => {
                reader.fd = Some(controller);
                keep = Some(user);
            }
            Source::Socket(listener) => reader.listener = Some(listener),
        }
        Ok((reader, keep))
    }

    /// Takes out what is meant for us; true if that was to leave.
    fn filter(&mut self, bytes: &mut Vec<u8>) -> bool {
        let Some((_, escaped)) = &mut self.terminal else {
            return false;
        };
        let mut leave = false;
        bytes.retain(|byte| {
            let was = std::mem::take(escaped);
            *escaped = !was && *byte == ESCAPE;
            leave |= was && *byte == LEAVE;
            !(*escaped || was && *byte == LEAVE)
        });
        leave
    }
}

enum Ready {
    Stop,
    Input,
    Client,
    Again,
}

fn run(reader: &mut Reader, sink: &dyn Sink, stop: &EventFd, escape: &dyn Fn()) -> io::Result<()> {
    loop {
        let room = sink.room();
        match wait(reader, sink, stop, room)? {
            Ready::Stop => return Ok(()),
            Ready::Again => {}
            Ready::Client => accept(reader, sink)?,
            Ready::Input => {
                // With no room only a hang-up leads here; reading nothing would hide it.
                let mut bytes = vec![0; room.max(1)];
                let n = match reader.fd.as_ref().map(|fd| rustix::io::read(fd, &mut bytes)) {
                    Some(Ok(n)) => n,
                    Some(Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR)) => continue,
                    Some(Err(_)) | None => 0,
                };
                if n == 0 {
                    reader.fd = None;
                    if reader.listener.is_some() {
                        sink.output().connect(None);
                    }
                    continue;
                }
                bytes.truncate(n);
                if reader.filter(&mut bytes) {
                    escape();
                }
                sink.put(&bytes);
            }
        }
    }
}

fn wait(reader: &Reader, sink: &dyn Sink, stop: &EventFd, room: usize) -> io::Result<Ready> {
    let (drained, event) = sink.drained();
    let (interest, event) = if room > 0 {
        (PollFlags::IN, PollFlags::empty())
    } else {
        (PollFlags::empty(), event)
    };
    let mut fds = vec![
        PollFd::from_borrowed_fd(crate::fd::borrow(stop), PollFlags::IN),
        PollFd::from_borrowed_fd(drained, event),
    ];
    match (&reader.fd, &reader.listener) {
        (Some(fd), _) => fds.push(PollFd::from_borrowed_fd(fd.as_fd(), interest)),
        (None, Some(listener)) => fds.push(PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)),
        (None, None) => {}
    }
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    if ready[0] {
        return Ok(Ready::Stop);
    }
    if ready[1] {
        sink.rearm();
    }
    Ok(match ready.get(2) {
        Some(true) if reader.fd.is_some() => Ready::Input,
        Some(true) => Ready::Client,
        _ => Ready::Again,
    })
}

fn accept(reader: &mut Reader, sink: &dyn Sink) -> io::Result<()> {
    let Some(listener) = &reader.listener else {
        return Ok(());
    };
    // An error means that it has gone again.
    let Ok((client, _)) = listener.accept() else {
        return Ok(());
    };
    client.set_nonblocking(true)?;
    sink.output().connect(Some(OwnedFd::from(client.try_clone()?)));
    reader.fd = Some(client.into());
    Ok(())
}
