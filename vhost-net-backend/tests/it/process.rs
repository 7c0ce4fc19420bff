//! The program itself.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::guest::Guest;
use crate::session::Device;
use crate::{LIMIT, until};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_vhost-net-backend");

/// A running program that does not outlive its test.
pub(crate) struct Program(pub(crate) Child);

impl Program {
    pub(crate) fn terminate(&mut self) -> i32 {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let begin = Instant::now();
        let mut status = None;
        until("the program ends", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        assert!(begin.elapsed() < LIMIT);
        status.and_then(|status| status.code()).unwrap_or(-1)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn connect_to(socket: &Path, other: &Path, pairs: u16) -> Program {
    let mut command = Command::new(PROGRAM);
    command.arg("--socket").arg(socket).arg("--connect").arg(other);
    Program(command.args(["--queues", &pairs.to_string()]).spawn().unwrap())
}

#[test]
fn it_links_a_guest_to_another_back_end_and_stops_cleanly() {
    let echo = Device::start(2);
    let dir = tempfile::tempdir().unwrap();
    let (near, far) = (dir.path().join("near"), dir.path().join("far"));
    let mut second = connect_to(&far, &echo.path, 2);
    until("the second listens", || far.exists());
    let mut first = connect_to(&near, &far, 2);
    let mut guest = Guest::start(&near, 2);
    until("the chain is up", || {
        echo.handle.status().enabled_queue_pairs() == 2
    });
    // The last link of the chain to come up may still be dropping: the first answer tells.
    let hello = crate::guest::frame("hello");
    until("an answer", || {
        guest.send(0, &hello);
        std::thread::sleep(std::time::Duration::from_millis(5));
        guest.try_receive(0).is_some()
    });
    while guest.in_flight(0) > 0 || guest.try_receive(0).is_some() {}
    for round in 0..100 {
        guest.ping(1, &format!("round {round}"));
    }
    assert_eq!(first.terminate(), 0);
    assert!(!near.exists(), "the socket is left behind");
    assert_eq!(second.terminate(), 0);
    assert!(!far.exists(), "the socket is left behind");
}

#[test]
fn it_says_what_it_can_do() {
    let output = Command::new(PROGRAM)
        .arg("--print-capabilities")
        .output()
        .unwrap();
    assert!(output.status.success());
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["type"], "net");
}

#[test]
fn wrong_usage_ends_with_2_and_a_refusal_with_1() {
    let code = |args: &[&str]| Command::new(PROGRAM).args(args).output().unwrap().status.code();
    assert_eq!(code(&[]), Some(2));
    assert_eq!(code(&["--socket", "/tmp/x"]), Some(2));
    assert_eq!(
        code(&["--socket", "/tmp/x", "--tap", "a", "--connect", "b"]),
        Some(2)
    );
    assert_eq!(
        code(&["--socket", "/tmp/x", "--tap", "a", "--queues", "17"]),
        Some(2)
    );
    assert_eq!(code(&["--socket", "/tmp/x", "--tap", "not a name"]), Some(1));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("precious");
    std::fs::write(&file, b"data").unwrap();
    let file = file.to_str().unwrap();
    let mut command = Command::new(PROGRAM);
    let child = command
        .args(["--socket", file, "--connect", "/nonexistent"])
        .stderr(Stdio::piped())
        .spawn();
    let mut program = Program(child.unwrap());
    let stderr = BufReader::new(program.0.stderr.take().unwrap());
    assert!(
        stderr
            .lines()
            .map_while(Result::ok)
            .any(|line| line.contains("is not a socket"))
    );
    assert_eq!(program.0.wait().unwrap().code(), Some(1));
    assert_eq!(std::fs::read(file).unwrap(), b"data");
}
