//! The channels of this machine: virtio-serial ports by name.
//!
//! There is no udev here. Ports are found in sysfs, and the kernel tells of new ones on its uevent socket.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::event::epoll;
use rustix::fs::{Mode, OFlags};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use crate::message::CHANNEL_PREFIX;
use crate::serve::{Launcher, serve};

/// Commands need little from the thread that waits for them.
const STACK: usize = 256 * 1024;

/// Where the kernel lists virtio-serial ports.
const SYSFS: &str = "/sys/class/virtio-ports";

/// Looks for channels and serves each on a thread of its own.
#[derive(Debug)]
pub struct Ports {
    launcher: Launcher,
    served: Arc<Mutex<HashSet<String>>>,
    uevents: OwnedFd,
}

impl Ports {
    /// Listen for ports; none is served before [`Ports::serve_present`].
    pub fn listen(launcher: Launcher) -> io::Result<Self> {
        let uevents = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(KOBJECT_UEVENT),
        )?;
        rustix::net::bind(&uevents, &SocketAddrNetlink::new(0, 1))?;
        Ok(Self {
            launcher,
            served: Arc::default(),
            uevents,
        })
    }

    /// Serve every channel there is now that is not served yet.
    pub fn serve_present(&self) -> io::Result<()> {
        for (device, path) in present(Path::new(SYSFS))? {
            let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
            if !served.insert(device.clone()) {
                continue;
            }
            drop(served);
            let launcher = self.launcher.clone();
            let served = Arc::clone(&self.served);
            thread::Builder::new()
                .name(device.clone())
                .stack_size(STACK)
                .spawn(move || {
                    if let Err(error) = serve_port(&path, &launcher) {
                        eprintln!("netyard-agent: {}: {error}", path.display());
                    }
                    served
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .remove(&device);
                })?;
        }
        Ok(())
    }

    /// Wait until the kernel reports a change that may have brought a port.
    pub fn wait(&self) -> io::Result<()> {
        let mut buffer = [0; 8192];
        loop {
            match rustix::net::recv(&self.uevents, &mut buffer[..], RecvFlags::empty()) {
                Ok((n, _)) if names_port(&buffer[..n]) => return Ok(()),
                // Overrun: reports were lost, so look.
                Err(rustix::io::Errno::NOBUFS) => return Ok(()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn names_port(uevent: &[u8]) -> bool {
    uevent
        .split(|&byte| byte == 0)
        .any(|variable| variable == b"SUBSYSTEM=virtio-ports")
}

/// The channels listed in `sysfs` as (device, path of its node).
fn present(sysfs: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(sysfs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        // A port without a name has no such file until the outside has told it.
        let Ok(name) = fs::read_to_string(entry.path().join("name")) else {
            continue;
        };
        if name.trim_end().starts_with(CHANNEL_PREFIX) {
            let device = entry.file_name().to_string_lossy().into_owned();
            let path = Path::new("/dev").join(&device);
            found.push((device, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Serve one port until it is unplugged.
fn serve_port(path: &Path, launcher: &Launcher) -> io::Result<()> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let port = rustix::fs::open(path, flags, Mode::empty())?;
    // Edge-triggered: "nobody connected" is reported once, not all the time.
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(
        &epoll,
        &port,
        epoll::EventData::new_u64(0),
        epoll::EventFlags::IN | epoll::EventFlags::ET,
    )?;
    loop {
        if path.exists() {
            serve(&port, launcher)?;
        } else {
            return Ok(());
        }
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 1];
        // An edge between the end of the session and this call is remembered; unplugging is one, too.
        match epoll::wait(&epoll, &mut events[..], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_channels_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        for (device, name) in [
            ("vport1p1", Some("netyard.agent.0\n")),
            ("vport1p2", Some("org.qemu.guest_agent.0\n")),
            ("vport0p0", None),
        ] {
            let folder = dir.path().join(device);
            fs::create_dir(&folder).unwrap();
            if let Some(name) = name {
                fs::write(folder.join("name"), name).unwrap();
            }
        }
        assert_eq!(
            present(dir.path()).unwrap(),
            [("vport1p1".to_owned(), PathBuf::from("/dev/vport1p1"))]
        );
        assert_eq!(present(&dir.path().join("none")).unwrap(), []);
    }

    #[test]
    fn uevents_of_ports_are_told_from_others() {
        assert!(names_port(
            b"add@/devices/x\0ACTION=add\0SUBSYSTEM=virtio-ports\0"
        ));
        assert!(!names_port(b"add@/devices/x\0ACTION=add\0SUBSYSTEM=net\0"));
    }
}
