//! Talks to a machine's monitor: does it run, and please press the power button.

use std::io;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::engine::EngineKind;
use crate::paths::NodeDir;
use crate::process::ProcessId;

/// How long a monitor may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Whether the monitor of a machine answers.
pub async fn answers(engine: EngineKind, dir: &NodeDir) -> bool {
    match engine {
        EngineKind::Qemu => qmp(dir, "query-status").await.is_ok(),
        EngineKind::Vmm => {
            let client = vmm::client::Client::new(dir.api_socket());
            matches!(timeout(ANSWER, client.info()).await, Ok(Ok(_)))
        }
    }
}

/// Presses the machine's power button; false if that cannot be done.
pub async fn press_power_button(engine: EngineKind, dir: &NodeDir, process: ProcessId) -> bool {
    match engine {
        EngineKind::Qemu => qmp(dir, "system_powerdown").await.is_ok(),
        // Our monitor takes the signal for the button.
        EngineKind::Vmm => process.signal(Signal::TERM),
    }
}

/// Runs one command without arguments over the QEMU machine protocol.
async fn qmp(dir: &NodeDir, command: &str) -> io::Result<()> {
    let exchange = async {
        let stream = UnixStream::connect(dir.api_socket()).await?;
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        // The greeting comes before anything is asked.
        lines.next_line().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        for execute in ["qmp_capabilities", command] {
            writer
                .write_all(format!("{{\"execute\":\"{execute}\"}}\n").as_bytes())
                .await?;
            loop {
                let line = lines.next_line().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
                let answer: serde_json::Value = serde_json::from_str(&line)?;
                if answer.get("return").is_some() {
                    break;
                }
                if let Some(error) = answer.get("error") {
                    return Err(io::Error::other(error.to_string()));
                }
                // Anything else is an event.
            }
        }
        Ok(())
    };
    timeout(ANSWER, exchange).await.map_err(io::Error::from)?
}
