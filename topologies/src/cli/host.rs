//! `lab host`: the emulated host.

use std::process::ExitCode;

use serde::Serialize;

use super::args::{Format, HostCommand};
use super::{CliError, FAILED, print, print_json};
use crate::agent::run_here;
use crate::emulated::{Host, Record, Status, command_like_here};
use crate::initramfs::cache::Cache;
use crate::progress::Progress;

/// What `lab host status` says to programs.
#[derive(Debug, Serialize)]
struct View<'a> {
    state: &'static str,
    #[serde(flatten)]
    record: Option<&'a Record>,
    console: std::path::PathBuf,
}

pub(super) async fn run(command: HostCommand, format: Format) -> Result<ExitCode, CliError> {
    let host = Host::of_user();
    match command {
        HostCommand::Up { memory } => {
            let progress = Progress::new();
            let step = progress.step("emulated host", "starting");
            host.up(memory, &Cache::of_user(), &|text| step.note(text))
                .await?;
            step.done("up");
            show(&host, format).await?;
        }
        HostCommand::Status => {
            if matches!(show(&host, format).await?, Status::Down | Status::Silent(_)) {
                return Ok(ExitCode::from(FAILED));
            }
        }
        HostCommand::Down => {
            let progress = Progress::new();
            let step = progress.step("emulated host", "stopping");
            let stopped = host.down(&|text| step.note(text)).await?;
            step.done(if stopped { "is down" } else { "was not up" });
        }
        HostCommand::Exec { tty, command } => {
            let mut agent = host.connect().await?;
            let code = run_here(&mut agent, &command_like_here(command), tty).await?;
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(FAILED)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(host: &Host, format: Format) -> Result<Status, CliError> {
    let status = host.status().await;
    let (state, record) = match &status {
        Status::Down => ("down", None),
        Status::Up(record) => ("up", Some(record)),
        Status::Silent(record) => ("does not answer", Some(record)),
    };
    if format == Format::Json {
        print_json(&View {
            state,
            record,
            console: host.log(),
        })?;
        return Ok(status);
    }
    let console = host.log();
    let details = record.map_or_else(String::new, |record| {
        let Record {
            process,
            memory_mib,
            kernel,
            ..
        } = record;
        format!(
            ": kernel {kernel}, {memory_mib} MiB, pid {}, console in {}",
            process.pid,
            console.display()
        )
    });
    print(&format!("emulated host {state}{details}\n"))?;
    Ok(status)
}
