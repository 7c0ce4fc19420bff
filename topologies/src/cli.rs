//! The command line.

mod args;
mod table;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};
use serde::Serialize;

use crate::agent::{Agent, AgentError, Exec, Input, run_here};
use crate::console::{ConsoleError, console};
use crate::down::{DownError, down};
use crate::engine::{EngineError, choose};
use crate::image::ImageError;
use crate::initramfs::cache::Cache;
use crate::lab::Lab;
use crate::measure::{self, MeasureError};
use crate::paths::RunDir;
use crate::plan::{BootFiles, Plan};
use crate::problem::Refused;
use crate::progress::Progress;
use crate::state::{self, State, StateError};
use crate::status::{LabStatus, status};
use crate::up::{self, UpError};
use crate::{check, image};
use args::{
    Args, Command, ExecArgs, Format, ImageCommand, LabArgs, MeasureArgs, UpArgs, ValidateArgs, Which,
};

const FAILED: u8 = 1;
const REFUSED_BY_HOST: u8 = 3;
/// `lab exec` itself failed; every other code is the command's. The same as with ssh.
const EXEC_FAILED: u8 = 255;
/// How long an agent may take to answer `lab exec`.
const AGENT_LIMIT: Duration = Duration::from_secs(20);

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    File(#[from] Refused),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Up(#[from] UpError),
    #[error(transparent)]
    Down(#[from] DownError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Console(#[from] ConsoleError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Build(#[from] crate::initramfs::BuildError),
    #[error(transparent)]
    Measure(#[from] MeasureError),
    #[error("no lab is up; start one with `lab up FILE`")]
    NoneUp,
    #[error("lab {0} is not up; start it with `lab up FILE`, see `lab list`")]
    NotUp(String),
    #[error("several labs are up: {0}; say which with --lab NAME or --file FILE")]
    Several(String),
    #[error("lab {lab} has no node {node}{near} (nodes: {known})")]
    NoNode {
        lab: String,
        node: String,
        near: String,
        known: String,
    },
    #[error("node {0} has no agent; its image is not one of ours, so use `lab console {0}`")]
    NoAgent(String),
    #[error("nodes {0} and {1} have no addresses on a common switch; give both an `ip`")]
    NoCommonSwitch(String, String),
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
    #[error("cannot write the output: {0}")]
    Json(#[from] serde_json::Error),
}

impl CliError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Engine(EngineError::NoHardware(_))
            | Self::Up(UpError::Engine(EngineError::NoHardware(_))) => REFUSED_BY_HOST,
            _ => FAILED,
        }
    }
}

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
        Command::Up(args) => bring_up(&args, &run, format).await?,
        Command::Status(which) => show_status(&which, &run, format).await?,
        Command::Down(args) => {
            let name = match args.which.name()? {
                Some(name) => name,
                None => only(&run)?.lab.name,
            };
            let grace = Duration::from_secs(if args.now { 0 } else { args.grace });
            let stopped = down(&name, &run, grace).await?;
            if format == Format::Table {
                let what = if stopped { "is down" } else { "was not up" };
                print(&format!("lab {name} {what}\n"))?;
            }
        }
        Command::Validate(args) => validate(&args, &run, format)?,
        Command::List => list(&run, format).await?,
        Command::Exec(args) => return exec(&args, &run).await,
        Command::Console(args) => {
            let (state, node) = node(&args.lab, &args.node, &run)?;
            console(&node, &run.lab(&state.lab.name).node(&node)).await?;
        }
        Command::Measure(args) => measure_between(&args, &run, format).await?,
        Command::Image(command) => images(&command, format)?,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "lab", &mut io::stdout());
        }
        Command::Man => {
            clap_mangen::Man::new(Args::command())
                .render(&mut io::stdout())
                .map_err(CliError::Output)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn bring_up(args: &UpArgs, run: &RunDir, format: Format) -> Result<(), CliError> {
    let lab = check::load(&args.file, run)?;
    let options = up::Options {
        engine: args.engine,
        limit: Duration::from_secs(args.timeout),
    };
    let file = std::path::absolute(&args.file).map_err(CliError::Output)?;
    let state = up::up(&file, lab, run, options).await?;
    let view = status(&state, &run.lab(&state.lab.name)).await;
    if format == Format::Json {
        return print_json(&view);
    }
    print(&table::nodes(&view))
}

async fn show_status(which: &Which, run: &RunDir, format: Format) -> Result<(), CliError> {
    let state = match which.name()? {
        Some(name) => named(&name, run)?,
        None => only(run)?,
    };
    let view = status(&state, &run.lab(&state.lab.name)).await;
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
            views.push(status(&state, &run.lab(&name)).await);
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
    if args.plan {
        let choice = choose(args.engine)?;
        let plan = Plan::new(&lab, run, planned_boot);
        let commands = plan.commands(&*choice.engine);
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

async fn measure_between(args: &MeasureArgs, run: &RunDir, format: Format) -> Result<(), CliError> {
    let (state, from) = node(&args.lab, &args.from, run)?;
    let (_, to) = node(&args.lab, &args.to, run)?;
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
        print_json(&report)
    } else {
        print(&(report.table() + "\n"))
    }
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
            .find(|far| far.switch == near.switch && far.ip.is_some())?;
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

/// The lab that an option names, else the only one that is up.
fn chosen(lab: &LabArgs, run: &RunDir) -> Result<State, CliError> {
    match (&lab.lab, &lab.file) {
        (Some(name), _) => named(name, run),
        (None, Some(file)) => named(&check::name_of(file)?, run),
        (None, None) => only(run),
    }
}

fn named(name: &str, run: &RunDir) -> Result<State, CliError> {
    State::load(&run.lab(name))?.ok_or_else(|| CliError::NotUp(name.to_owned()))
}

fn only(run: &RunDir) -> Result<State, CliError> {
    let names = state::names(run)?;
    match names.as_slice() {
        [] => Err(CliError::NoneUp),
        [name] => named(name, run),
        several => Err(CliError::Several(several.join(", "))),
    }
}

/// A node of the lab that is meant.
fn node(lab: &LabArgs, node: &str, run: &RunDir) -> Result<(State, String), CliError> {
    let state = chosen(lab, run)?;
    if state.lab.node(node).is_some() {
        return Ok((state, node.to_owned()));
    }
    let known: Vec<&str> = state.lab.nodes.iter().map(|node| node.name.as_str()).collect();
    Err(CliError::NoNode {
        near: crate::problem::did_you_mean(node, known.iter().copied()),
        known: known.join(", "),
        lab: state.lab.name.clone(),
        node: node.to_owned(),
    })
}

impl Which {
    /// The lab's name, if one was given.
    fn name(&self) -> Result<Option<String>, Refused> {
        match (&self.lab, &self.file) {
            (Some(name), _) => Ok(Some(name.clone())),
            (None, Some(file)) => check::name_of(Path::new(file)).map(Some),
            (None, None) => Ok(None),
        }
    }
}

fn print(text: &str) -> Result<(), CliError> {
    io::stdout().write_all(text.as_bytes()).map_err(CliError::Output)
}

fn print_json<T: Serialize + ?Sized>(value: &T) -> Result<(), CliError> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}
