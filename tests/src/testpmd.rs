//! DPDK's `testpmd` as a virtio driver (`net_virtio_user`) on vhost-user sockets.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const PROGRAM: &str = "dpdk-testpmd";

/// A running `testpmd` with its prompt.
#[derive(Debug)]
pub struct Testpmd {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    transcript: Vec<String>,
}

/// What `show port stats` says of one port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames that the port received.
    pub rx_packets: u64,
    /// Frames that the port sent.
    pub tx_packets: u64,
}

/// Whether the program is installed.
pub fn is_installed() -> bool {
    crate::bin::has_program(PROGRAM)
}

impl Testpmd {
    /// Starts `testpmd` with one virtio-user port a socket, `options` appended to each port (`mrg_rxbuf=0`, `packed_vq=1`, …),
    /// and its runtime files in `dir`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(dir: &Path, sockets: &[PathBuf], options: &str, args: &[&str]) -> Self {
        // On a pipe it would keep its answers to itself until a buffer is full.
        let mut command = Command::new("stdbuf");
        command
            .args(["-oL", PROGRAM])
            // The prompt's core and the forwarding core share processor 0, and leave the others to what is tested.
            .args(["--lcores", "0@0,1@0", "--no-huge", "-m", "256", "--no-pci"])
            .args(["--no-telemetry", "--file-prefix", &unique_prefix()])
            .env("XDG_RUNTIME_DIR", dir);
        for (index, socket) in sockets.iter().enumerate() {
            let socket = socket.display();
            command.args([
                "--vdev",
                &format!("net_virtio_user{index},path={socket}{options}"),
            ]);
        }
        command
            .args(["--", "-i", "--total-num-mbufs=8192", "--no-lsc-interrupt"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{PROGRAM} did not start: {error}"));
        let stdin = child.stdin.take().expect("stdin is a pipe");
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            stdin,
            lines,
            transcript: Vec::new(),
        }
    }

    /// Types one command at the prompt.
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

    /// The counters of `ports` ports.
    ///
    /// # Panics
    /// When the program does not print them.
    pub fn stats(&mut self, ports: usize) -> Vec<PortStats> {
        self.enter("show port stats all");
        (0..ports)
            .map(|port| {
                let limit = Duration::from_secs(10);
                self.expect(&format!("NIC statistics for port {port} "), limit);
                let rx = self.expect("RX-packets:", limit);
                let tx = self.expect("TX-packets:", limit);
                PortStats {
                    rx_packets: number_after(&rx, "RX-packets:"),
                    tx_packets: number_after(&tx, "TX-packets:"),
                }
            })
            .collect()
    }

    /// Ends the program the way a person does.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn quit(mut self) {
        self.enter("quit");
        self.expect("Bye...", Duration::from_secs(20));
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        // Already gone after `quit`; otherwise a failing test must not leave a busy process behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unique_prefix() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "ny{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

fn number_after(line: &str, label: &str) -> u64 {
    line.split(label)
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no number after {label} in {line:?}"))
}
