//! The NIC against other people's back-ends: DPDK's `net_vhost` with either end connecting, and Open vSwitch with DPDK.
//! Each forwards between two NICs; it is killed and comes back.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::{Guest, SOON, drive, options};
use crate::vhost_user::{NicOptions, SocketMode, VhostUserNet};

/// What a virtio-net frame has in front of it.
const HEADER: usize = 12;
const FRAME: usize = 60;
const BUFFER: u32 = 2048;

/// A guest with a NIC, and how many frames it has received and sent since its driver started.
struct Machine {
    nic: VhostUserNet,
    guest: Guest,
    received: u16,
    sent: u16,
}

impl Machine {
    fn new(socket: &Path, mode: SocketMode) -> Self {
        // The guest is offered what the back-end has: not all of them have every offload.
        let mut nic = VhostUserNet::new(NicOptions {
            mode,
            queue_pairs: 1,
            wait: SOON,
            ..options(socket)
        })
        .unwrap();
        let mut guest = Guest::new(3);
        drive(&mut guest, &mut nic);
        Self {
            nic,
            guest,
            received: 0,
            sent: 0,
        }
    }

    fn wait_for_link(&self, up: bool) {
        let monitor = self.nic.monitor();
        assert!(
            monitor.wait_for(SOON, |s| s.link_up == up),
            "{:?}",
            monitor.status()
        );
    }

    /// Posts a buffer for the next frame.
    fn post_room(&mut self) {
        let at = self.guest.queues[0].buffer();
        self.guest.queues[0].post(&[(at, BUFFER, true)]);
    }

    fn send(&mut self, frame: &[u8; FRAME]) {
        let at = self.guest.queues[1].buffer();
        let mem = &self.guest.ram.mem;
        mem.write_slice(&[0; HEADER], GuestAddress(at)).unwrap();
        mem.write_slice(frame, GuestAddress(at + HEADER as u64)).unwrap();
        let len = u32::try_from(HEADER + FRAME).unwrap();
        self.guest.queues[1].post(&[(at, len, false)]);
        self.sent += 1;
        self.guest.queues[1].wait_used(self.sent);
    }

    /// The frame in the buffer that was posted, if it has come by now.
    fn received(&mut self) -> Option<[u8; FRAME]> {
        if self.guest.queues[0].used_index() == self.received {
            return None;
        }
        self.received += 1;
        let at = self.guest.queues[0].buffer() + HEADER as u64;
        let mut frame = [0; FRAME];
        self.guest
            .ram
            .mem
            .read_slice(&mut frame, GuestAddress(at))
            .unwrap();
        Some(frame)
    }
}

/// Sends frames from one to the other until one has come: a back-end drops them for a while after its start.
fn carry(from: &mut Machine, to: &mut Machine, mark: u8) {
    let mut frame = [mark; FRAME];
    frame[..14].copy_from_slice(&[
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, mark, 0x88, 0xb5,
    ]);
    to.post_room();
    let deadline = Instant::now() + SOON;
    loop {
        from.send(&frame);
        let next = Instant::now() + Duration::from_millis(20);
        while Instant::now() < next {
            match to.received() {
                Some(got) if got == frame => return,
                // A switch has things of its own to say, and late copies of the last round come as well.
                Some(_) => to.post_room(),
                None => std::thread::yield_now(),
            }
        }
        assert!(Instant::now() < deadline, "no frame comes through");
    }
}

/// A process of the test's own, which ends with the value.
struct Peer {
    child: Child,
}

impl Peer {
    fn start(command: &mut Command) -> Self {
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}; run scripts/deps.sh test"));
        Self { child }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `testpmd` between two `net_vhost` ports. As a `client` it connects to the NICs.
fn testpmd(dir: &Path, sockets: &[PathBuf; 2], client: bool) -> Peer {
    let mut command = Command::new("dpdk-testpmd");
    command
        .args([
            "--lcores",
            "0@0,1@0",
            "--no-huge",
            "-m",
            "256",
            "--no-pci",
            "--no-telemetry",
        ])
        .arg(format!("--file-prefix=nyv{}", std::process::id()))
        .env("XDG_RUNTIME_DIR", dir);
    for (index, socket) in sockets.iter().enumerate() {
        command.arg(format!(
            "--vdev=net_vhost{index},iface={},client={}",
            socket.display(),
            u8::from(client)
        ));
    }
    command.args([
        "--",
        "-i",
        "--total-num-mbufs=8192",
        "--no-lsc-interrupt",
        "--forward-mode=io",
    ]);
    let mut peer = Peer::start(&mut command);
    let stdin = peer.child.stdin.as_mut().unwrap();
    stdin.write_all(b"start\n").unwrap();
    peer
}

/// Frames both ways through whatever `start` starts, which is killed in between.
fn there_and_back(sockets: &[PathBuf; 2], mode: SocketMode, mut start: impl FnMut() -> Peer) {
    let mut peer = start();
    let [mut one, mut two] = sockets.each_ref().map(|socket| Machine::new(socket, mode));
    for round in 0..2 {
        one.wait_for_link(true);
        two.wait_for_link(true);
        carry(&mut one, &mut two, 2 * round + 1);
        carry(&mut two, &mut one, 2 * round + 2);
        if round == 0 {
            drop(peer);
            one.wait_for_link(false);
            two.wait_for_link(false);
            for socket in sockets.iter().filter(|_| mode == SocketMode::Client) {
                // A killed server leaves its socket, and DPDK does not replace what is there.
                std::fs::remove_file(socket).unwrap();
            }
            peer = start();
        }
    }
}

fn net_vhost(mode: SocketMode) {
    let dir = tempfile::tempdir().unwrap();
    let sockets = ["0", "1"].map(|name| dir.path().join(name));
    let client = mode == SocketMode::Server;
    there_and_back(&sockets, mode, || testpmd(dir.path(), &sockets, client));
}

#[test]
fn e2e_dpdk_net_vhost_that_listens() {
    net_vhost(SocketMode::Client);
}

#[test]
fn e2e_dpdk_net_vhost_that_connects() {
    net_vhost(SocketMode::Server);
}

/// Huge pages that are reserved while the value lives: Open vSwitch does not do without.
struct HugePages(u64);

impl HugePages {
    const FILE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

    fn count() -> u64 {
        std::fs::read_to_string(Self::FILE)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }

    /// `None` where this user may not.
    fn reserve(more: u64) -> Option<Self> {
        let before = Self::count();
        std::fs::write(Self::FILE, (before + more).to_string()).ok()?;
        let got = Self(Self::count().saturating_sub(before));
        assert_eq!(got.0, more, "the host has no {more} huge pages to spare");
        Some(got)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::FILE, Self::count().saturating_sub(self.0).to_string());
    }
}

/// Open vSwitch's programs, with folder and database of their own.
struct OpenVswitch {
    dir: tempfile::TempDir,
    _database: Peer,
}

impl OpenVswitch {
    fn new(sockets: &[PathBuf; 2]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let created = Command::new("ovsdb-tool")
            .arg("create")
            .arg(path("conf.db"))
            .arg("/usr/share/openvswitch/vswitch.ovsschema")
            .status();
        assert!(
            created.is_ok_and(|status| status.success()),
            "ovsdb-tool; run scripts/deps.sh test"
        );
        let remote = format!("--remote=punix:{}", path("db.sock").display());
        let database = Peer::start(
            Self::program("ovsdb-server", dir.path())
                .arg(path("conf.db"))
                .arg(remote),
        );
        let deadline = Instant::now() + SOON;
        while !path("db.sock").exists() {
            assert!(Instant::now() < deadline, "no database");
            std::thread::yield_now();
        }
        let ovs = Self {
            dir,
            _database: database,
        };
        let prefix = std::process::id();
        ovs.set(&["init"]);
        ovs.set(&[
            "set",
            "Open_vSwitch",
            ".",
            "other_config:dpdk-init=true",
            "other_config:dpdk-lcore-mask=0x1",
            "other_config:pmd-cpu-mask=0x1",
            "other_config:dpdk-socket-mem=64",
            &format!("other_config:dpdk-extra=--no-pci --no-telemetry --file-prefix=nyv{prefix}"),
        ]);
        ovs.set(&[
            "add-br",
            "br0",
            "--",
            "set",
            "bridge",
            "br0",
            "datapath_type=netdev",
        ]);
        for (index, socket) in sockets.iter().enumerate() {
            let port = format!("p{index}");
            let path = format!("options:vhost-server-path={}", socket.display());
            let interface = ["--", "set", "Interface", &port, "type=dpdkvhostuserclient", &path];
            ovs.set(&[&["add-port", "br0", &port][..], &interface].concat());
        }
        ovs
    }

    fn program(name: &str, dir: &Path) -> Command {
        let mut command = Command::new(name);
        for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "XDG_RUNTIME_DIR"] {
            command.env(variable, dir);
        }
        command
    }

    fn database(&self) -> String {
        format!("unix:{}", self.dir.path().join("db.sock").display())
    }

    /// Writes to the database. The switch need not run yet.
    fn set(&self, args: &[&str]) {
        let status = Command::new("ovs-vsctl")
            .arg(format!("--db={}", self.database()))
            .args(["--timeout=30", "--no-wait"])
            .args(args)
            .status();
        assert!(status.is_ok_and(|status| status.success()), "ovs-vsctl {args:?}");
    }

    fn switch(&self) -> Peer {
        let program = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
        // Its bridge comes with an interface of the same name: in a network namespace of its own it is nobody's business.
        let mut command = Self::program("unshare", self.dir.path());
        let log = self.dir.path().join("ovs-vswitchd.log");
        command
            .args(["--net", program, "--no-chdir"])
            .arg(format!("--log-file={}", log.display()))
            .arg(self.database());
        Peer::start(&mut command)
    }
}

#[test]
fn e2e_open_vswitch_with_dpdk() {
    let Some(_pages) = HugePages::reserve(128) else {
        eprintln!("nothing tested: huge pages can only be reserved by root");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let sockets = ["0", "1"].map(|name| dir.path().join(name));
    let ovs = OpenVswitch::new(&sockets);
    there_and_back(&sockets, SocketMode::Server, || ovs.switch());
}
