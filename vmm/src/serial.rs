//! Consoles: the serial port, a 16550, and the virtio console's far side. The other end is a terminal, a file or a socket.
//!
//! The guest never waits for a reader: an end that takes nothing is given a short while, and after that its bytes are
//! dropped until it takes some again.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use input::Sink;
use rustix::event::PollFlags;
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::hv::irq::LegacyIrq;
use crate::listener::SocketError;

mod bridge;
mod ends;
mod input;
mod output;
mod panic_watch;
#[cfg(test)]
mod tests;

pub use bridge::Bridge;
pub use ends::Ends;

/// What the serial port is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SerialConfig {
    /// There is no serial port.
    Off,
    /// The terminal, or whatever standard input and output are.
    #[default]
    Stdio,
    /// A new pseudo-terminal, whose name is printed and told by the API.
    Pty,
    /// Output to a file; there is no input.
    File(PathBuf),
    /// A Unix socket that is listened on; one client at a time.
    Socket(PathBuf),
}

/// Why the serial port could not be connected.
#[derive(Debug, thiserror::Error)]
pub enum SerialError {
    /// The other end could not be opened.
    #[error("serial port or console refused: {0}: {1}; check --serial and --console")]
    End(String, #[source] io::Error),
    /// The socket was refused.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A thread or an eventfd could not be had.
    #[error("serial port or console refused by the host: {0}")]
    Host(#[from] io::Error),
}

struct Line(Arc<LegacyIrq>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.pulse();
        Ok(())
    }
}

/// Tells the input thread that the guest has taken all input.
struct Drained(Arc<EventFd>);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        let _ = self.0.write(1);
    }
}

type Uart = Serial<Line, Drained, output::Output>;

struct Shared {
    uart: Mutex<Uart>,
    line: Arc<LegacyIrq>,
    drained: Arc<EventFd>,
    output: output::Output,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Shared {
    fn room(&self) -> usize {
        self.lock().fifo_capacity()
    }

    fn put(&self, bytes: &[u8]) {
        if let Err(error) = self.lock().enqueue_raw_bytes(bytes) {
            tracing::debug!(?error, "serial input is lost");
        }
    }

    fn drained(&self) -> (BorrowedFd<'_>, PollFlags) {
        (crate::fd::borrow(&self.drained), PollFlags::IN)
    }

    fn rearm(&self) {
        let _ = self.drained.read();
    }

    fn output(&self) -> &output::Output {
        &self.output
    }
}

/// The serial port.
pub struct SerialPort {
    shared: Arc<Shared>,
    pty: Option<PathBuf>,
    panic_seen: Arc<AtomicBool>,
    stop: EventFd,
    input: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialPort")
            .field("pty", &self.pty)
            .finish_non_exhaustive()
    }
}

impl SerialPort {
    /// Makes a serial port on the interrupt `line` with the given other `ends`. `escape` is called when the user of a
    /// terminal asks to leave (Ctrl-A x).
    pub fn new(
        ends: Ends,
        line: LegacyIrq,
        escape: impl Fn() + Send + 'static,
    ) -> Result<Arc<Self>, SerialError> {
        let line = Arc::new(line);
        let drained = Arc::new(EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let stop = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let panic_seen = Arc::new(AtomicBool::new(false));
        let pty = ends.pty_name().map(ToOwned::to_owned);
        let (output, source) = ends.split(Arc::clone(&panic_seen))?;
        let uart = uart(&line, &drained, &output);
        let shared = Arc::new(Shared {
            uart: Mutex::new(uart),
            line,
            drained,
            output,
        });
        let input = match source {
            Some(source) => Some(input::spawn(
                source,
                Arc::clone(&shared),
                stop.try_clone()?,
                escape,
            )?),
            None => None,
        };
        Ok(Arc::new(Self {
            shared,
            pty,
            panic_seen,
            stop,
            input,
        }))
    }

    /// The name of the pseudo-terminal, if it is one.
    pub fn pty(&self) -> Option<&PathBuf> {
        self.pty.as_ref()
    }

    /// True if a Linux kernel has said on its console that it panicked.
    pub fn panic_seen(&self) -> bool {
        self.panic_seen.load(Ordering::Acquire)
    }

    /// Back to the state after power-on; the other end stays connected.
    pub fn reset(&self) {
        *self.shared.lock() = uart(&self.shared.line, &self.shared.drained, &self.shared.output);
        self.panic_seen.store(false, Ordering::Release);
        let _ = self.shared.drained.write(1);
    }
}

fn uart(line: &Arc<LegacyIrq>, drained: &Arc<EventFd>, output: &output::Output) -> Uart {
    Serial::with_events(
        Line(Arc::clone(line)),
        Drained(Arc::clone(drained)),
        output.clone(),
    )
}

impl BusDevice for SerialPort {
    fn read(&self, _base: u64, offset: u64, data: &mut [u8]) {
        // The registers are a byte wide each; a wider read gets one, and ones for the rest.
        data[0] = self.shared.lock().read(u8::try_from(offset).unwrap_or(u8::MAX));
    }

    fn write(&self, _base: u64, offset: u64, data: &[u8]) {
        if let Err(error) = self
            .shared
            .lock()
            .write(u8::try_from(offset).unwrap_or(u8::MAX), data[0])
        {
            tracing::debug!(?error, "serial port");
        }
    }
}

impl Drop for SerialPort {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(input) = self.input.take() {
            let _ = input.join();
        }
    }
}
