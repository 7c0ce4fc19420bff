//! One running command: its process, pipes or terminal.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::Launcher;
use crate::launch::Launch;
use crate::message::{Exec, Size};

/// No pipe or terminal holds more than this unless somebody asked for it.
pub(super) const MAX_PIPE: usize = 64 * 1024;

/// How long a command may take to end by itself when its client is gone.
const GRACE: Duration = Duration::from_millis(500);

/// What a terminal takes for the end of input.
const END_OF_TRANSMISSION: u8 = 4;

/// The command's environment before the client's additions.
const ENVIRONMENT: [(&str, &str); 3] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", "/root"),
    ("TERM", "linux"),
];

#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    pid: Pid,
    pidfd: OwnedFd,
    stdin: Option<File>,
    stdin_queue: VecDeque<u8>,
    stdin_ends: bool,
    stdout: Option<File>,
    stderr: Option<File>,
    terminal: Option<File>,
}

impl Running {
    pub(super) fn start(exec: &Exec, launcher: &Launcher) -> io::Result<Self> {
        if exec.argv.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no program named"));
        }
        let launch = Launch {
            root: launcher.root.clone(),
            cwd: exec.cwd.as_ref().map(Into::into),
            tty: exec.tty.is_some(),
            argv: exec.argv.iter().map(Into::into).collect(),
        };
        let mut command = Command::new(&launcher.program);
        command
            .args(launch.to_arguments())
            .env_clear()
            .envs(ENVIRONMENT)
            .envs(exec.env.iter().cloned());
        let master = exec
            .tty
            .map(|size| attach_terminal(&mut command, size))
            .transpose()?;
        if master.is_none() {
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
        }
        let mut child = command.spawn()?;
        // The command holds the terminal's other end; the agent's copy would keep it open for ever.
        drop(command);
        let pid = Pid::from_child(&child);
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                child.kill()?;
                child.wait()?;
                return Err(error.into());
            }
        };
        let mut running = Self {
            pid,
            pidfd,
            stdin: child.stdin.take().map(|pipe| File::from(OwnedFd::from(pipe))),
            stdin_queue: VecDeque::new(),
            stdin_ends: false,
            stdout: child.stdout.take().map(|pipe| File::from(OwnedFd::from(pipe))),
            stderr: child.stderr.take().map(|pipe| File::from(OwnedFd::from(pipe))),
            terminal: None,
            child,
        };
        if let Err(error) = running.adopt(master) {
            running.end();
            return Err(error);
        }
        Ok(running)
    }

    /// Take the terminal's master side as input and output, if there is one, and make every descriptor non-blocking.
    fn adopt(&mut self, master: Option<File>) -> io::Result<()> {
        if let Some(master) = master {
            self.stdin = Some(master.try_clone()?);
            self.stdout = Some(master.try_clone()?);
            self.terminal = Some(master);
        }
        for file in [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten() {
            let flags = rustix::fs::fcntl_getfl(file)?;
            rustix::fs::fcntl_setfl(file, flags | OFlags::NONBLOCK)?;
        }
        Ok(())
    }

    /// The command's input, while something waits to be written there.
    pub(super) fn stdin_to_fill(&self) -> Option<BorrowedFd<'_>> {
        self.stdin
            .as_ref()
            .filter(|_| !self.stdin_queue.is_empty())
            .map(AsFd::as_fd)
    }

    pub(super) fn stdout(&self) -> Option<BorrowedFd<'_>> {
        self.stdout.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn stderr(&self) -> Option<BorrowedFd<'_>> {
        self.stderr.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    pub(super) fn pending_stdin(&self) -> usize {
        self.stdin_queue.len()
    }

    /// Queue input and write what the command takes now; returns how many bytes need not be counted any more.
    pub(super) fn queue_stdin(&mut self, bytes: &[u8]) -> u32 {
        self.stdin_queue.extend(bytes);
        self.feed_stdin()
    }

    /// The client has no more input.
    pub(super) fn close_stdin(&mut self) {
        if self.terminal.is_some() {
            self.stdin_queue.push_back(END_OF_TRANSMISSION);
        }
        self.stdin_ends = true;
        self.feed_stdin();
    }

    /// Write waiting input. Once the command reads no more the rest is dropped, which counts as taken.
    pub(super) fn feed_stdin(&mut self) -> u32 {
        let before = self.stdin_queue.len();
        while let Some(stdin) = &mut self.stdin
            && !self.stdin_queue.is_empty()
        {
            match stdin.write(self.stdin_queue.as_slices().0) {
                Ok(n) => drop(self.stdin_queue.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.stdin = None,
            }
        }
        if self.stdin.is_none() {
            self.stdin_queue.clear();
        }
        if self.stdin_ends && self.stdin_queue.is_empty() {
            self.stdin = None;
        }
        u32::try_from(before - self.stdin_queue.len()).unwrap_or(u32::MAX)
    }

    /// Some output, or `None` if there is none now. At its end the descriptor is closed.
    pub(super) fn read_stdout(&mut self, buffer: &mut [u8]) -> Option<usize> {
        read_some(&mut self.stdout, buffer)
    }

    /// Like [`Running::read_stdout`].
    pub(super) fn read_stderr(&mut self, buffer: &mut [u8]) -> Option<usize> {
        read_some(&mut self.stderr, buffer)
    }

    /// Set the terminal's size, if there is one.
    pub(super) fn resize(&self, size: Size) -> io::Result<()> {
        match &self.terminal {
            Some(terminal) => Ok(rustix::termios::tcsetwinsize(terminal, winsize(size))?),
            None => Ok(()),
        }
    }

    /// Send a signal to the command's process group.
    pub(super) fn signal(&self, number: u8) -> Result<(), String> {
        let signal =
            Signal::from_named_raw(i32::from(number)).ok_or_else(|| format!("no signal {number}"))?;
        self.kill(signal);
        Ok(())
    }

    /// Signal the process group or, before the launcher has made one, the launcher. Nobody left to signal is no mistake: the
    /// message met the command's end.
    fn kill(&self, signal: Signal) {
        if kill_process_group(self.pid, signal).is_err() {
            let _ = kill_process(self.pid, signal);
        }
    }

    /// The exit code, once the process has ended.
    pub(super) fn reap(&mut self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt as _;
        let status = self.child.try_wait().ok()??;
        Some(
            status
                .code()
                .or_else(|| status.signal().map(|signal| 128 + signal))
                .unwrap_or(255),
        )
    }

    /// End the command: ask its process group, wait a moment, then insist.
    pub(super) fn end(mut self) {
        self.stdin = None;
        self.stdout = None;
        self.stderr = None;
        self.terminal = None;
        for signal in [Signal::HUP, Signal::TERM, Signal::CONT] {
            self.kill(signal);
        }
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let grace = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(GRACE.subsec_nanos()),
        };
        let _ = poll(&mut fds, Some(&grace));
        // Before the process is reaped its number stands for this group and for no other.
        self.kill(Signal::KILL);
        let _ = self.child.wait();
    }
}

fn read_some(from: &mut Option<File>, buffer: &mut [u8]) -> Option<usize> {
    loop {
        match from.as_mut()?.read(buffer) {
            Ok(0) => *from = None,
            Ok(n) => return Some(n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            // A terminal reports an error instead of an end.
            Err(_) => *from = None,
        }
    }
}

fn attach_terminal(command: &mut Command, size: Size) -> io::Result<File> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    rustix::termios::tcsetwinsize(&slave, winsize(size))?;
    command
        .stdin(slave.try_clone()?)
        .stdout(slave.try_clone()?)
        .stderr(slave);
    Ok(File::from(master))
}

fn winsize(size: Size) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
