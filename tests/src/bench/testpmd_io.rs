//! `testpmd` with a vhost-user back-end (`net_vhost`) a socket in `io` mode: two copies, and no look at any frame.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::cpus;
use crate::deadline::wait_for;

const LIMIT: Duration = Duration::from_secs(30);

/// A running `testpmd` that moves frames from one port of each pair to the other; it ends with the value.
#[derive(Debug)]
pub struct TestpmdIo(Child);

impl TestpmdIo {
    /// Starts it with a port for each socket, which it makes, and its files in `dir`; `memory` says where its buffers are, and `tso`
    /// whether it takes super-frames.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(dir: &Path, sockets: &[PathBuf], memory: &[&str], tso: bool) -> Self {
        let mut command = Command::new("dpdk-testpmd");
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
            .args(["--", "-i", "--forward-mode=io", "--auto-start"])
            // A super-frame takes dozens of buffers; without huge pages there would not be room for so many.
            .arg(format!("--total-num-mbufs={}", if tso { 65536 } else { 16384 }))
            // Its prompt waits for as long as the pipe is open.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("dpdk-testpmd did not start: {error}"));
        let peer = Self(child);
        wait_for("the sockets of testpmd", LIMIT, || {
            sockets.iter().all(|socket| socket.exists()).then_some(())
        });
        peer
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for TestpmdIo {
    fn drop(&mut self) {
        // It was only a peer; nothing of it is kept.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
