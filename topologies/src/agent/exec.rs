//! One command on a session: input, output, control and the exit code.

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use netyard_agent::frame::{Frame, Kind, MAX_PAYLOAD, encode};
use netyard_agent::message::{Exec, STDIN_WINDOW, Size, exit_code};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at};

use super::{Agent, AgentError};

/// The most that [`Agent::output`] holds of each stream.
pub const CAPTURE_LIMIT: usize = 16 * 1024 * 1024;

/// How often a running command's agent is asked whether it is still there.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// How long an agent may leave that without answer: longer than a guest in an emulated host takes to boot.
const SILENCE: Duration = Duration::from_mins(3);

/// What the command reads.
#[derive(Debug, Default)]
pub enum Input {
    /// Nothing.
    #[default]
    Empty,
    /// These bytes.
    Bytes(Vec<u8>),
    /// What comes, until the sender is dropped.
    Stream(mpsc::Receiver<Vec<u8>>),
}

/// What happens to a command besides its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// The terminal has another size.
    Resize(Size),
    /// Send it this signal.
    Signal(u8),
    /// Let it go: the session ends and the command with it.
    HangUp,
}

/// Where a command's input comes from and its output goes. Writing the output may block; nothing else is done meanwhile, and the
/// command is held back.
pub struct Stdio<'a> {
    /// Its standard input.
    pub stdin: Input,
    /// Its standard output.
    pub stdout: &'a mut (dyn Write + Send),
    /// Its standard error.
    pub stderr: &'a mut (dyn Write + Send),
    /// Resizes and signals, if any may come.
    pub control: Option<mpsc::Receiver<Control>>,
}

impl fmt::Debug for Stdio<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stdio")
            .field("stdin", &self.stdin)
            .field("control", &self.control)
            .finish_non_exhaustive()
    }
}

/// A command's outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
    /// Its exit code, or 128 and the signal's number.
    pub code: i32,
}

/// Holds what is written, up to a limit.
#[derive(Debug, Default)]
struct Capture(Vec<u8>);

impl Write for Capture {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > CAPTURE_LIMIT {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Agent {
    /// Run a command and return its output and exit code.
    pub async fn output(&mut self, exec: &Exec, input: Input) -> Result<Output, AgentError> {
        let (mut stdout, mut stderr) = (Capture::default(), Capture::default());
        let stdio = Stdio {
            stdin: input,
            stdout: &mut stdout,
            stderr: &mut stderr,
            control: None,
        };
        match self.run(exec, stdio).await {
            Ok(code) => Ok(Output {
                stdout: stdout.0,
                stderr: stderr.0,
                code,
            }),
            Err(AgentError::Output(error)) if error.kind() == io::ErrorKind::OutOfMemory => {
                Err(AgentError::TooMuchOutput)
            }
            Err(error) => Err(error),
        }
    }

    /// Run a command with these streams and return its exit code, or 128 and the number of the signal that ended it. After an
    /// error the session is of no more use.
    pub async fn run(&mut self, exec: &Exec, stdio: Stdio<'_>) -> Result<i32, AgentError> {
        let request = serde_json::to_vec(exec).map_err(|error| AgentError::Protocol(error.to_string()))?;
        if request.len() > MAX_PAYLOAD {
            return Err(AgentError::TooLong(request.len()));
        }
        let mut running = Running::new(stdio);
        encode(&mut running.to_send, Kind::Exec, &request);
        let mut buffer = vec![0; 64 * 1024];
        let mut heard = Instant::now();
        let mut asking = interval_at(heard + ASK_EVERY, ASK_EVERY);
        loop {
            while let Some(frame) = self
                .decoder
                .next_frame()
                .map_err(|error| AgentError::Protocol(error.to_string()))?
            {
                if let Some(code) = running.take(frame)? {
                    running.stdio.stdout.flush().map_err(AgentError::Output)?;
                    return Ok(code);
                }
            }
            running.stdio.stdout.flush().map_err(AgentError::Output)?;
            running.fill();
            tokio::select! {
                ready = self.stream.readable() => {
                    ready.map_err(AgentError::HungUp)?;
                    match self.stream.try_read(&mut buffer) {
                        Ok(0) => return Err(AgentError::HungUp(io::ErrorKind::UnexpectedEof.into())),
                        Ok(n) => {
                            self.decoder.push(&buffer[..n]);
                            heard = Instant::now();
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(AgentError::HungUp(error)),
                    }
                }
                _ = asking.tick() => {
                    if heard.elapsed() > SILENCE {
                        return Err(AgentError::HungUp(io::ErrorKind::TimedOut.into()));
                    }
                    // A guest that boots anew closes no connection: only asking tells.
                    if running.to_send.is_empty() {
                        encode(&mut running.to_send, Kind::Ping, b"");
                    }
                }
                ready = self.stream.writable(), if !running.to_send.is_empty() => {
                    ready.map_err(AgentError::HungUp)?;
                    match self.stream.try_write(&running.to_send) {
                        Ok(n) => drop(running.to_send.drain(..n)),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(AgentError::HungUp(error)),
                    }
                }
                event = running.event() => running.obey(event)?,
            }
        }
    }
}

/// The client's side of a running command.
struct Running<'a> {
    stdio: Stdio<'a>,
    to_send: Vec<u8>,
    /// Input that waits for room in the window.
    input: Vec<u8>,
    more_input: Option<mpsc::Receiver<Vec<u8>>>,
    eof_sent: bool,
    /// Bytes of input sent and not yet taken.
    on_the_way: usize,
}

enum Event {
    Input(Option<Vec<u8>>),
    Control(Option<Control>),
}

impl<'a> Running<'a> {
    fn new(mut stdio: Stdio<'a>) -> Self {
        let (input, more_input) = match std::mem::take(&mut stdio.stdin) {
            Input::Empty => (Vec::new(), None),
            Input::Bytes(bytes) => (bytes, None),
            Input::Stream(receiver) => (Vec::new(), Some(receiver)),
        };
        Self {
            stdio,
            to_send: Vec::new(),
            input,
            more_input,
            eof_sent: false,
            on_the_way: 0,
        }
    }

    /// Queue as much input as the window has room for.
    fn fill(&mut self) {
        let room = STDIN_WINDOW.saturating_sub(self.on_the_way).min(self.input.len());
        if room > 0 {
            encode(&mut self.to_send, Kind::Stdin, &self.input[..room]);
            self.input.drain(..room);
            self.on_the_way += room;
        }
        if self.input.is_empty() && self.more_input.is_none() && !self.eof_sent {
            encode(&mut self.to_send, Kind::StdinEof, &[]);
            self.eof_sent = true;
        }
    }

    /// Wait for more input, unless enough waits already, or for a resize or signal.
    async fn event(&mut self) -> Event {
        let wants_input = self.input.is_empty();
        let input = async {
            match &mut self.more_input {
                Some(receiver) if wants_input => receiver.recv().await,
                _ => std::future::pending().await,
            }
        };
        let control = async {
            match &mut self.stdio.control {
                Some(receiver) => receiver.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            bytes = input => Event::Input(bytes),
            control = control => Event::Control(control),
        }
    }

    fn obey(&mut self, event: Event) -> Result<(), AgentError> {
        match event {
            Event::Input(Some(bytes)) => self.input = bytes,
            Event::Input(None) => self.more_input = None,
            Event::Control(None) => self.stdio.control = None,
            Event::Control(Some(Control::HangUp)) => return Err(AgentError::Interrupted),
            Event::Control(Some(Control::Signal(number))) => {
                encode(&mut self.to_send, Kind::Signal, &[number]);
            }
            Event::Control(Some(Control::Resize(size))) => {
                let size =
                    serde_json::to_vec(&size).map_err(|error| AgentError::Protocol(error.to_string()))?;
                encode(&mut self.to_send, Kind::Resize, &size);
            }
        }
        Ok(())
    }

    /// Take a frame; the exit code if it was the last.
    fn take(&mut self, frame: Frame) -> Result<Option<i32>, AgentError> {
        let Frame { kind, payload } = frame;
        match kind {
            Kind::Stdout => self
                .stdio
                .stdout
                .write_all(&payload)
                .map_err(AgentError::Output)?,
            Kind::Stderr => self
                .stdio
                .stderr
                .write_all(&payload)
                .map_err(AgentError::Output)?,
            Kind::StdinTaken => {
                let taken = payload.try_into().map_or(0, u32::from_le_bytes);
                self.on_the_way = self
                    .on_the_way
                    .saturating_sub(usize::try_from(taken).unwrap_or(usize::MAX));
            }
            Kind::Exit => {
                let code = exit_code(&payload);
                return code
                    .map(Some)
                    .ok_or_else(|| AgentError::Protocol("exit without a code".into()));
            }
            Kind::Refused => {
                let text: String = String::from_utf8_lossy(&payload)
                    .chars()
                    .filter(|c| !c.is_control())
                    .collect();
                return Err(AgentError::Refused(text));
            }
            // Late answers from before the command.
            Kind::Hello | Kind::Pong => {}
            Kind::Exec | Kind::Stdin | Kind::StdinEof | Kind::Resize | Kind::Signal | Kind::Ping => {
                return Err(AgentError::Protocol(format!("{kind:?} is not for a client")));
            }
        }
        Ok(None)
    }
}
