//! Whole machines with tiny kernels: a few instructions in the shape of a bzImage or an ELF file. They need `/dev/kvm`,
//! but no virtualization hardware; where there is no `/dev/kvm`, they have nothing to test and say so.

use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::*;
use crate::memory::RamConfig;
use crate::serial::SerialConfig;

mod api;
mod images;
mod lives;

const LIMIT: Duration = Duration::from_secs(30);

/// A machine whose serial port writes to a file, running on a thread.
struct Running {
    folder: tempfile::TempDir,
    control: Control,
    info: InfoSource,
    passthrough: Arc<Passthrough>,
    thread: JoinHandle<Result<Ending, MachineError>>,
}

fn config(folder: &Path, image: &[u8]) -> VmConfig {
    let kernel = folder.join("kernel");
    std::fs::write(&kernel, image).unwrap();
    VmConfig {
        name: "tiny".to_owned(),
        kernel,
        initrd: None,
        cmdline: "console=ttyS0".to_owned(),
        cpus: 1,
        ram: RamConfig {
            size: 32 << 20,
            hugepages: false,
        },
        nodes: Vec::new(),
        nets: Vec::new(),
        disks: Vec::new(),
        devices: Vec::new(),
        channels: Vec::new(),
        serial: SerialConfig::File(folder.join("serial")),
        serial_log: None,
        console: SerialConfig::Off,
        console_log: None,
        reboot: true,
    }
}

/// Starts a machine; `None` without KVM.
fn start(image: &[u8], change: impl FnOnce(&mut VmConfig)) -> Option<Running> {
    if let Err(error) = Vm::new() {
        eprintln!("nothing tested: {error}");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), image);
    change(&mut config);
    let machine = Machine::new(&config).unwrap();
    let control = machine.control().clone();
    let info = machine.info_source(&config);
    let passthrough = Arc::clone(machine.passthrough());
    let thread = std::thread::spawn(move || machine.run());
    Some(Running {
        folder,
        control,
        info,
        passthrough,
        thread,
    })
}

impl Running {
    fn output(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("serial")).unwrap()
    }

    #[track_caller]
    fn wait_for(&self, wanted: &str) {
        self.wait(wanted, |running| running.output() == wanted);
    }

    #[track_caller]
    fn wait(&self, what: &str, ready: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !ready(self) {
            assert!(
                Instant::now() < deadline,
                "no {what:?}; the guest wrote {:?}",
                self.output()
            );
            std::thread::yield_now();
        }
    }

    fn end(self) -> Ending {
        self.end_keeping_files().0
    }

    fn end_keeping_files(self) -> (Ending, tempfile::TempDir) {
        let deadline = Instant::now() + LIMIT;
        while !self.thread.is_finished() {
            assert!(Instant::now() < deadline, "the machine does not end");
            std::thread::yield_now();
        }
        (self.thread.join().unwrap().unwrap(), self.folder)
    }
}
