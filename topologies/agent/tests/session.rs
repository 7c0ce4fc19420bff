//! Sessions over a socket pair: the agent's serve loop at one end, a small blocking client at the other.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use netyard_agent::frame::{Decoder, FLUSH, Frame, Kind, MAX_PAYLOAD, encode};
use netyard_agent::message::{Exec, Hello, STDIN_WINDOW, Size, VERSION, exit_code};
use netyard_agent::serve::{Launcher, serve};

const NONCE: [u8; 16] = *b"sixteen byte key";
const DEADLINE: Duration = Duration::from_secs(20);

struct Client {
    stream: UnixStream,
    decoder: Decoder,
    agent: JoinHandle<std::io::Result<()>>,
}

impl Client {
    /// A client whose greeting is still to come.
    fn connect() -> Self {
        let (stream, channel) = UnixStream::pair().unwrap();
        channel.set_nonblocking(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let launcher = Launcher {
            program: env!("CARGO_BIN_EXE_netyard-agent").into(),
            root: None,
        };
        let agent = thread::spawn(move || serve(&channel, &launcher));
        Self {
            stream,
            decoder: Decoder::new(),
            agent,
        }
    }

    fn greeted() -> Self {
        let mut client = Self::connect();
        client.greet();
        client
    }

    fn greet(&mut self) {
        self.send(
            Kind::Hello,
            &Hello {
                nonce: NONCE,
                version: VERSION,
            }
            .to_bytes(),
        );
        let answer = self.until(Kind::Hello);
        assert_eq!(
            Hello::from_bytes(&answer.payload),
            Some(Hello {
                nonce: NONCE,
                version: VERSION
            })
        );
    }

    fn send(&mut self, kind: Kind, payload: &[u8]) {
        let mut bytes = Vec::new();
        encode(&mut bytes, kind, payload);
        self.stream.write_all(&bytes).unwrap();
    }

    fn exec(&mut self, exec: &Exec) {
        self.send(Kind::Exec, &serde_json::to_vec(exec).unwrap());
    }

    fn shell(&mut self, script: &str) {
        self.exec(&Exec {
            argv: ["sh", "-c", script].map(Into::into).into(),
            ..Exec::default()
        });
    }

    fn frame(&mut self) -> Frame {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return frame;
            }
            let n = self.stream.read(&mut buffer).expect("the agent answers in time");
            assert_ne!(n, 0, "the agent hung up");
            self.decoder.push(&buffer[..n]);
        }
    }

    fn until(&mut self, kind: Kind) -> Frame {
        loop {
            let frame = self.frame();
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// Everything up to the command's end: output, errors, exit code.
    fn outcome(&mut self) -> (Vec<u8>, Vec<u8>, i32) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            let frame = self.frame();
            match frame.kind {
                Kind::Stdout => stdout.extend(frame.payload),
                Kind::Stderr => stderr.extend(frame.payload),
                Kind::Exit => return (stdout, stderr, exit_code(&frame.payload).unwrap()),
                Kind::StdinTaken => {}
                other => panic!("{other:?}: {}", String::from_utf8_lossy(&frame.payload)),
            }
        }
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        thread::yield_now();
    }
}

fn alive(pid: &str) -> bool {
    // A zombie has ended; whoever inherited it has just not collected it.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn output_errors_and_exit_code_come_back() {
    let mut client = Client::greeted();
    client.shell("echo out; echo err >&2; exit 7");
    assert_eq!(client.outcome(), (b"out\n".to_vec(), b"err\n".to_vec(), 7));
}

#[test]
fn one_session_runs_one_command_after_another() {
    let mut client = Client::greeted();
    for i in 0..20 {
        client.shell(&format!("echo {i}"));
        assert_eq!(client.outcome(), (format!("{i}\n").into_bytes(), vec![], 0));
    }
}

#[test]
fn environment_and_working_directory_arrive() {
    let mut client = Client::greeted();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    client.exec(&Exec {
        argv: ["sh", "-c", "echo $COLOUR; pwd"].map(Into::into).into(),
        env: vec![("COLOUR".into(), "blue".into())],
        cwd: Some(dir.to_str().unwrap().into()),
        tty: None,
    });
    assert_eq!(
        client.outcome().0,
        format!("blue\n{}\n", dir.display()).into_bytes()
    );
}

#[test]
fn a_command_that_does_not_exist_gives_127() {
    let mut client = Client::greeted();
    client.exec(&Exec {
        argv: vec!["no-such-program".into()],
        ..Exec::default()
    });
    let (_, stderr, code) = client.outcome();
    assert_eq!(code, 127);
    assert!(String::from_utf8(stderr).unwrap().contains("no-such-program"));
}

#[test]
fn a_signal_ends_the_command_with_128_and_its_number() {
    let mut client = Client::greeted();
    client.shell("echo ready; exec sleep 1000");
    client.until(Kind::Stdout);
    client.send(Kind::Signal, &[2]);
    assert_eq!(client.outcome().2, 130);
}

#[test]
fn megabytes_of_input_come_back_through_cat() {
    let mut client = Client::greeted();
    client.shell("exec cat");
    let input: Vec<u8> = (0..3_000_000u32).map(|i| i.to_le_bytes()[1]).collect();
    let (mut sent, mut taken, mut output) = (0, 0, Vec::new());
    while output.len() < input.len() {
        let room = (STDIN_WINDOW - (sent - taken))
            .min(input.len() - sent)
            .min(MAX_PAYLOAD);
        if room > 0 {
            let piece = input[sent..sent + room].to_vec();
            client.send(Kind::Stdin, &piece);
            sent += room;
        }
        let frame = client.frame();
        match frame.kind {
            Kind::Stdout => output.extend(frame.payload),
            Kind::StdinTaken => {
                taken += usize::try_from(u32::from_le_bytes(frame.payload.try_into().unwrap())).unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
    client.send(Kind::StdinEof, &[]);
    assert_eq!(client.outcome(), (vec![], vec![], 0));
    assert!(output == input);
}

#[test]
fn more_input_than_the_window_ends_the_command() {
    let mut client = Client::greeted();
    client.shell("exec sleep 1000");
    // Besides the window the pipe to the command takes some.
    for _ in 0..2 * STDIN_WINDOW / MAX_PAYLOAD {
        client.send(Kind::Stdin, &[1; 1024].repeat(MAX_PAYLOAD / 1024));
    }
    let refusal = client.until(Kind::Refused);
    assert!(
        String::from_utf8(refusal.payload)
            .unwrap()
            .contains("standard input")
    );
    client.shell("echo still here");
    assert_eq!(client.outcome().0, b"still here\n");
}

#[test]
fn a_command_that_floods_is_held_back_by_a_client_that_does_not_read() {
    let mut client = Client::greeted();
    client.shell("echo $$; exec cat /dev/zero");
    let pid = String::from_utf8(client.until(Kind::Stdout).payload).unwrap();
    let pid = pid.lines().next().unwrap().to_owned();
    let written = || {
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
        io.lines()
            .find_map(|line| line.strip_prefix("wchar: "))
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let mut last = 0;
    wait_for("the writer sleeps", || {
        let before = std::mem::replace(&mut last, written());
        last > 0 && before == last && sleeps(&pid)
    });
    assert!(last < 4_000_000, "{last} bytes written while nobody read");
}

fn sleeps(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") S "))
}

#[test]
fn disconnecting_ends_the_whole_process_group() {
    let mut client = Client::greeted();
    client.shell("trap '' HUP TERM; sleep 1000 & echo $$ $!; wait");
    let pids = String::from_utf8(client.until(Kind::Stdout).payload).unwrap();
    client.stream.shutdown(Shutdown::Both).unwrap();
    client.agent.join().unwrap().unwrap();
    for pid in pids.split_whitespace() {
        wait_for("the process ends", || !alive(pid));
    }
}

#[test]
fn a_process_left_behind_does_not_keep_the_session() {
    let mut client = Client::greeted();
    client.shell("sleep 1000 & echo $!");
    let (stdout, _, code) = client.outcome();
    assert_eq!(code, 0);
    let pid = String::from_utf8(stdout).unwrap();
    assert!(alive(pid.trim()));
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_terminal_has_the_size_asked_for_and_changes_it() {
    let mut client = Client::greeted();
    let tty = Some(Size { rows: 33, cols: 111 });
    let script = "trap 'stty size; exit 3' WINCH; stty -echo; stty size; tty; while :; do read x; done";
    client.exec(&Exec {
        argv: ["bash", "-c", script].map(Into::into).into(),
        tty,
        ..Exec::default()
    });
    let mut seen = String::new();
    while !seen.contains("/dev/pts/") {
        seen.push_str(&String::from_utf8(client.until(Kind::Stdout).payload).unwrap());
    }
    assert!(seen.starts_with("33 111"), "{seen}");
    client.send(Kind::Resize, br#"{"rows":12,"cols":34}"#);
    client.send(Kind::Stdin, b"\r");
    let (stdout, _, code) = client.outcome();
    assert_eq!(code, 3);
    assert!(String::from_utf8(stdout).unwrap().contains("12 34"));
}

#[test]
fn control_c_on_a_terminal_interrupts() {
    let mut client = Client::greeted();
    let tty = Some(Size { rows: 24, cols: 80 });
    client.exec(&Exec {
        argv: ["sh", "-c", "echo ready; exec sleep 1000"].map(Into::into).into(),
        tty,
        ..Exec::default()
    });
    client.until(Kind::Stdout);
    client.send(Kind::Stdin, &[3]);
    assert_eq!(client.outcome().2, 130);
}

#[test]
fn ping_is_answered_while_a_command_runs() {
    let mut client = Client::greeted();
    client.shell("exec sleep 1000");
    client.send(Kind::Ping, b"42");
    assert_eq!(client.until(Kind::Pong).payload, b"42");
}

#[test]
fn a_second_command_at_once_and_nonsense_are_refused() {
    let mut client = Client::greeted();
    client.shell("exec sleep 1000");
    client.shell("true");
    assert!(
        String::from_utf8(client.frame().payload)
            .unwrap()
            .contains("running")
    );
    client.greet();
    client.send(Kind::Exec, b"{\"argv\": 3}");
    assert_eq!(client.frame().kind, Kind::Refused);
    client.send(Kind::Exec, b"{\"argv\": []}");
    assert_eq!(client.frame().kind, Kind::Refused);
    client.send(Kind::Exit, &[]);
    assert_eq!(client.frame().kind, Kind::Refused);
    client.shell("echo fine");
    assert_eq!(client.outcome().0, b"fine\n");
}

#[test]
fn a_new_greeting_ends_the_old_command() {
    let mut client = Client::greeted();
    client.shell("echo $$; exec sleep 1000");
    let pid = String::from_utf8(client.until(Kind::Stdout).payload).unwrap();
    client.greet();
    wait_for("the old command ends", || !alive(pid.trim()));
}

#[test]
fn requests_before_the_greeting_are_ignored() {
    let mut client = Client::connect();
    client.send(Kind::Ping, b"stale");
    client.shell("echo stale");
    client.greet();
    client.stream.set_nonblocking(true).unwrap();
    assert_eq!(
        client.stream.read(&mut [0; 8]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
}

#[test]
fn a_flush_recovers_from_a_frame_left_half_sent_and_from_noise() {
    for garbage in [vec![3, 0xff, 0xff, 0, 0, 1, 2, 3], vec![0xee; 3000], vec![9]] {
        let mut client = Client::connect();
        client.stream.write_all(&garbage).unwrap();
        client.stream.write_all(&vec![0; FLUSH]).unwrap();
        client.greet();
        client.shell("echo back");
        assert_eq!(client.outcome().0, b"back\n");
    }
}
