//! Labs in the emulated host: the same commands, run there by the `lab` that is there at the same place.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use super::CliError;
use crate::agent::run_here;
use crate::emulated::{DEFAULT_MEMORY_MIB, Host, HostError, command_like_here, inside};
use crate::initramfs::cache::Cache;
use crate::lab::Lab;
use crate::lock::{Lock, make_folder};
use crate::paths::RunDir;
use crate::progress::Progress;
use crate::state::{HostKind, Phase, State};
use crate::status::LabStatus;
use crate::up::{UpError, boot_files};

/// Starts `lab` inside; `options` are those of `lab up` there. Returns its exit code.
pub(super) async fn up(file: &Path, lab: Lab, run: &RunDir, options: Vec<String>) -> Result<u8, CliError> {
    let file = std::path::absolute(file).map_err(CliError::Output)?;
    let Some(file_inside) = inside(&file) else {
        return Err(CliError::Hidden(file));
    };
    let progress = Progress::new();
    let dir = run.lab(&lab.name);
    let _lock = Lock::take(&dir.lock(), &lab.name).map_err(UpError::from)?;
    let host = Host::of_user();
    if let Some(state) = State::load(&dir)? {
        let gone = state.host == HostKind::Emulated && status(&state).await.is_err();
        if !gone {
            return Err(UpError::AlreadyUp(lab.name).into());
        }
    }
    // Nothing can be fetched or built inside.
    boot_files(&lab, &progress).await?;
    let step = progress.step("host", "starting the emulated host");
    host.up(DEFAULT_MEMORY_MIB, &Cache::of_user(), &|text| step.note(text))
        .await?;
    step.done("the emulated host is up");

    let mut state = State::new(lab, &file, HostKind::Emulated, None);
    make_folder(dir.path()).map_err(|error| UpError::Folder(dir.path().to_path_buf(), error))?;
    state.save(&dir)?;
    let mut arguments = vec!["up".to_owned(), file_inside.display().to_string()];
    arguments.extend(options);
    let started = forward(&state.lab.name, arguments, false).await;
    if let Ok(0) = started {
        state.phase = Phase::Running;
        state.save(&dir)?;
    } else {
        // The `lab` inside has removed everything else.
        forget(&state.lab.name, run)?;
    }
    started
}

/// Removes what is known here of a lab inside.
pub(super) fn forget(name: &str, run: &RunDir) -> Result<(), CliError> {
    let dir = run.lab(name);
    std::fs::remove_dir_all(dir.path())
        .map_err(|error| UpError::Folder(dir.path().to_path_buf(), error).into())
}

/// How a lab inside is.
pub(super) async fn status(state: &State) -> Result<LabStatus, CliError> {
    let name = &state.lab.name;
    let program = program()?;
    let argv = [program.as_str(), "--format", "json", "status", "--lab", name];
    let output = Host::of_user()
        .output(&argv)
        .await
        .map_err(|_| CliError::Gone(name.clone()))?;
    if output.code != 0 {
        return Err(CliError::Gone(name.clone()));
    }
    let mut view: LabStatus = serde_json::from_slice(&output.stdout)?;
    view.host = HostKind::Emulated;
    Ok(view)
}

/// Runs `lab` with `arguments` about lab `lab` inside, on this terminal, and returns its exit code.
pub(super) async fn forward(lab: &str, arguments: Vec<String>, tty: bool) -> Result<u8, CliError> {
    let mut argv = vec![program()?];
    argv.extend(arguments);
    match run(argv, tty).await {
        // With its host the lab has ended.
        Err(CliError::Host(HostError::Down)) => Err(CliError::Gone(lab.to_owned())),
        other => other,
    }
}

/// Runs any command inside, on this terminal, and returns its exit code.
pub(super) async fn run(mut argv: Vec<String>, tty: bool) -> Result<u8, CliError> {
    if let Some(program) = argv.first_mut()
        && Path::new(program).is_absolute()
        && let Some(path) = inside(Path::new(program))
    {
        *program = path.display().to_string();
    }
    let mut agent = Host::of_user().connect().await?;
    let tty = tty && std::io::stdin().is_terminal();
    let code = run_here(&mut agent, &command_like_here(argv), tty).await?;
    Ok(u8::try_from(code).unwrap_or(super::FAILED))
}

/// This very program, as it is found inside.
fn program() -> Result<String, CliError> {
    let exe: PathBuf = std::env::current_exe().map_err(CliError::Runtime)?;
    match inside(&exe) {
        Some(path) => Ok(path.display().to_string()),
        None => Err(CliError::Hidden(exe)),
    }
}
