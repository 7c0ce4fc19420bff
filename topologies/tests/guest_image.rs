//! The guest image on QEMU's software CPU: what init and the agent do in a real machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use topologies::agent::{Agent, Channels, Control, Exec, Input, Output, Size, Stdio as AgentStdio};
use topologies::image;
use topologies::initramfs::Image;
use topologies::initramfs::cache::Cache;

/// For everything: a software CPU on a busy machine takes its time.
const LIMIT: Duration = Duration::from_mins(2);

const MAC: &str = "52:54:00:00:00:0a";

struct Guest {
    folder: tempfile::TempDir,
    qemu: Child,
    channels: Channels,
}

impl Guest {
    /// Boot the image with two CPUs and one NIC of two queue pairs on a multi-queue tap-less back-end.
    fn boot(image: &Image, extra: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let channels = Channels::new(folder.path(), 2);
        let cmdline =
            format!("console=ttyS0 panic=-1 netyard.hostname=alpha netyard.nic={MAC},10.9.8.7/24,1400");
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-M",
            "q35",
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-m",
            "256",
            "-smp",
            "2",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args([
            "-nodefaults",
            "-serial",
            &format!("file:{}", folder.path().join("console").display()),
        ])
        .args([
            "-kernel",
            image.kernel().to_str().unwrap(),
            "-initrd",
            image.initrd().to_str().unwrap(),
        ])
        .args(["-append", &cmdline])
        .args([
            "-qmp",
            &format!("unix:{},server=on,wait=off", folder.path().join("qmp").display()),
        ])
        .args([
            "-netdev",
            "hubport,id=n0,hubid=0",
            "-device",
            &format!("virtio-net-pci,netdev=n0,mac={MAC}"),
        ])
        .args([
            "-device",
            "virtio-rng-pci",
            "-device",
            "virtio-serial-pci,id=channels",
        ])
        .args(extra);
        for index in 0..channels.count() {
            let socket = channels.socket(index);
            let name = Channels::name(index);
            qemu.args([
                "-chardev",
                &format!("socket,id=c{index},path={},server=on,wait=off", socket.display()),
            ])
            .args([
                "-device",
                &format!(
                    "virtserialport,bus=channels.0,nr={},chardev=c{index},name={name}",
                    index + 1
                ),
            ]);
        }
        let qemu = qemu
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 is installed");
        Self {
            folder,
            qemu,
            channels,
        }
    }

    async fn connect(&self) -> Agent {
        match Agent::connect(&self.channels, LIMIT).await {
            Ok(agent) => agent,
            Err(error) => panic!("{error}\n{}", self.console()),
        }
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("console")).unwrap_or_default()).into_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn wait_console(&self, text: &str) {
        let deadline = Instant::now() + LIMIT;
        while !self.console().contains(text) {
            assert!(
                Instant::now() < deadline,
                "no {text:?} on the console:\n{}",
                self.console()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Wait until QEMU has ended by itself.
    fn wait_end(&mut self) {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.qemu.try_wait().unwrap() {
                assert!(status.success(), "{status}\n{}", self.console());
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the machine did not stop\n{}",
                self.console()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn image() -> Image {
    image::ensure(image::DEFAULT, &Cache::of_user(), &|line| eprintln!("{line}")).unwrap()
}

async fn shell(agent: &mut Agent, script: &str) -> Output {
    let exec = Exec {
        argv: ["sh", "-c", script].map(Into::into).into(),
        ..Exec::default()
    };
    agent.output(&exec, Input::Empty).await.unwrap()
}

fn text(output: &Output) -> String {
    assert_eq!(output.code, 0, "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn e2e_the_guest_image_boots_and_does_what_the_command_line_says() {
    let image = image();
    let started = Instant::now();
    let mut guest = Guest::boot(&image, &[]);
    let mut agent = guest.connect().await;
    eprintln!("agent answered after {:?}", started.elapsed());
    guest.wait_console("netyard: ready");

    assert_eq!(text(&shell(&mut agent, "hostname").await), "alpha\n");
    let nic = text(
        &shell(
            &mut agent,
            "ip -o address show dev eth0; ip -o link show dev eth0",
        )
        .await,
    );
    assert!(nic.contains("inet 10.9.8.7/24"), "{nic}");
    assert!(nic.contains("mtu 1400") && nic.contains(",UP"), "{nic}");
    for tool in [
        "iperf3 --version",
        "tcpdump --version",
        "ethtool --version",
        "bridge -V",
        "tc -V",
        "ss -V",
    ] {
        text(&shell(&mut agent, tool).await);
    }
    let missing = text(
        &shell(
            &mut agent,
            "for m in tun 8021q virtio_blk; do modprobe $m || echo $m; done",
        )
        .await,
    );
    assert_eq!(missing, "");
    assert_eq!(shell(&mut agent, "exit 42").await.code, 42);

    // A terminal, and a second client at the same time.
    let mut second = guest.connect().await;
    assert_ne!(agent.socket(), second.socket());
    let tty = Exec {
        argv: ["sh", "-c", "tty; stty size"].map(Into::into).into(),
        tty: Some(Size { rows: 31, cols: 99 }),
        ..Exec::default()
    };
    let output = text(&agent.output(&tty, Input::Empty).await.unwrap());
    assert!(
        output.contains("/dev/pts/0") && output.contains("31 99"),
        "{output}"
    );

    // Much input through a slow device, whole.
    let input = vec![b'z'; 2_000_000];
    let sum = agent
        .output(
            &Exec {
                argv: vec!["md5sum".into()],
                ..Exec::default()
            },
            Input::Bytes(input),
        )
        .await
        .unwrap();
    assert_eq!(text(&sum), format!("{}  -\n", md5_of_zs()));

    // A client that goes away takes its command along and leaves the channel usable.
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(Control::HangUp).await.unwrap();
    let sleep = Exec {
        argv: ["sleep", "12345"].map(Into::into).into(),
        ..Exec::default()
    };
    let stdio = AgentStdio {
        stdin: Input::Empty,
        stdout: &mut std::io::sink(),
        stderr: &mut std::io::sink(),
        control: Some(receiver),
    };
    agent.run(&sleep, stdio).await.unwrap_err();
    drop(agent);
    let mut again = guest.connect().await;
    assert_eq!(text(&shell(&mut again, "echo back").await), "back\n");
    let left = text(
        &shell(
            &mut second,
            "while pidof sleep >/dev/null; do usleep 10000; done; echo none",
        )
        .await,
    );
    assert_eq!(left, "none\n");

    // Asked to power off from inside it does.
    let poweroff = Exec {
        argv: vec!["poweroff".into()],
        ..Exec::default()
    };
    // Its answer may or may not come out in time.
    let _ = second.output(&poweroff, Input::Empty).await;
    guest.wait_end();
}

fn md5_of_zs() -> String {
    let mut sum = Command::new("md5sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut sum.stdin.take().unwrap(), &vec![b'z'; 2_000_000]).unwrap();
    let output = sum.wait_with_output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn e2e_the_power_button_shuts_the_guest_down() {
    let mut guest = Guest::boot(&image(), &[]);
    let mut agent = guest.connect().await;
    agent.ping(LIMIT).await.unwrap();
    press_power_button(&guest.path("qmp"));
    guest.wait_end();
    assert!(guest.console().contains("Power down"), "{}", guest.console());
}

fn press_power_button(qmp: &Path) {
    use std::io::{BufRead as _, BufReader, Write as _};
    let mut stream = std::os::unix::net::UnixStream::connect(qmp).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    for command in ["qmp_capabilities", "system_powerdown"] {
        writeln!(stream, "{{\"execute\": \"{command}\"}}").unwrap();
        while !lines.next().unwrap().unwrap().contains("\"return\"") {}
    }
}
