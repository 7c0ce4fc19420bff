//! The power button: without it a request to shut down from outside goes unheard.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

/// Where the kernel lists input devices.
const SYSFS: &str = "/sys/class/input";

/// Bytes of an event of the input subsystem on a 64-bit machine.
const EVENT: usize = 24;

const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const PRESSED: i32 = 1;

/// Run `action` whenever a power button of this machine is pressed. Machines without one are fine.
pub fn obey(action: &Path) -> io::Result<()> {
    for device in buttons(Path::new(SYSFS))? {
        let action = action.to_path_buf();
        thread::Builder::new()
            .name("power".into())
            .stack_size(128 * 1024)
            .spawn(move || {
                if let Err(error) = watch(&device, &action) {
                    eprintln!("netyard-agent: power button {}: {error}", device.display());
                }
            })?;
    }
    Ok(())
}

fn watch(device: &Path, action: &Path) -> io::Result<()> {
    let mut device = File::open(device)?;
    let mut events = [0; EVENT * 16];
    loop {
        let n = device.read(&mut events)?;
        if events[..n].chunks_exact(EVENT).any(is_power_press) {
            // A failed attempt is no reason not to hear the next.
            if let Err(error) = Command::new(action).status() {
                eprintln!("netyard-agent: cannot run {}: {error}", action.display());
            }
        }
    }
}

fn is_power_press(event: &[u8]) -> bool {
    let mut fields = event.iter().skip(16).copied();
    let mut byte = || fields.next().unwrap_or(0);
    let kind = u16::from_ne_bytes([byte(), byte()]);
    let code = u16::from_ne_bytes([byte(), byte()]);
    let value = i32::from_ne_bytes([byte(), byte(), byte(), byte()]);
    (kind, code, value) == (EV_KEY, KEY_POWER, PRESSED)
}

fn buttons(sysfs: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(sysfs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let node = entry.file_name();
        let is_event = node.to_string_lossy().starts_with("event");
        let name = fs::read_to_string(entry.path().join("device/name")).unwrap_or_default();
        if is_event && name.trim_end() == "Power Button" {
            found.push(Path::new("/dev/input").join(node));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut bytes = vec![9; 16];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(code.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_press_counts_and_a_release_does_not() {
        assert!(is_power_press(&event(EV_KEY, KEY_POWER, 1)));
        assert!(!is_power_press(&event(EV_KEY, KEY_POWER, 0)));
        assert!(!is_power_press(&event(EV_KEY, 30, 1)));
        assert!(!is_power_press(&event(0, 0, 0)));
    }

    #[test]
    fn power_buttons_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for (node, name) in [
            ("event0", "AT Translated Set 2 keyboard\n"),
            ("event1", "Power Button\n"),
            ("input1", "Power Button\n"),
        ] {
            let device = dir.path().join(node).join("device");
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("name"), name).unwrap();
        }
        assert_eq!(buttons(dir.path()).unwrap(), [PathBuf::from("/dev/input/event1")]);
    }
}
