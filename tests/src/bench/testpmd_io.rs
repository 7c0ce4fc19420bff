//! `testpmd` with a vhost-user back-end (`net_vhost`) a socket in `io` mode: two copies, and no look at any frame.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{cpus, work};
use crate::deadline::wait_for;
use crate::testpmd::Prompt;

const LIMIT: Duration = Duration::from_secs(30);

/// A running `testpmd` that moves frames from one port of each pair to the other; it ends with the value.
#[derive(Debug)]
pub struct TestpmdIo(Prompt);

impl TestpmdIo {
    /// Starts it with a port for each socket, which it makes, and its files in `dir`; `memory` says where its buffers are, and `tso`
    /// whether it takes super-frames.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(dir: &Path, sockets: &[PathBuf], memory: &[&str], tso: bool) -> Self {
        let peer = Self(Prompt::start(|command| {
            command
                .args([
                    "--lcores",
                    &format!("0@{},1@{}", cpus::GENERATOR, cpus::measured()),
                ])
                .args(memory)
                .args(["-m", "256", "--no-pci", "--no-telemetry"])
                .arg(format!("--file-prefix=nyp{}", std::process::id()))
                .env("XDG_RUNTIME_DIR", dir);
            for (index, socket) in sockets.iter().enumerate() {
                let vdev = format!(
                    "net_vhost{index},iface={},queues=1,tso={}",
                    socket.display(),
                    u8::from(tso)
                );
                command.args(["--vdev", &vdev]);
            }
            command
                .args([
                    "--",
                    "-i",
                    "--forward-mode=io",
                    "--auto-start",
                    "--record-core-cycles",
                ])
                // A super-frame takes dozens of buffers; without huge pages there would not be room for so many.
                .arg(format!("--total-num-mbufs={}", if tso { 65536 } else { 16384 }));
        }));
        wait_for("the sockets of testpmd", LIMIT, || {
            sockets.iter().all(|socket| socket.exists()).then_some(())
        });
        peer
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Begins to count its work anew.
    ///
    /// # Panics
    /// When it has ended.
    pub fn clear_work(&mut self) {
        self.0.enter("clear fwd stats all");
    }

    /// Nanoseconds that a frame took since then; there must have been some.
    ///
    /// # Panics
    /// When it does not say.
    pub fn work(&mut self) -> Option<f64> {
        self.0.enter("show fwd stats all");
        work::of_testpmd(&self.0.expect("CPU cycles/packet=", LIMIT))
    }
}
