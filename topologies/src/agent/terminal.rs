//! Run a command on this process's own standard streams, as `ssh` would.

use std::io::{self, IsTerminal as _, Read as _};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{Agent, AgentError, Control, Exec, Input, Size, Stdio};

/// After so many interrupts that the command outlives, the connection is given up.
const PATIENCE: u32 = 3;

/// Run `exec` on this process's standard streams and return its exit code. With `tty` the command gets a terminal, and the local
/// one, if there is one, is in raw mode meanwhile. Signals are passed on.
pub async fn run_here(agent: &mut Agent, exec: &Exec, tty: bool) -> Result<i32, AgentError> {
    let mut exec = exec.clone();
    let mut raw = None;
    if tty {
        let size = local_size().unwrap_or(Size { rows: 24, cols: 80 });
        exec.tty = Some(size);
        if let Ok(term) = std::env::var("TERM")
            && exec.env.iter().all(|(name, _)| name != "TERM")
        {
            exec.env.push(("TERM".into(), term));
        }
        if io::stdin().is_terminal() {
            raw = Some(RawMode::enter().map_err(AgentError::Terminal)?);
        }
    }
    let stdio = Stdio {
        stdin: Input::Stream(read_stdin()),
        stdout: &mut io::stdout(),
        stderr: &mut io::stderr(),
        control: Some(watch_signals(tty).map_err(AgentError::Terminal)?),
    };
    let result = agent.run(&exec, stdio).await;
    drop(raw);
    result
}

fn local_size() -> Option<Size> {
    let size = tcgetwinsize(rustix::stdio::stdout())
        .or_else(|_| tcgetwinsize(rustix::stdio::stdin()))
        .ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(Size {
        rows: size.ws_row,
        cols: size.ws_col,
    })
}

/// Standard input, read on a thread of its own that a program's end does not wait for.
pub(crate) fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => {
                    if sender.blocking_send(buffer[..n].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}

fn watch_signals(tty: bool) -> io::Result<mpsc::Receiver<Control>> {
    let (sender, receiver) = mpsc::channel(8);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut resize = signal(SignalKind::window_change())?;
    tokio::spawn(async move {
        let mut asked = 0;
        loop {
            let control = tokio::select! {
                _ = interrupt.recv() => Control::Signal(2),
                _ = terminate.recv() => Control::Signal(15),
                _ = hangup.recv() => Control::HangUp,
                _ = resize.recv() => match local_size() {
                    Some(size) if tty => Control::Resize(size),
                    _ => continue,
                },
                () = sender.closed() => return,
            };
            asked += u32::from(matches!(control, Control::Signal(_)));
            let control = if asked > PATIENCE {
                Control::HangUp
            } else {
                control
            };
            if sender.send(control).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// The local terminal in raw mode, until dropped.
#[derive(Debug)]
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    pub(crate) fn enter() -> io::Result<Self> {
        let before = tcgetattr(rustix::stdio::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Without a terminal there is nothing to restore.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, &self.before);
    }
}
