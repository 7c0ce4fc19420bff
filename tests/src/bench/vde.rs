//! `vde_switch` with the same frames over its own protocol: a datagram socket a port.
//!
//! A client connects to the stream socket `ctl` and sends a request with the address of its datagram socket; the answer is the
//! address of the switch's. The stream stays open for as long as the port is there.

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::cpus;
use super::median::median;
use super::peer::{Kind, Peer, neighbours};
use super::throughput::Effort;
use crate::deadline::wait_for;
use crate::pktgen::frame::{self, Mark, Template};
use crate::pktgen::layout::{Layout, Ring};
use crate::pktgen::outcome::as_f64;
use crate::pktgen::run::run;
use crate::pktgen::sequence::Sequence;
use crate::pktgen::stream::{Sizes, Stream};

const LIMIT: Duration = Duration::from_secs(10);
const BURST: usize = 32;
/// The start of a request, and the version of the protocol.
const MAGIC: u32 = 0xfeed_face;
const VERSION: u32 = 3;
/// Length of `struct sockaddr_un`.
const ADDRESS: usize = 110;
/// Frame sizes: their names, and their octets without the frame check sequence.
const SIZES: [(&str, usize); 2] = [("64", 60), ("1518", 1514)];

/// Measures `vde_switch` and ours in turn and gives a Markdown table.
///
/// # Panics
/// When one of the programs fails.
pub fn measure(effort: &Effort) -> String {
    let layout = Layout::new(Ring::Split, Sizes::Fixed(1514));
    let mut ours = Peer::start(Kind::Vswitch, 2, &layout).unwrap_or_else(|error| panic!("{error}"));
    let mut vde = Vde::start();
    let mut table = "| frames | `vswitch` | `vde_switch` | ratio |\n|---|---|---|---|\n".to_owned();
    for (name, size) in SIZES {
        for both in [false, true] {
            let runs: Vec<(f64, f64)> = (0..effort.pairs)
                .map(|_| {
                    let mut streams = neighbours(2, both);
                    for stream in &mut streams {
                        stream.sizes = Sizes::Fixed(size);
                    }
                    let ours = ours.measure(|ports| run(ports, streams.clone(), effort.trial));
                    let ours = ours.unwrap_or_else(|error| panic!("{error}")).rate();
                    let theirs = cpus::on_generator(|| vde.run(&streams, effort.trial));
                    (ours, theirs.unwrap_or_else(|error| panic!("vde_switch: {error}")))
                })
                .collect();
            let of = |value: fn(&(f64, f64)) -> f64| median(&runs.iter().map(value).collect::<Vec<_>>());
            let ways = if both { "both ways" } else { "one way" };
            let _ = writeln!(
                table,
                "| {name}, {ways} | {:.2} M/s | {:.3} M/s | {:.0} |",
                of(|run| run.0) / 1e6,
                of(|run| run.1) / 1e6,
                of(|run| run.0 / run.1)
            );
        }
    }
    eprint!("{table}");
    table
}

/// A running `vde_switch` with two ports.
struct Vde {
    switch: Child,
    ports: Vec<VdePort>,
    _dir: tempfile::TempDir,
}

struct VdePort {
    data: UnixDatagram,
    _control: UnixStream,
}

impl Vde {
    fn start() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("ny-vde-")
            .tempdir()
            .expect("a folder");
        let sockets = dir.path().join("sw");
        let switch = Command::new("taskset")
            .args(["-c", &cpus::measured().to_string(), "vde_switch", "-s"])
            .arg(&sockets)
            // It ends when its console does.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("vde_switch did not start: {error}"));
        let mut vde = Self {
            switch,
            ports: Vec::new(),
            _dir: dir,
        };
        for index in 0..2 {
            let own = sockets.join(format!("netyard-{index}"));
            let port = wait_for("vde_switch", LIMIT, || VdePort::connect(&sockets, &own).ok());
            vde.ports.push(port);
        }
        // It learns where each port is.
        for from in 0..2 {
            let template = Template::new(frame::mac(from), [0xff; 6], 0, frame::SHORTEST);
            let port = &vde.ports[usize::from(from)];
            port.data
                .send(template.frame())
                .unwrap_or_else(|error| panic!("vde_switch: {error}"));
        }
        vde
    }

    /// Frames a second that arrive, with every stream flat out.
    fn run(&mut self, streams: &[Stream], trial: Duration) -> io::Result<f64> {
        let mut frames: Vec<Vec<u8>> = streams
            .iter()
            .map(|stream| stream.template(0).frame().to_vec())
            .collect();
        let mut sent = vec![0_u32; streams.len()];
        let mut seen = vec![Sequence::default(); streams.len()];
        let mut buffer = vec![0; 2048];
        let start = Instant::now();
        while start.elapsed() < trial {
            let sent_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            for (index, stream) in streams.iter().enumerate() {
                for _ in 0..BURST {
                    let mark = Mark {
                        stream: u16::try_from(index).unwrap_or(u16::MAX),
                        sequence: sent[index],
                        sent_ns,
                    };
                    frame::mark_frame(&mut frames[index], mark);
                    if !done(self.ports[usize::from(stream.from)].data.send(&frames[index]))? {
                        break;
                    }
                    sent[index] = sent[index].wrapping_add(1);
                }
            }
            for port in &self.ports {
                for _ in 0..BURST * 2 {
                    let received = port.data.recv(&mut buffer);
                    let len = *received.as_ref().unwrap_or(&0);
                    if !done(received)? {
                        break;
                    }
                    if let Some(mark) = frame::mark_of_frame(&buffer[..len])
                        && let Some(seen) = seen.get_mut(usize::from(mark.stream))
                    {
                        seen.see(mark.sequence);
                    }
                }
            }
        }
        let received: u64 = seen.iter().map(|seen| seen.received).sum();
        Ok(as_f64(received) / start.elapsed().as_secs_f64())
    }
}

/// Whether something was sent or received, or had to wait.
fn done(result: io::Result<usize>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

impl VdePort {
    fn connect(sockets: &Path, own: &Path) -> io::Result<Self> {
        let mut control = UnixStream::connect(sockets.join("ctl"))?;
        // An attempt before may have left it.
        let _ = std::fs::remove_file(own);
        let data = UnixDatagram::bind(own)?;
        let mut request = Vec::new();
        for word in [MAGIC, VERSION, 0] {
            request.extend(word.to_ne_bytes());
        }
        request.extend(address(own));
        request.extend(b"netyard");
        control.write_all(&request)?;
        let mut answer = [0; ADDRESS];
        control.read_exact(&mut answer)?;
        let path = answer[2..].split(|byte| *byte == 0).next().unwrap_or_default();
        data.connect(PathBuf::from(String::from_utf8_lossy(path).into_owned()))?;
        data.set_nonblocking(true)?;
        Ok(Self {
            data,
            _control: control,
        })
    }
}

/// A path as `struct sockaddr_un`.
fn address(path: &Path) -> [u8; ADDRESS] {
    use std::os::unix::ffi::OsStrExt as _;
    let mut bytes = [0; ADDRESS];
    // AF_UNIX
    bytes[..2].copy_from_slice(&1_u16.to_ne_bytes());
    for (to, from) in bytes[2..ADDRESS - 1].iter_mut().zip(path.as_os_str().as_bytes()) {
        *to = *from;
    }
    bytes
}

impl Drop for Vde {
    fn drop(&mut self) {
        // It was only a peer; nothing of it is kept.
        let _ = self.switch.kill();
        let _ = self.switch.wait();
    }
}
