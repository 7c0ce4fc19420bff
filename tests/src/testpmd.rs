//! DPDK's `testpmd` as a virtio driver (`net_virtio_user`) on vhost-user sockets.

mod prompt;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use prompt::Prompt;

const PROGRAM: &str = "dpdk-testpmd";

/// A running `testpmd` with its prompt.
#[derive(Debug)]
pub struct Testpmd(Prompt);

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
        Self(Prompt::start(|command| {
            command
                // The prompt's core and the forwarding core share processor 0, and leave the others to what is tested.
                .args(["--lcores", "0@0,1@0", "--no-huge", "-m", "256", "--no-pci"])
                .args(["--no-telemetry", "--file-prefix", &unique_prefix()])
                .arg("--log-level=pmd.net.virtio.init:info")
                .env("XDG_RUNTIME_DIR", dir);
            if options.contains("vectorized=1") {
                // What packed rings need of it is not used unless it is asked for.
                command.arg("--force-max-simd-bitwidth=512");
            }
            for (index, socket) in sockets.iter().enumerate() {
                let socket = socket.display();
                command.args([
                    "--vdev",
                    &format!("net_virtio_user{index},path={socket}{options}"),
                ]);
            }
            command
                .args(["--", "-i", "--total-num-mbufs=8192", "--no-lsc-interrupt"])
                .args(args);
        }))
    }

    /// Types one command at the prompt.
    ///
    /// # Panics
    /// When the program has ended.
    pub fn enter(&mut self, command: &str) {
        self.0.enter(command);
    }

    /// Reads on until a line holds `text`, and gives that line back.
    ///
    /// # Panics
    /// When no such line comes within `limit`, with all that was printed before.
    pub fn expect(&mut self, text: &str, limit: Duration) -> String {
        self.0.expect(text, limit)
    }

    /// Which of the driver's ways to transmit and to receive the first port takes, in its words. To be asked before anything else.
    ///
    /// # Panics
    /// When the program does not say.
    pub fn paths(&mut self) -> [String; 2] {
        ["Tx", "Rx"].map(|way| {
            let end = format!(" {way} path on port 0");
            let line = self.expect(&end, Duration::from_secs(30));
            let path = line.split("using ").nth(1).unwrap_or_default();
            path.split(&end).next().unwrap_or_default().to_owned()
        })
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
