//! The command line.

mod args;
mod error;
mod inside;
mod select;
mod table;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};
use serde::Serialize;

use crate::agent::{Agent, Exec, Input, run_here};
use crate::console::console;
use crate::down::down;
use crate::emulated::{self, Host};
use crate::engine::{EngineArg, choose};
use crate::initramfs::cache::Cache;
use crate::lab::Lab;
use crate::paths::RunDir;
use crate::plan::{BootFiles, Plan};
use crate::progress::Progress;
use crate::state::{self, HostKind, State};
use crate::status::{LabStatus, gone, status};
use crate::{check, image, measure, up};
use args::{
    Args, Command, DownArgs, ExecArgs, Format, HostCommand, ImageCommand, MeasureArgs, UpArgs, ValidateArgs,
    Which,
};
use error::{CliError, FAILED};
use select::{named, node, only};

/// `lab exec` itself failed; every other code is the command's. The same as with ssh.
const EXEC_FAILED: u8 = 255;
/// How long the machines of a lab may take until they are ready, on this machine and in the emulated host.
const NATIVE_LIMIT_S: u64 = 180;
const EMULATED_LIMIT_S: u64 = 600;
/// How long an agent may take to answer `lab exec`.
const AGENT_LIMIT: Duration = Duration::from_secs(20);

/// Runs the command of this process.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();
    let failed = if matches!(args.command, Command::Exec(_)) {
        Some(EXEC_FAILED)
    } else {
        None
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime);
    let result = runtime.and_then(|runtime| {
        let result = runtime.block_on(dispatch(args));
        // A thread that reads standard input or fetches packages must not hold up the end.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(code) => code,
        // Whoever reads the output may have seen enough.
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error}");
            ExitCode::from(failed.unwrap_or_else(|| error.exit_code()))
        }
    }
}

async fn dispatch(args: Args) -> Result<ExitCode, CliError> {
    let run = RunDir::of_user();
    let format = args.format;
    match args.command {
        Command::Up(args) => return bring_up(&args, &run, format).await,
        Command::Status(which) => show_status(&which, &run, format).await?,
        Command::Down(args) => return take_down(&args, &run, format).await,
        Command::Validate(args) => validate(&args, &run, format)?,
        Command::List => list(&run, format).await?,
        Command::Exec(args) => return exec(&args, &run).await,
        Command::Console(args) => {
            let (state, node) = node(&args.lab, &args.node, &run)?;
            let lab = &state.lab.name;
            if state.host == HostKind::Emulated {
                return forwarded(lab, words(&["console", "--lab", lab, &node]), true).await;
            }
            console(&node, &run.lab(lab).node(&node)).await?;
        }
        Command::Measure(args) => return measure_between(&args, &run, format).await,
        Command::Image(command) => images(&command, format)?,
        Command::Host(command) => return emulated_host(&command, format).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "lab", &mut io::stdout());
        }
        Command::Man { folder } => match folder {
            Some(folder) => clap_mangen::generate_to(Args::command(), folder),
            None => clap_mangen::Man::new(Args::command()).render(&mut io::stdout()),
        }
        .map_err(CliError::Output)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// Runs the command in the emulated host; its exit code is ours.
async fn forwarded(lab: &str, arguments: Vec<String>, tty: bool) -> Result<ExitCode, CliError> {
    Ok(inside::forward(lab, arguments, tty).await?.into())
}

fn format_words(format: Format) -> Vec<String> {
    words(&["--format", if format == Format::Json { "json" } else { "table" }])
}

async fn bring_up(args: &UpArgs, run: &RunDir, format: Format) -> Result<ExitCode, CliError> {
    let lab = check::load(&args.file, run)?;
    let limit = args.timeout.unwrap_or(match args.host {
        HostKind::Native => NATIVE_LIMIT_S,
        HostKind::Emulated => EMULATED_LIMIT_S,
    });
    if args.host == HostKind::Emulated {
        let engine = match args.engine {
            EngineArg::Auto => "auto",
            EngineArg::Vmm => "vmm",
            EngineArg::Qemu => "qemu",
        };
        let mut options = words(&[
            "--host",
            "native",
            "--engine",
            engine,
            "--timeout",
            &limit.to_string(),
        ]);
        options.extend(format_words(format));
        return Ok(inside::up(&args.file, lab, run, options).await?.into());
    }
    let options = up::Options {
        engine: args.engine,
        limit: Duration::from_secs(limit),
    };
    warn(&lab);
    let file = std::path::absolute(&args.file).map_err(CliError::Output)?;
    let state = up::up(&file, lab, run, options).await?;
    let view = status(&state, &run.lab(&state.lab.name)).await;
    if format == Format::Json {
        print_json(&view)?;
    } else {
        print(&table::nodes(&view))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn take_down(args: &DownArgs, run: &RunDir, format: Format) -> Result<ExitCode, CliError> {
    let name = match args.which.name()? {
        Some(name) => name,
        None => only(run)?.lab.name,
    };
    let grace = if args.now { 0 } else { args.grace };
    if State::load(&run.lab(&name))?.is_some_and(|state| state.host == HostKind::Emulated) {
        let seconds = grace.to_string();
        let mut arguments = words(&["down", "--lab", &name, "--grace", &seconds]);
        arguments.extend(format_words(format));
        let code = match inside::forward(&name, arguments, false).await {
            Err(CliError::Gone(_)) => {
                print(&format!("lab {name} is down: its emulated host had ended\n"))?;
                0
            }
            other => other?,
        };
        if code == 0 {
            inside::forget(&name, run)?;
        }
        return Ok(code.into());
    }
    let stopped = down(&name, run, Duration::from_secs(grace)).await?;
    if format == Format::Table {
        let what = if stopped { "is down" } else { "was not up" };
        print(&format!("lab {name} {what}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A lab as it is, wherever it runs.
async fn look(state: &State, run: &RunDir) -> LabStatus {
    match state.host {
        HostKind::Native => status(state, &run.lab(&state.lab.name)).await,
        HostKind::Emulated => inside::status(state).await.unwrap_or_else(|_| gone(state)),
    }
}

async fn show_status(which: &Which, run: &RunDir, format: Format) -> Result<(), CliError> {
    let state = match which.name()? {
        Some(name) => named(&name, run)?,
        None => only(run)?,
    };
    let view = look(&state, run).await;
    if format == Format::Json {
        print_json(&view)
    } else {
        print(&table::lab(&view))
    }
}

async fn list(run: &RunDir, format: Format) -> Result<(), CliError> {
    let mut views: Vec<LabStatus> = Vec::new();
    for name in state::names(run)? {
        if let Some(state) = State::load(&run.lab(&name))? {
            views.push(look(&state, run).await);
        }
    }
    if format == Format::Json {
        print_json(&views)
    } else {
        print(&table::labs(&views))
    }
}

fn validate(args: &ValidateArgs, run: &RunDir, format: Format) -> Result<(), CliError> {
    let lab = check::load(&args.file, run)?;
    warn(&lab);
    if args.plan {
        let choice = choose(args.engine, &lab)?;
        let plan = Plan::new(&lab, run, &[], planned_boot);
        let commands = plan.commands(&choice.engines);
        if format == Format::Json {
            return print_json(&commands);
        }
        return print(&(commands.join("\n") + "\n"));
    }
    if format == Format::Json {
        return print_json(&lab);
    }
    print(&format!(
        "{}: lab {} is fine: {}, {}\n",
        args.file.display(),
        lab.name,
        count(lab.nodes.len(), "node", "nodes"),
        count(lab.switches.len(), "switch", "switches")
    ))
}

/// Tells what the host's NICs will not do, beside the results.
fn warn(lab: &Lab) {
    for line in lab.warnings() {
        eprintln!("warning: {line}");
    }
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// What a node would boot; an image is not built for that.
fn planned_boot(node: &crate::lab::Node) -> BootFiles {
    match &node.boot {
        crate::lab::Boot::Kernel { kernel, initrd } => BootFiles {
            kernel: kernel.clone(),
            initrd: initrd.clone(),
        },
        crate::lab::Boot::Image(name) => BootFiles {
            kernel: PathBuf::from(format!("{name}/vmlinuz")),
            initrd: Some(PathBuf::from(format!("{name}/initrd.cpio"))),
        },
    }
}

async fn exec(args: &ExecArgs, run: &RunDir) -> Result<ExitCode, CliError> {
    let (state, node) = node(&args.lab, &args.node, run)?;
    if state.host == HostKind::Emulated {
        let mut arguments = words(&["exec", "--lab", &state.lab.name]);
        arguments.extend(args.tty.then(|| "--tty".to_owned()));
        arguments.extend([node, "--".to_owned()]);
        arguments.extend(args.command.iter().cloned());
        return forwarded(&state.lab.name, arguments, args.tty).await;
    }
    let mut agent = connect(&state.lab, &node, run).await?;
    let exec = Exec {
        argv: args.command.clone(),
        ..Exec::default()
    };
    let code = run_here(&mut agent, &exec, args.tty).await?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(FAILED)))
}

async fn connect(lab: &Lab, node: &str, run: &RunDir) -> Result<Agent, CliError> {
    if lab.node(node).is_some_and(|node| !node.agent) {
        return Err(CliError::NoAgent(node.to_owned()));
    }
    let channels = run.lab(&lab.name).node(node).channels();
    Ok(Agent::connect(&channels, AGENT_LIMIT).await?)
}

async fn measure_between(args: &MeasureArgs, run: &RunDir, format: Format) -> Result<ExitCode, CliError> {
    let (state, from) = node(&args.lab, &args.from, run)?;
    let (_, to) = node(&args.lab, &args.to, run)?;
    if state.host == HostKind::Emulated {
        let seconds = args.seconds.to_string();
        let mut arguments = words(&[
            "measure",
            "--lab",
            &state.lab.name,
            &from,
            &to,
            "--seconds",
            &seconds,
        ]);
        arguments.extend(format_words(format));
        return forwarded(&state.lab.name, arguments, false).await;
    }
    let (from_address, to_address) = common_addresses(&state.lab, &from, &to)
        .ok_or_else(|| CliError::NoCommonSwitch(from.clone(), to.clone()))?;
    let runtime = tokio::runtime::Handle::current();
    let (lab, run, seconds) = (state.lab.clone(), run.clone(), args.seconds);
    // The measurement is a plain sequence of commands that each wait for the last.
    let measuring = tokio::task::spawn_blocking(move || {
        let mut exec = |node: &str, command: &[&str]| {
            runtime
                .block_on(run_captured(&lab, node, command, &run))
                .map_err(|error| error.to_string())
        };
        let end = |node, address| measure::End { node, address };
        measure::measure(
            &mut exec,
            end(&from, &from_address),
            end(&to, &to_address),
            seconds,
        )
    });
    let report = measuring
        .await
        .map_err(|error| CliError::Runtime(io::Error::other(error)))??;
    if format == Format::Json {
        print_json(&report)?;
    } else {
        print(&(report.table() + "\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_captured(
    lab: &Lab,
    node: &str,
    command: &[&str],
    run: &RunDir,
) -> Result<measure::Ended, CliError> {
    let mut agent = connect(lab, node, run).await?;
    let exec = Exec {
        argv: command.iter().map(|&word| word.to_owned()).collect(),
        ..Exec::default()
    };
    let output = agent.output(&exec, Input::Empty).await?;
    Ok(measure::Ended {
        code: output.code,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The addresses of two nodes on the first switch that both are on.
fn common_addresses(lab: &Lab, from: &str, to: &str) -> Option<(String, String)> {
    let (from, to) = (lab.node(from)?, lab.node(to)?);
    from.nics.iter().find_map(|near| {
        let far = to
            .nics
            .iter()
            .find(|far| far.shares_network(near) && far.ip.is_some())?;
        Some((near.ip?.addr().to_string(), far.ip?.addr().to_string()))
    })
}

fn images(command: &ImageCommand, format: Format) -> Result<(), CliError> {
    let cache = Cache::of_user();
    match command {
        ImageCommand::Build { name } => {
            let progress = Progress::new();
            let step = progress.step(format!("image {name}"), "building");
            let image = image::build(name, &cache, &|text| step.note(text))?;
            step.done("ready");
            if format == Format::Json {
                return print_json(&image.manifest);
            }
            print(&format!("{}\n", image.folder.display()))
        }
        ImageCommand::List => {
            let images = cache.all_images()?;
            if format == Format::Json {
                let manifests: Vec<_> = images.iter().map(|image| &image.manifest).collect();
                return print_json(&manifests);
            }
            print(&table::images(&images))
        }
    }
}

async fn emulated_host(command: &HostCommand, format: Format) -> Result<ExitCode, CliError> {
    let host = Host::of_user();
    let progress = Progress::new();
    match command {
        HostCommand::Up { memory, append } => {
            let step = progress.step("host", "starting the emulated host");
            let record = host
                .with_kernel_words(append)
                .up(*memory, &Cache::of_user(), &|text| step.note(text))
                .await?;
            step.done(&format!("the emulated host is up (pid {})", record.process.pid));
        }
        HostCommand::Down => {
            let was_up = host.down(&|text| progress.line(text)).await?;
            if format == Format::Table {
                let what = if was_up { "is down" } else { "was not up" };
                print(&format!("the emulated host {what}\n"))?;
            }
        }
        HostCommand::Status => {
            let status = host.status().await;
            let (state, record) = match &status {
                emulated::Status::Down => ("down", None),
                emulated::Status::Up(record) => ("up", Some(record)),
                emulated::Status::Silent(record) => ("silent", Some(record)),
            };
            if format == Format::Json {
                print_json(&serde_json::json!({ "state": state, "host": record }))?;
            } else {
                print(&table::host_status(state, record))?;
            }
        }
        HostCommand::Exec { tty, command } => return Ok(inside::run(command.clone(), *tty).await?.into()),
    }
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> Result<(), CliError> {
    io::stdout().write_all(text.as_bytes()).map_err(CliError::Output)
}

fn print_json<T: Serialize + ?Sized>(value: &T) -> Result<(), CliError> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}
