//! The sessions of one channel.
//!
//! One thread waits for everything at once: the channel, the command's output and input, and its end. Whatever is full is not
//! read from until there is room again, so a slow client slows the command and nothing grows beyond its bound.

mod command;

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;

use crate::frame::{Decoder, Frame, Kind, encode};
use crate::message::{Exec, Hello, STDIN_WINDOW, Size, VERSION};
use command::Running;

/// While this much waits for the client, the command's output is left where it is.
const OUTPUT_LIMIT: usize = 256 * 1024;

/// How long a port may be without a client before its session ends.
const GRACE: Duration = Duration::from_secs(1);

/// How commands are started on this machine.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// The program that understands [`crate::launch::ARGUMENT`]: the agent itself.
    pub program: PathBuf,
    /// The root directory commands get, if not the agent's own.
    pub root: Option<PathBuf>,
}

/// Serve one client after another on `channel` until it ends: for a socket when the client goes, for a virtio-serial port
/// when the outside disconnects. A command still running then is ended.
///
/// The channel must be in non-blocking mode.
pub fn serve(channel: impl AsFd, launcher: &Launcher) -> io::Result<()> {
    let mut session = Session::default();
    let result = session.run(channel.as_fd(), launcher);
    session.end_command();
    result
}

/// Whether the outside is gone and stays gone.
///
/// A port learns of clients by messages on another queue than their bytes take. On a slow machine the end of one client can be
/// heard when the next one's greeting was already answered; its session must not end for that. If the outside comes back in
/// time, a new client's greeting ends the old client's command.
fn hung_up_for_good(channel: rustix::fd::BorrowedFd<'_>) -> io::Result<bool> {
    let kind = FileType::from_raw_mode(fstat(channel)?.st_mode);
    if kind != FileType::CharacterDevice {
        return Ok(true);
    }
    let end = Instant::now() + GRACE;
    while Instant::now() < end {
        let mut fds = [PollFd::from_borrowed_fd(channel, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec::default())) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !fds[0]
            .revents()
            .intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL)
        {
            return Ok(false);
        }
        std::thread::sleep(GRACE / 50);
    }
    Ok(true)
}

#[derive(Debug, Default)]
struct Session {
    decoder: Decoder,
    output: Vec<u8>,
    greeted: bool,
    running: Option<Running>,
}

/// What `poll` had to say, without the borrows.
#[derive(Debug, Clone, Copy)]
struct Ready {
    channel: PollFlags,
    /// By [`STDIN`], [`STDOUT`], [`STDERR`] and [`END`].
    command: [bool; 4],
}

const STDIN: usize = 0;
const STDOUT: usize = 1;
const STDERR: usize = 2;
const END: usize = 3;

impl Session {
    fn run(&mut self, channel: rustix::fd::BorrowedFd<'_>, launcher: &Launcher) -> io::Result<()> {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let ready = self.wait(channel)?;
            if ready
                .channel
                .intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL)
            {
                if hung_up_for_good(channel)? {
                    return Ok(());
                }
                continue;
            }
            if ready.channel.contains(PollFlags::IN) {
                match rustix::io::read(channel, &mut buffer[..]) {
                    Ok(0) if !hung_up_for_good(channel)? => {}
                    Ok(0) | Err(Errno::PIPE | Errno::CONNRESET | Errno::NODEV) => return Ok(()),
                    Ok(n) => self.take(&buffer[..n], launcher),
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            self.serve_command(ready, &mut buffer);
            match rustix::io::write(channel, &self.output) {
                _ if self.output.is_empty() => {}
                Ok(n) => drop(self.output.drain(..n)),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NODEV) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn wait(&self, channel: rustix::fd::BorrowedFd<'_>) -> io::Result<Ready> {
        let mut flags = PollFlags::empty();
        if self.output.len() < 2 * OUTPUT_LIMIT {
            flags |= PollFlags::IN;
        }
        if !self.output.is_empty() {
            flags |= PollFlags::OUT;
        }
        let room = self.output.len() < OUTPUT_LIMIT;
        let mut fds = vec![PollFd::from_borrowed_fd(channel, flags)];
        let mut index = [None; 4];
        if let Some(running) = &self.running {
            let wanted = [
                running.stdin_to_fill().map(|fd| (fd, PollFlags::OUT)),
                running.stdout().filter(|_| room).map(|fd| (fd, PollFlags::IN)),
                running.stderr().filter(|_| room).map(|fd| (fd, PollFlags::IN)),
                room.then_some((running.pidfd(), PollFlags::IN)),
            ];
            for (slot, wanted) in index.iter_mut().zip(wanted) {
                if let Some((fd, flags)) = wanted {
                    *slot = Some(fds.len());
                    fds.push(PollFd::from_borrowed_fd(fd, flags));
                }
            }
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let command = index.map(|slot| slot.is_some_and(|at| !fds[at].revents().is_empty()));
        Ok(Ready {
            channel: fds[0].revents(),
            command,
        })
    }

    fn serve_command(&mut self, ready: Ready, buffer: &mut [u8]) {
        let Some(running) = &mut self.running else { return };
        if ready.command[STDIN] {
            let taken = running.feed_stdin();
            if taken > 0 {
                encode(&mut self.output, Kind::StdinTaken, &taken.to_le_bytes());
            }
        }
        if ready.command[STDOUT]
            && let Some(n) = running.read_stdout(buffer)
        {
            encode(&mut self.output, Kind::Stdout, &buffer[..n]);
        }
        if ready.command[STDERR]
            && let Some(n) = running.read_stderr(buffer)
        {
            encode(&mut self.output, Kind::Stderr, &buffer[..n]);
        }
        if ready.command[END] {
            // What the command wrote before it ended is in the pipes, at most their size. Processes that it left behind may
            // hold the pipes open for ever and are not waited for.
            for _ in 0..=command::MAX_PIPE / buffer.len() {
                let Some(n) = running.read_stdout(buffer) else {
                    break;
                };
                encode(&mut self.output, Kind::Stdout, &buffer[..n]);
            }
            for _ in 0..=command::MAX_PIPE / buffer.len() {
                let Some(n) = running.read_stderr(buffer) else {
                    break;
                };
                encode(&mut self.output, Kind::Stderr, &buffer[..n]);
            }
            if let Some(code) = running.reap() {
                self.running = None;
                encode(&mut self.output, Kind::Exit, &code.to_le_bytes());
            }
        }
    }

    fn take(&mut self, bytes: &[u8], launcher: &Launcher) {
        self.decoder.push(bytes);
        loop {
            match self.decoder.next_frame() {
                Ok(None) => return,
                Ok(Some(frame)) => {
                    if let Err(refusal) = self.handle(&frame, launcher) {
                        self.refuse(&refusal);
                    }
                }
                Err(error) => {
                    self.refuse(&error.to_string());
                    self.greeted = false;
                    self.end_command();
                }
            }
        }
    }

    fn refuse(&mut self, why: &str) {
        encode(&mut self.output, Kind::Refused, why.as_bytes());
    }

    fn handle(&mut self, frame: &Frame, launcher: &Launcher) -> Result<(), String> {
        if frame.kind == Kind::Hello {
            return self.greet(&frame.payload);
        }
        if !self.greeted {
            // The tail of an earlier client's session, or one of a client that talked to the agent before this machine booted
            // anew. That one asks from time to time, and is told.
            return match frame.kind {
                Kind::Ping => Err("the machine was started anew, and the command is gone".to_owned()),
                _ => Ok(()),
            };
        }
        match frame.kind {
            Kind::Exec => self.exec(&frame.payload, launcher),
            Kind::Stdin => {
                // Input for a command that has just ended comes with every fast exit: it is no mistake.
                let Some(running) = &mut self.running else {
                    return Ok(());
                };
                if running.pending_stdin() + frame.payload.len() > STDIN_WINDOW {
                    self.end_command();
                    return Err(format!(
                        "more than {STDIN_WINDOW} bytes of standard input on the way; command ended"
                    ));
                }
                let taken = running.queue_stdin(&frame.payload);
                if taken > 0 {
                    encode(&mut self.output, Kind::StdinTaken, &taken.to_le_bytes());
                }
                Ok(())
            }
            Kind::StdinEof => {
                if let Some(running) = &mut self.running {
                    running.close_stdin();
                }
                Ok(())
            }
            Kind::Resize => {
                let size: Size = parse(&frame.payload, "terminal size")?;
                self.running.as_ref().map_or(Ok(()), |running| {
                    running.resize(size).map_err(|error| error.to_string())
                })
            }
            Kind::Signal => {
                let [number] = frame.payload[..] else {
                    return Err("signal is not one byte".into());
                };
                self.running
                    .as_ref()
                    .map_or(Ok(()), |running| running.signal(number))
            }
            Kind::Ping => {
                encode(&mut self.output, Kind::Pong, &frame.payload);
                Ok(())
            }
            Kind::Hello
            | Kind::Stdout
            | Kind::Stderr
            | Kind::Exit
            | Kind::Pong
            | Kind::StdinTaken
            | Kind::Refused => Err(format!("{:?} is not for the agent", frame.kind)),
        }
    }

    fn greet(&mut self, payload: &[u8]) -> Result<(), String> {
        let hello = Hello::from_bytes(payload).ok_or("greeting is too short")?;
        self.end_command();
        self.output.clear();
        self.greeted = true;
        encode(
            &mut self.output,
            Kind::Hello,
            &Hello {
                version: VERSION,
                ..hello
            }
            .to_bytes(),
        );
        Ok(())
    }

    fn exec(&mut self, payload: &[u8], launcher: &Launcher) -> Result<(), String> {
        if self.running.is_some() {
            return Err("a command is running on this channel already; use another channel".into());
        }
        let exec: Exec = parse(payload, "command")?;
        self.running = Some(
            Running::start(&exec, launcher).map_err(|error| format!("cannot start a command: {error}"))?,
        );
        Ok(())
    }

    fn end_command(&mut self) {
        if let Some(running) = self.running.take() {
            running.end();
        }
    }
}

fn parse<'a, T: serde::Deserialize<'a>>(payload: &'a [u8], what: &str) -> Result<T, String> {
    serde_json::from_slice(payload).map_err(|error| format!("{what} not understood: {error}"))
}
