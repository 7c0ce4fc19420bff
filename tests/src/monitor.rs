//! QEMU's monitor: what lies in the emulated host's memory, and its hardware, broken on purpose.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::iommu::Memory;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_mins(1);

/// A session with the monitor (the QEMU Machine Protocol).
#[derive(Debug)]
pub struct Monitor {
    lines: BufReader<UnixStream>,
}

impl Monitor {
    /// A session through `socket`.
    ///
    /// # Panics
    /// When QEMU does not answer.
    pub fn connect(socket: &Path) -> Self {
        let stream =
            UnixStream::connect(socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        stream.set_read_timeout(Some(ANSWER)).expect("a time limit");
        let mut monitor = Self {
            lines: BufReader::new(stream),
        };
        monitor.line();
        monitor.ask("qmp_capabilities", &json!({}));
        monitor
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("QEMU answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"))
    }

    /// Has a command done, and gives what it returns.
    ///
    /// # Panics
    /// When QEMU refuses.
    pub fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.lines.get_mut(), "{request}").expect("QEMU listens");
        loop {
            let mut answer = self.line();
            assert!(answer.get("error").is_none(), "{request}: {answer}");
            // What is no answer is an event.
            if let Some(value) = answer.get_mut("return") {
                return value.take();
            }
        }
    }

    /// A command line for people, and what it prints.
    ///
    /// # Panics
    /// When QEMU refuses.
    pub fn run(&mut self, line: &str) -> String {
        let value = self.ask("human-monitor-command", &json!({ "command-line": line }));
        value.as_str().unwrap_or_default().to_owned()
    }

    /// Does `what` while the machine stands still.
    ///
    /// # Panics
    /// When QEMU refuses.
    pub fn frozen<T>(&mut self, what: impl FnOnce(&mut Self) -> T) -> T {
        self.ask("stop", &json!({}));
        let result = what(self);
        self.ask("cont", &json!({}));
        result
    }
}

impl Memory for Monitor {
    fn words(&mut self, addr: u64, count: usize) -> Vec<u64> {
        let text = self.run(&format!("xp /{count}gx {addr:#x}"));
        let words = dumped(&text);
        assert_eq!(words.len(), count, "{count} words at {addr:#x}: {text}");
        words
    }
}

/// The words of a dump, whose lines are an address, a colon and words.
fn dumped(text: &str) -> Vec<u64> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .flat_map(|(_, words)| words.split_whitespace())
        .filter_map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumps_are_read() {
        let text = "0000000000001000: 0x0000000000000001 0x00000000000000ff\r\n0000000000001010: 0x8000000000000000\r\n";
        assert_eq!(dumped(text), [1, 0xff, 1 << 63]);
        assert_eq!(dumped("Cannot access memory"), [0; 0]);
    }
}
