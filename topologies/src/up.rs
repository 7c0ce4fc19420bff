//! Starts a lab: switches, ports, machines, in this order, each seen to work before the next; all or nothing.

mod error;
mod node;

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use vswitch::client::Client;
use vswitch::run_dir::BridgeDir;

use crate::engine::{Choice, EngineArg, Engines, choose};
use crate::image;
use crate::initramfs::cache::Cache;
use crate::lab::{Boot, Lab, Nic};
use crate::lock::{Lock, make_folder};
use crate::passthrough;
use crate::paths::{LabDir, RunDir};
use crate::plan::{BootFiles, IsolatePlan, NodePlan, Plan, SwitchPlan};
use crate::process::{ProcessId, Start, tail};
use crate::programs;
use crate::progress::Progress;
use crate::remove::remove;
use crate::state::{HostKind, Phase, Process, Role, State};

pub use error::UpError;

/// Lines of a log that a failure shows.
const TAIL: usize = 12;
/// How often something that is starting is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How often in one start a monitor that aborts by itself is started again.
const ABORTS: usize = 3;

/// Until when all machines have to be ready.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    /// That moment.
    at: Instant,
    /// How long that was when it was set.
    limit: Duration,
}

impl Deadline {
    fn after(limit: Duration) -> Self {
        Self {
            at: Instant::now() + limit,
            limit,
        }
    }
}

/// How a lab is to be started.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The engine asked for.
    pub engine: EngineArg,
    /// How long all machines together may take until they are ready.
    pub limit: Duration,
}

/// Starts `lab` and returns its state. When it fails or is interrupted, nothing of it stays.
pub async fn up(file: &Path, lab: Lab, run: &RunDir, options: Options) -> Result<State, UpError> {
    let progress = Progress::new();
    let dir = run.lab(&lab.name);
    let _lock = Lock::take(&dir.lock(), &lab.name)?;
    clear_remains(&dir, &progress).await?;

    let Choice { engines, reasons } = choose(options.engine, &lab)?;
    for reason in &reasons {
        progress.line(reason);
    }
    let tools = Tools::find(&lab)?;
    let interrupted = interruption()?;
    tokio::pin!(interrupted);
    let boot = tokio::select! {
        boot = boot_files(&lab, &progress) => boot?,
        () = &mut interrupted => return Err(UpError::Interrupted),
    };
    let mut state = State::new(lab, file, HostKind::Native, Some(engines.usual().kind()));
    make_folder(dir.path()).map_err(|error| UpError::Folder(dir.path().to_path_buf(), error))?;
    state.save(&dir)?;
    let mut files = boot.into_iter();
    let mut work = Starter {
        state: &mut state,
        dir: &dir,
        run,
        tools: &tools,
        engines: &engines,
        progress: &progress,
    };
    let result = tokio::select! {
        result = work.start(&mut files, options.limit) => result,
        () = &mut interrupted => Err(UpError::Interrupted),
    };
    if let Err(error) = result {
        progress.line("stopping what was started");
        return Err(match remove(&state, &dir, Duration::ZERO, &progress).await {
            Ok(()) => error,
            Err(left) => UpError::Left(Box::new(error), Box::new(left)),
        });
    }
    state.phase = Phase::Running;
    state.save(&dir)?;
    Ok(state)
}

/// Refuses a lab that runs; removes what an interrupted `lab` left.
async fn clear_remains(dir: &LabDir, progress: &Progress) -> Result<(), UpError> {
    let Some(state) = State::load(dir)? else {
        return Ok(());
    };
    if state.phase == Phase::Running {
        return Err(UpError::AlreadyUp(state.lab.name));
    }
    progress.line("an earlier `lab` was interrupted; removing what it left");
    remove(&state, dir, Duration::ZERO, progress)
        .await
        .map_err(|error| UpError::Remains(Box::new(error)))
}

/// Ends with the first signal that asks this process to end.
fn interruption() -> Result<impl Future<Output = ()>, UpError> {
    let watch = |kind| signal(kind).map_err(UpError::Signals);
    let mut interrupt = watch(SignalKind::interrupt())?;
    let mut terminate = watch(SignalKind::terminate())?;
    let mut hangup = watch(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

/// Finds or builds what the nodes boot, in the order of the nodes.
pub(crate) async fn boot_files(lab: &Lab, progress: &Progress) -> Result<Vec<BootFiles>, UpError> {
    let mut images: Vec<(String, BootFiles)> = Vec::new();
    let mut files = Vec::new();
    for node in &lab.nodes {
        files.push(match &node.boot {
            Boot::Kernel { kernel, initrd } => BootFiles {
                kernel: kernel.clone(),
                initrd: initrd.clone(),
            },
            Boot::Image(name) => {
                if let Some((_, files)) = images.iter().find(|(known, _)| known == name) {
                    files.clone()
                } else {
                    let found = ensure_image(name.clone(), progress).await?;
                    images.push((name.clone(), found.clone()));
                    found
                }
            }
        });
    }
    Ok(files)
}

async fn ensure_image(name: String, progress: &Progress) -> Result<BootFiles, UpError> {
    let step = progress.step(format!("image {name}"), "looking");
    // Fetching packages blocks, for minutes the first time.
    let building = tokio::task::spawn_blocking(move || {
        let image = image::ensure(&name, &Cache::of_user(), &|text| step.note(text))?;
        step.done("ready");
        Ok(BootFiles {
            kernel: image.kernel(),
            initrd: Some(image.initrd()),
        })
    });
    building.await.map_err(|_| UpError::Interrupted)?
}

/// The programs of ours that a lab needs.
#[derive(Debug)]
struct Tools {
    vswitch: PathBuf,
    backend: Option<PathBuf>,
}

impl Tools {
    fn find(lab: &Lab) -> Result<Self, UpError> {
        let isolate = lab
            .nodes
            .iter()
            .any(|node| node.nics.iter().filter_map(Nic::on_switch).any(|on| on.isolate));
        Ok(Self {
            vswitch: programs::own("vswitch")?,
            backend: if isolate {
                Some(programs::own("vhost-net-backend")?)
            } else {
                None
            },
        })
    }
}

/// Starts one lab and writes down every process as soon as it exists.
struct Starter<'a> {
    state: &'a mut State,
    dir: &'a LabDir,
    run: &'a RunDir,
    tools: &'a Tools,
    engines: &'a Engines,
    progress: &'a Progress,
}

impl Starter<'_> {
    async fn start(
        &mut self,
        boot: &mut impl Iterator<Item = BootFiles>,
        limit: Duration,
    ) -> Result<(), UpError> {
        passthrough::prepare(self.state, self.dir, self.progress).await?;
        let plan = Plan::new(&self.state.lab, self.run, &self.state.devices, |_| {
            boot.next().unwrap_or_default()
        });
        for switch in &plan.switches {
            self.switch(switch).await?;
        }
        let deadline = Deadline::after(limit);
        let mut machines = JoinSet::new();
        for node in &plan.nodes {
            self.node_folder(node).await?;
            machines.spawn(self.machine(node, deadline)?);
        }
        let mut aborts = 0;
        while let Some(ready) = machines.join_next().await {
            let ready = ready.map_err(|_| UpError::Interrupted)?;
            let stopped = match &ready {
                Err(UpError::Stopped { node, status, log }) if node::aborted(*status) => {
                    let nodes = &mut plan.nodes.iter();
                    nodes.find(|plan| plan.name == *node).map(|plan| (plan, log))
                }
                _ => None,
            };
            match stopped {
                Some((plan, log)) if aborts < ABORTS && self.engines.of(plan.engine).aborts_by_itself() => {
                    aborts += 1;
                    let said = log.last().map_or("", String::as_str);
                    self.progress.line(&format!(
                        "  node {}: the monitor aborted, booting it again: {said}",
                        plan.name
                    ));
                    machines.spawn(self.machine(plan, deadline)?);
                }
                _ => ready?,
            }
        }
        Ok(())
    }

    /// Starts a machine; what it gives ends when the machine is ready.
    fn machine(
        &mut self,
        plan: &NodePlan,
        deadline: Deadline,
    ) -> Result<impl Future<Output = Result<(), UpError>> + use<>, UpError> {
        let child = self.node(plan)?;
        let step = self.progress.step(format!("node {}", plan.name), "booting");
        Ok(node::ready(
            plan.clone(),
            self.engines.of(plan.engine).kind(),
            child,
            deadline,
            step,
        ))
    }

    fn spawn(
        &mut self,
        program: &Path,
        arguments: &[std::ffi::OsString],
        log: &Path,
    ) -> Result<Child, UpError> {
        let mark = self.state.mark.clone();
        let start = Start {
            program,
            arguments,
            log,
            mark: &mark,
            run: self.run.path(),
        };
        Ok(start.spawn()?)
    }

    fn record(&mut self, role: Role, child: &Child) -> Result<(), UpError> {
        // One that has ended already is found by whoever waits for it.
        if let Some(id) = ProcessId::of(child.id()) {
            self.state.processes.retain(|process| process.role != role);
            self.state.processes.push(Process { role, id });
            self.state.save(self.dir)?;
        }
        Ok(())
    }

    async fn switch(&mut self, plan: &SwitchPlan) -> Result<(), UpError> {
        let step = self.progress.step(format!("switch {}", plan.name), "starting");
        let refused = |text: String| UpError::Switch {
            switch: plan.name.clone(),
            text,
        };
        // A switch of this name that was killed would come back with its former ports.
        let bridge = BridgeDir::new(&plan.bridge).map_err(|error| refused(error.to_string()))?;
        if bridge.exists() && bridge.live_pid().is_none() {
            vswitch::daemon::down(&bridge)
                .await
                .map_err(|error| refused(error.to_string()))?;
        }
        let log = self.dir.path().join(format!("switch.{}.log", plan.name));
        let vswitch = &self.tools.vswitch;
        let mut child = self.spawn(vswitch, &plan.arguments, &log)?;
        // The command ends when the switch's API answers.
        let status = loop {
            if let Some(status) = child.try_wait().map_err(UpError::Wait)? {
                break status;
            }
            tokio::time::sleep(LOOK).await;
        };
        if !status.success() {
            let last = tail(&log, 1).pop().unwrap_or_else(|| status.to_string());
            return Err(refused(last.trim_start_matches("vswitch: ").to_owned()));
        }
        let client = Client::new(&plan.bridge).map_err(|error| refused(error.to_string()))?;
        for port in &plan.ports {
            client
                .add_port(&port.request(self.engines.of(port.engine)))
                .await
                .map_err(|error| refused(error.to_string()))?;
        }
        let view = client
            .bridge()
            .await
            .map_err(|error| refused(error.to_string()))?;
        let missing = plan
            .ports
            .iter()
            .find(|port| view.ports.iter().all(|there| there.name != port.name));
        if let Some(port) = missing {
            return Err(refused(format!("port {} was added and is not there", port.name)));
        }
        step.done(&format!(
            "up as {} with {} ports (pid {})",
            plan.bridge,
            view.ports.len(),
            view.pid
        ));
        Ok(())
    }

    /// Makes a machine's folder and what stands between it and its switches.
    async fn node_folder(&mut self, plan: &NodePlan) -> Result<(), UpError> {
        let folder = plan.dir.path();
        make_folder(folder).map_err(|error| UpError::Folder(folder.to_path_buf(), error))?;
        for nic in &plan.nics {
            if let Some(isolate) = &nic.isolate {
                self.isolate(&nic.port, isolate).await?;
            }
        }
        Ok(())
    }

    fn node(&mut self, plan: &NodePlan) -> Result<Child, UpError> {
        let engine = self.engines.of(plan.engine);
        let child = self.spawn(engine.program(), &engine.arguments(plan), &plan.dir.log())?;
        self.record(
            Role::Node {
                node: plan.name.clone(),
            },
            &child,
        )?;
        let pid = plan.dir.pid();
        std::fs::write(&pid, format!("{}\n", child.id())).map_err(|error| UpError::Folder(pid, error))?;
        Ok(child)
    }

    async fn isolate(&mut self, port: &str, plan: &IsolatePlan) -> Result<(), UpError> {
        let step = self.progress.step(format!("nic {port}"), "isolating");
        let program = self.tools.backend.clone().unwrap_or_default();
        let mut child = self.spawn(&program, &plan.arguments, &plan.log)?;
        self.record(
            Role::Isolate {
                port: port.to_owned(),
            },
            &child,
        )?;
        // The machine needs the socket, and nothing else tells that it is there.
        while !plan.socket.exists() {
            if let Some(status) = child.try_wait().map_err(UpError::Wait)? {
                return Err(UpError::Isolate {
                    port: port.to_owned(),
                    status: status.to_string(),
                    log: tail(&plan.log, TAIL),
                });
            }
            tokio::time::sleep(LOOK).await;
        }
        step.done(&format!("isolated from the switch (pid {})", child.id()));
        Ok(())
    }
}
