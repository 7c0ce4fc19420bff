//! The emulated host: boots, runs programs of the outer machine inside, has `/dev/kvm`, leaves nothing behind.

use std::fs;
use std::time::{Duration, Instant};

use topologies::agent::{Control, Exec, Input, Stdio};
use topologies::emulated::{
    CHANNELS, DEFAULT_MEMORY_MIB, Host, HostError, Record, Status, command_like_here,
};
use topologies::initramfs::cache::Cache;

fn say(line: &str) {
    eprintln!("{line}");
}

async fn shell(host: &Host, script: &str) -> String {
    let output = host.output(&["sh", "-c", script]).await.unwrap();
    assert_eq!(
        output.code,
        0,
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// An emulated host with a run folder of its own that a failed test does not leave running.
struct Fresh {
    run: tempfile::TempDir,
    host: Host,
}

impl Fresh {
    fn new() -> Self {
        let run = tempfile::tempdir().unwrap();
        let host = Host::in_folder(run.path().join("emulated-host"));
        Self { run, host }
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let record = fs::read(self.run.path().join("emulated-host/host.json")).unwrap_or_default();
        if let Ok(record) = serde_json::from_slice::<Record>(&record) {
            record.process.signal(rustix::process::Signal::KILL);
        }
    }
}

#[tokio::test]
async fn e2e_the_emulated_host_runs_the_outer_machines_programs_with_kvm() {
    let fresh = Fresh::new();
    let (run, host) = (&fresh.run, &fresh.host);
    assert_eq!(host.status().await, Status::Down);
    assert!(matches!(host.connect().await, Err(HostError::Down)));

    // Two at once boot one.
    let cache = Cache::of_user();
    let (first, second) = tokio::join!(
        host.up(DEFAULT_MEMORY_MIB, &cache, &say),
        host.up(DEFAULT_MEMORY_MIB, &cache, &say)
    );
    let record = first.unwrap();
    assert_eq!(second.unwrap(), record);
    assert_eq!(host.status().await, Status::Up(record.clone()));

    assert_eq!(
        shell(host, "test -c /dev/kvm && grep -c svm /proc/cpuinfo").await,
        "1\n"
    );
    assert_eq!(
        shell(host, "id -u; uname -r").await,
        format!("0\n{}\n", record.kernel)
    );
    // A program of the outer machine, and the modules of the inner kernel.
    shell(
        host,
        "ip link add br9 type bridge && ip link show br9 && ip link del br9",
    )
    .await;

    // The outer files are there, changes stay inside.
    let marker = std::path::absolute("marker-of-the-emulated-host-test").unwrap();
    fs::write(&marker, "outside").unwrap();
    let path = marker.display();
    assert_eq!(shell(host, &format!("cat {path}")).await, "outside");
    shell(
        host,
        &format!("echo inside > {path}; test $(cat {path}) = inside"),
    )
    .await;
    assert_eq!(fs::read_to_string(&marker).unwrap(), "outside");
    assert_eq!(shell(host, &format!("cat /run/outer{path}")).await, "outside");
    fs::remove_file(&marker).unwrap();

    // A file replaced outside is seen anew.
    let changing = std::path::absolute("changing-file-of-the-emulated-host-test").unwrap();
    for contents in (1..12).map(|i| "x".repeat(i)) {
        let new = changing.with_extension("new");
        fs::write(&new, &contents).unwrap();
        fs::rename(&new, &changing).unwrap();
        assert_eq!(
            shell(host, &format!("cat {}", changing.display())).await,
            contents
        );
    }
    fs::remove_file(&changing).unwrap();

    // As many commands as there are channels, at once, and the working directory is the same.
    let mut tasks = Vec::new();
    for i in 0..CHANNELS {
        let host = host.clone();
        tasks.push(tokio::spawn(async move {
            let mut agent = host.connect().await.unwrap();
            let exec = command_like_here(
                ["sh", "-c", "pwd; echo $0", &i.to_string()]
                    .map(Into::into)
                    .into(),
            );
            agent.output(&exec, Input::Empty).await.unwrap()
        }));
    }
    let here = std::env::current_dir().unwrap();
    for (i, task) in tasks.into_iter().enumerate() {
        let output = task.await.unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            format!("{}\n{i}\n", here.display())
        );
    }

    // A client that leaves takes its command along.
    let mut agent = host.connect().await.unwrap();
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(Control::HangUp).await.unwrap();
    let stdio = Stdio {
        stdin: Input::Empty,
        stdout: &mut std::io::sink(),
        stderr: &mut std::io::sink(),
        control: Some(receiver),
    };
    let sleep = Exec {
        argv: ["sleep", "54321"].map(Into::into).into(),
        ..Exec::default()
    };
    agent.run(&sleep, stdio).await.unwrap_err();
    drop(agent);
    shell(host, "while pgrep -x sleep; do :; done").await;

    assert!(host.down(&say).await.unwrap());
    assert_eq!(host.status().await, Status::Down);
    assert!(!record.process.is_alive());
    assert!(!host.down(&say).await.unwrap());
    let left: Vec<_> = fs::read_dir(run.path().join("emulated-host"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("sock") || name.contains("json"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn e2e_a_killed_emulated_host_is_noticed_and_booted_again() {
    let fresh = Fresh::new();
    let host = &fresh.host;
    let cache = Cache::of_user();
    let first = host.up(1024, &cache, &say).await.unwrap();
    first.process.end(Duration::ZERO).await.unwrap();
    assert_eq!(host.status().await, Status::Down);
    let again = Instant::now();
    let second = host.up(1024, &cache, &say).await.unwrap();
    eprintln!("booted in {:?}", again.elapsed());
    assert_ne!(first.process, second.process);
    assert_eq!(shell(host, "echo up").await, "up\n");
    assert!(host.down(&say).await.unwrap());
}
