//! A `testpmd` and its prompt.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::PROGRAM;

/// A running `testpmd`; it ends with the value.
#[derive(Debug)]
pub struct Prompt {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    transcript: Vec<String>,
}

impl Prompt {
    /// Starts it; `prepare` adds what it is started with.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(prepare: impl FnOnce(&mut Command)) -> Self {
        // On a pipe it would keep its answers to itself until a buffer is full.
        let mut command = Command::new("stdbuf");
        command.args(["-oL", PROGRAM].map(OsStr::new));
        prepare(&mut command);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{PROGRAM} did not start: {error}"));
        let stdin = child.stdin.take().expect("stdin is a pipe");
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let stderr = child.stderr.take().expect("stderr is a pipe");
        let (sender, lines) = channel();
        pass_on(stdout, sender.clone());
        pass_on(stderr, sender);
        Self {
            child,
            stdin,
            lines,
            transcript: Vec::new(),
        }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Types one command.
    ///
    /// # Panics
    /// When the program has ended.
    pub fn enter(&mut self, command: &str) {
        writeln!(self.stdin, "{command}")
            .and_then(|()| self.stdin.flush())
            .unwrap_or_else(|error| panic!("{command}: {error}\n{}", self.transcript.join("\n")));
    }

    /// Reads on until a line holds `text`, and gives that line back.
    ///
    /// # Panics
    /// When no such line comes within `limit`, with all that was printed before.
    pub fn expect(&mut self, text: &str, limit: Duration) -> String {
        let end = Instant::now() + limit;
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    self.transcript.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("testpmd never printed {text:?}:\n{}", self.transcript.join("\n"))
                }
            }
        }
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        // Already gone after `quit`; otherwise a failing test must not leave a busy process behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends on what the process prints, line by line.
fn pass_on(printed: impl Read + Send + 'static, to: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(printed).lines().map_while(Result::ok) {
            if to.send(line).is_err() {
                break;
            }
        }
    });
}
