//! What is compared: one of several switches with the generator's ports attached, running only while it is measured.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::ovs::Ovs;
use super::testpmd_io::TestpmdIo;
use super::work::Done;
use super::{cpus, process};
use crate::bin;
use crate::pktgen::frame;
use crate::pktgen::layout::Layout;
use crate::pktgen::port::{Port, PortError, Reach};
use crate::pktgen::run;
use crate::pktgen::stream::{Sizes, Stream};
use crate::switch::Switch;

/// How long a peer is left alone before an attempt.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a peer may take until frames pass between all its ports.
const SETTLE: Duration = Duration::from_secs(30);

/// What stands between the generator's ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Ours, with one worker.
    Vswitch,
    /// The same of another build: the program.
    Build(PathBuf),
    /// Open vSwitch with DPDK and the NORMAL action.
    Ovs,
    /// `testpmd` in `io` mode.
    TestpmdIo,
}

/// All of them, ours first.
pub const KINDS: [Kind; 3] = [Kind::Vswitch, Kind::Ovs, Kind::TestpmdIo];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vswitch => "`vswitch`",
            Self::Build(_) => "the other build",
            Self::Ovs => "Open vSwitch",
            Self::TestpmdIo => "`testpmd` `io`",
        })
    }
}

#[derive(Debug)]
enum Running {
    Switch(Switch),
    Ovs(Ovs),
    TestpmdIo(TestpmdIo),
}

/// A peer with ports, stopped but for the time in which it is measured: those that poll would take the processor from the others.
#[derive(Debug)]
pub struct Peer {
    /// Which.
    pub kind: Kind,
    pid: Pid,
    ports: Vec<Port>,
    running: Running,
    _files: Option<tempfile::TempDir>,
}

impl Peer {
    /// Starts a peer with `count` ports of this layout and waits until frames pass between them.
    ///
    /// # Panics
    /// When one of its programs does not start.
    pub fn start(kind: Kind, count: u16, layout: &Layout) -> Result<Self, PortError> {
        let tso = layout.sizes == Sizes::Super;
        let names: Vec<String> = (0..count).map(|index| format!("p{index}")).collect();
        let connect = |paths: Vec<PathBuf>| paths.into_iter().map(Reach::Connect).collect::<Vec<_>>();
        let mut files = None;
        let (running, reaches) = match kind {
            Kind::Vswitch | Kind::Build(_) => {
                let program = match &kind {
                    Kind::Build(program) => program.clone(),
                    _ => bin::path("vswitch"),
                };
                let switch = Switch::of(program, "bench", &["--cpus", &cpus::measured().to_string()]);
                let sockets = names
                    .iter()
                    .map(|name| switch.add_port(name, layout.pairs))
                    .collect();
                (Running::Switch(switch), connect(sockets))
            }
            Kind::Ovs => {
                let ovs = Ovs::start(tso);
                let reaches = names
                    .iter()
                    .map(|name| Reach::listen(&ovs.socket(name)))
                    .collect::<Result<_, _>>()?;
                for name in &names {
                    ovs.add_port(name);
                }
                (Running::Ovs(ovs), reaches)
            }
            Kind::TestpmdIo => {
                let dir = tempfile::Builder::new()
                    .prefix("ny-")
                    .tempdir()
                    .expect("a folder");
                let sockets: Vec<PathBuf> = names.iter().map(|name| dir.path().join(name)).collect();
                let testpmd = TestpmdIo::start(dir.path(), &sockets, &["--in-memory"], tso);
                files = Some(dir);
                (Running::TestpmdIo(testpmd), connect(sockets))
            }
        };
        let pid = match &running {
            Running::Switch(switch) => process::daemon(switch),
            Running::Ovs(ovs) => process::pid(ovs.pid()),
            Running::TestpmdIo(testpmd) => process::pid(testpmd.pid()),
        };
        let longest = layout.sizes.longest();
        let ports = reaches
            .into_iter()
            .map(|reach| Port::open(reach, layout.options(), longest, SETTLE))
            .collect::<Result<Vec<_>, _>>()?;
        let mut peer = Self {
            kind,
            pid,
            ports,
            running,
            _files: files,
        };
        peer.settle()?;
        Ok(peer)
    }

    /// Waits until frames pass from every port to its neighbour, and has all addresses learned; then stops the peer.
    fn settle(&mut self) -> Result<(), PortError> {
        let end = Instant::now() + SETTLE;
        loop {
            // A peer that still sets itself up may need the generator's processor for it.
            self.signal(Signal::CONT);
            std::thread::sleep(PAUSE);
            let passed = self.measure(|ports| {
                run::teach(ports)?;
                let mut streams = neighbours(ports.len(), true);
                for stream in &mut streams {
                    stream.limit = Some(4);
                }
                run::run(ports, streams, Duration::from_millis(200))
            })?;
            if passed.streams.iter().all(|stream| stream.received > 0) {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(PortError::Silent {
                    ports: self.ports.len(),
                });
            }
        }
    }

    /// Lets the peer run for as long as `work` takes, which gets the ports and the generator's processor.
    ///
    /// # Panics
    /// When the peer is gone.
    pub fn measure<T: Send>(&mut self, work: impl FnOnce(&mut [Port]) -> T + Send) -> T {
        self.signal(Signal::CONT);
        let result = cpus::on_generator(|| work(&mut self.ports));
        self.signal(Signal::STOP);
        result
    }

    /// The same, and nanoseconds that each frame took of the peer's processor, as it counts itself; none where no frame passed.
    ///
    /// # Panics
    /// When the peer is gone, or does not say.
    pub fn measure_work<T: Send>(
        &mut self,
        work: impl FnOnce(&mut [Port]) -> (T, u64) + Send,
    ) -> (T, Option<f64>) {
        self.signal(Signal::CONT);
        let before = match &mut self.running {
            Running::Switch(switch) => Some(Done::by(switch)),
            Running::Ovs(ovs) => {
                ovs.clear_work();
                None
            }
            Running::TestpmdIo(testpmd) => {
                testpmd.clear_work();
                None
            }
        };
        let (result, frames) = cpus::on_generator(|| work(&mut self.ports));
        let each = match &mut self.running {
            _ if frames == 0 => None,
            Running::Switch(switch) => before.and_then(|before| Done::by(switch).each_since(before)),
            Running::Ovs(ovs) => ovs.work(),
            Running::TestpmdIo(testpmd) => testpmd.work(),
        };
        self.signal(Signal::STOP);
        (result, each)
    }

    /// Our switch, if that is what it is.
    pub fn switch(&self) -> Option<&Switch> {
        match &self.running {
            Running::Switch(switch) => Some(switch),
            _ => None,
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap_or_else(|error| panic!("{}: {error}", self.kind));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // A stopped process does not do what it is asked; one that is gone need not.
        let _ = kill_process(self.pid, Signal::CONT);
    }
}

/// Streams of the shortest frames from each even port to the odd one after it, and back if `both`.
pub fn neighbours(ports: usize, both: bool) -> Vec<Stream> {
    let count = u16::try_from(ports).unwrap_or(u16::MAX);
    let step = if both { 1 } else { 2 };
    (0..count)
        .step_by(step)
        .map(|from| Stream::between(from, from ^ 1, frame::SHORTEST))
        .collect()
}
