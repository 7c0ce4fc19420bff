use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use netyard_agent::serve::{Launcher, serve};

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

/// A machine with one real agent behind every channel's socket, as a VMM would show it: one client at a time.
struct Machine {
    folder: tempfile::TempDir,
    channels: Channels,
}

impl Machine {
    fn start(count: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let channels = Channels::new(folder.path(), count);
        for index in 0..count {
            listen(&channels, index, Vec::new());
        }
        Self { folder, channels }
    }
}

/// Serve clients of channel `index` until the test's process ends; the first is preceded by `stale` bytes.
fn listen(channels: &Channels, index: u8, stale: Vec<u8>) -> JoinHandle<()> {
    let listener = UnixListener::bind(channels.socket(index)).unwrap();
    std::thread::spawn(move || {
        let mut stale = stale;
        // The agent's own program is not built for these tests; commands are told apart from it by a shell script.
        let launcher = Launcher {
            program: launcher_script(),
            root: None,
        };
        for channel in listener.incoming() {
            let mut channel = channel.unwrap();
            io::Write::write_all(&mut channel, &std::mem::take(&mut stale)).unwrap();
            channel.set_nonblocking(true).unwrap();
            serve(&channel, &launcher).unwrap();
        }
    })
}

/// Does what the launcher does as far as these tests need it: skip the arguments up to `--` and run the rest.
fn launcher_script() -> PathBuf {
    static SCRIPT: std::sync::OnceLock<(tempfile::TempDir, PathBuf)> = std::sync::OnceLock::new();
    let make = || {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("launch");
        std::fs::write(
            &path,
            "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done; shift; exec setsid \"$@\"\n",
        )
        .unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        (folder, path)
    };
    SCRIPT.get_or_init(make).1.clone()
}

fn shell(script: &str) -> Exec {
    Exec {
        argv: ["sh", "-c", script].map(Into::into).into(),
        ..Exec::default()
    }
}

#[tokio::test]
async fn a_command_gets_input_and_gives_output_and_code() {
    let machine = Machine::start(1);
    let mut agent = Agent::connect(&machine.channels, LIMIT).await.unwrap();
    let input = vec![b'x'; 1_000_000];
    let output = agent
        .output(&shell("wc -c; echo no >&2; exit 9"), Input::Bytes(input))
        .await
        .unwrap();
    assert_eq!(
        output,
        Output {
            stdout: b"1000000\n".to_vec(),
            stderr: b"no\n".to_vec(),
            code: 9
        }
    );
    agent.ping(LIMIT).await.unwrap();
    assert_eq!(agent.output(&shell("true"), Input::Empty).await.unwrap().code, 0);
}

#[tokio::test]
async fn clients_at_once_take_different_channels_and_the_last_is_told() {
    let machine = Machine::start(2);
    let first = Agent::connect(&machine.channels, LIMIT).await.unwrap();
    let second = Agent::connect(&machine.channels, LIMIT).await.unwrap();
    assert_ne!(first.socket(), second.socket());
    let third = Agent::connect(&machine.channels, Duration::from_millis(50)).await;
    assert!(
        matches!(third, Err(AgentError::Busy { channels: 2, .. })),
        "{third:?}"
    );
    drop(first);
    Agent::connect(&machine.channels, LIMIT).await.unwrap();
}

#[tokio::test]
async fn stale_bytes_before_the_answer_are_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let channels = Channels::new(folder.path(), 1);
    let mut stale = Vec::new();
    encode(&mut stale, Kind::Stdout, &[9; 3000]);
    encode(
        &mut stale,
        Kind::Hello,
        &Hello {
            nonce: [1; NONCE],
            version: VERSION,
        }
        .to_bytes(),
    );
    stale.truncate(stale.len() - 3);
    listen(&channels, 0, stale);
    let mut agent = Agent::connect(&channels, LIMIT).await.unwrap();
    assert_eq!(
        agent
            .output(&shell("echo hi"), Input::Empty)
            .await
            .unwrap()
            .stdout,
        b"hi\n"
    );
}

#[tokio::test]
async fn a_machine_that_starts_later_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let channels = Channels::new(folder.path(), 1);
    let connecting = tokio::spawn({
        let channels = channels.clone();
        async move { Agent::connect(&channels, LIMIT).await.map(drop) }
    });
    tokio::task::yield_now().await;
    listen(&channels, 0, Vec::new());
    connecting.await.unwrap().unwrap();
}

#[tokio::test]
async fn nobody_there_and_nobody_answering_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let channels = Channels::new(folder.path(), 1);
    let nobody = Agent::connect(&channels, Duration::from_millis(60)).await;
    assert!(matches!(nobody, Err(AgentError::Connect { .. })), "{nobody:?}");
    let _listener = UnixListener::bind(channels.socket(0)).unwrap();
    let silent = Agent::connect(&channels, Duration::from_millis(60)).await;
    assert!(matches!(silent, Err(AgentError::NoAnswer { .. })), "{silent:?}");
}

#[tokio::test]
async fn signals_reach_the_command_and_hanging_up_ends_the_session() {
    let machine = Machine::start(1);
    let mut agent = Agent::connect(&machine.channels, LIMIT).await.unwrap();
    for (control, code) in [(Control::Signal(15), Some(143)), (Control::HangUp, None)] {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let mut announce = Announce(Some(sender), control);
        let stdio = Stdio {
            stdin: Input::Empty,
            stdout: &mut announce,
            stderr: &mut io::sink(),
            control: Some(receiver),
        };
        let result = agent.run(&shell("echo up; exec sleep 1000"), stdio).await;
        match code {
            Some(code) => assert_eq!(result.unwrap(), code),
            None => assert!(matches!(result, Err(AgentError::Interrupted))),
        }
    }
    // The channel serves the next client once the abandoned command is gone.
    drop(agent);
    Agent::connect(&machine.channels, LIMIT).await.unwrap();
    drop(machine.folder);
}

/// Sends a control message as soon as the command has said something.
struct Announce(Option<tokio::sync::mpsc::Sender<Control>>, Control);

impl io::Write for Announce {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(sender) = self.0.take() {
            sender.try_send(self.1).unwrap();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn refusals_and_hang_ups_are_errors_that_say_so() {
    let machine = Machine::start(1);
    let mut agent = Agent::connect(&machine.channels, LIMIT).await.unwrap();
    let refused = agent.output(&Exec::default(), Input::Empty).await;
    assert!(matches!(refused, Err(AgentError::Refused(_))), "{refused:?}");
    let long = agent.output(&shell(&"x".repeat(70_000)), Input::Empty).await;
    assert!(matches!(long, Err(AgentError::TooLong(_))), "{long:?}");
}

#[tokio::test]
async fn a_command_ends_when_the_machine_boots_anew() {
    let folder = tempfile::tempdir().unwrap();
    let channels = Channels::new(folder.path(), 1);
    let listener = UnixListener::bind(channels.socket(0)).unwrap();
    std::thread::spawn(move || {
        let (mut channel, _) = listener.accept().unwrap();
        // The agent of before the boot: it greets, takes the command, and is never heard of again.
        let (mut decoder, mut taken) = (Decoder::new(), Vec::new());
        let mut buffer = [0; 4096];
        while taken.last() != Some(&Kind::Exec) {
            let n = io::Read::read(&mut channel, &mut buffer).unwrap();
            decoder.push(&buffer[..n]);
            while let Some(frame) = decoder.next_frame().unwrap() {
                taken.push(frame.kind);
                if frame.kind == Kind::Hello {
                    let mut answer = Vec::new();
                    encode(&mut answer, Kind::Hello, &frame.payload);
                    io::Write::write_all(&mut channel, &answer).unwrap();
                }
                if frame.kind == Kind::Exec {
                    break;
                }
            }
        }
        channel.set_nonblocking(true).unwrap();
        let launcher = Launcher {
            program: launcher_script(),
            root: None,
        };
        serve(&channel, &launcher).unwrap();
    });
    let mut agent = Agent::connect(&channels, LIMIT).await.unwrap();
    let lost = agent
        .output(&shell("sleep 1000"), Input::Empty)
        .await
        .unwrap_err();
    assert!(lost.to_string().contains("started anew"), "{lost}");
}
