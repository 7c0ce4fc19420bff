//! The `vmm` command from outside: exit codes, signals, the console on standard output. Needs `/dev/kvm`, but no
//! virtualization hardware; without `/dev/kvm` the guests have nothing to test and say so.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A kernel of a few instructions in the shape of a bzImage.
fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0u8; 1024];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    image[0x236] = 1;
    image[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&0x10_0000_u64.to_le_bytes());
    image.extend([0; 0x200]);
    image.extend(code);
    image
}

/// `mov dx, port; mov al, value; out dx, al`.
fn out(port: u16, value: u8) -> Vec<u8> {
    [&[0x66, 0xba][..], &port.to_le_bytes(), &[0xb0, value, 0xee]].concat()
}

/// `hlt; jmp -3`.
const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];

fn start(folder: &Path, code: &[u8], more: &[&str]) -> Option<Child> {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("nothing tested: no /dev/kvm");
        return None;
    }
    let kernel = folder.join("kernel");
    std::fs::write(&kernel, bzimage(code)).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_vmm"))
        .args(["run", "--memory", "32M", "--kernel"])
        .arg(&kernel)
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Some(child)
}

fn signal(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

fn code(mut child: Child) -> (Option<i32>, String) {
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    (child.wait().unwrap().code(), errors)
}

#[test]
fn every_end_has_its_code() {
    let folder = tempfile::tempdir().unwrap();
    let power_off = [out(0x600, 0x34), HALT.to_vec()].concat();
    let panic = [out(0x505, 1), HALT.to_vec()].concat();
    for (program, wanted) in [(power_off, 0), (panic, 10)] {
        let Some(child) = start(folder.path(), &program, &[]) else {
            return;
        };
        let (code, errors) = code(child);
        assert_eq!(code, Some(wanted), "{errors}");
    }
}

#[test]
fn the_first_signal_asks_and_the_second_one_stops() {
    let folder = tempfile::tempdir().unwrap();
    // Prints a line, waits for the power button, prints another line, and does not power off.
    let await_button = [0x66, 0xba, 0x04, 0x06, 0xec, 0xa8, 1, 0x74, 0xfb];
    let print = |text: &str| text.bytes().flat_map(|b| out(0x3f8, b)).collect::<Vec<u8>>();
    let program = [
        print("up\n"),
        await_button.to_vec(),
        print("asked\n"),
        HALT.to_vec(),
    ]
    .concat();
    let Some(mut child) = start(folder.path(), &program, &[]) else {
        return;
    };
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    signal(&child);
    assert_eq!(lines.next().unwrap().unwrap(), "asked");
    signal(&child);
    let (code, errors) = code(child);
    assert_eq!(code, Some(11), "{errors}");
}

#[test]
fn a_fault_names_the_place() {
    let folder = tempfile::tempdir().unwrap();
    // mov eax, 0xd0000000; jmp rax: nothing to fetch from.
    let program = [0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0];
    let Some(child) = start(folder.path(), &program, &["--no-reboot"]) else {
        return;
    };
    let (code, errors) = code(child);
    match code {
        Some(12) => assert!(errors.contains("RIP 0xd0000000"), "{errors}"),
        // Some KVMs give the guest an exception, and without a handler it resets.
        other => assert_eq!(other, Some(0), "{errors}"),
    }
}

#[test]
fn wrong_usage_and_missing_files_are_told_apart() {
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_vmm"))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, errors) = run(&["run", "--kernel", "/x", "--cpus", "0"]);
    assert_eq!(code, Some(2), "{errors}");
    for contradiction in [
        ["--serial", "stdio", "--console", "stdio"],
        ["--memory", "32M", "--numa", "cpus=0,memory=16M"],
    ] {
        let (code, errors) = run(&[&["run", "--kernel", "/x"][..], &contradiction].concat());
        assert_eq!(code, Some(2), "{errors}");
        assert!(
            errors.contains("refused") && errors.lines().count() == 1,
            "{errors}"
        );
    }
    let (code, errors) = run(&["run", "--kernel", "/nonexistent/vmlinuz"]);
    assert_eq!(code, Some(1));
    assert!(
        errors.contains("/nonexistent/vmlinuz") && errors.lines().count() == 1,
        "{errors}"
    );
}
