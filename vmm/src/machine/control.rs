//! How others speak to a running machine: signals, the API, the devices of the guest.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::vcpus::VcpuEvent;
use crate::board::power::GuestAction;

/// Messages that may wait. The guest and each vCPU have one at most; the rest are people.
const DEPTH: usize = 512;
/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a person or a program wants of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Ask the guest to power off.
    Shutdown,
    /// Stop at once.
    PowerOff,
    /// Reset the guest.
    Reset,
    /// Take the vCPUs out of the guest, and keep devices away from its memory.
    Pause,
    /// Let both run on.
    Resume,
}

/// Why a command was refused.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The machine has ended.
    #[error("the VM has ended; start it again with `vmm run`")]
    Ended,
    /// Too many commands wait.
    #[error("too many commands wait; try again")]
    Busy,
    /// It took too long.
    #[error("the VM did not answer within 30 s; look at its log")]
    Timeout,
    /// The machine could not do it.
    #[error("{0}")]
    Failed(String),
}

/// A message to the machine.
#[derive(Debug)]
pub(super) enum Message {
    Guest(GuestAction),
    Vcpu(VcpuEvent),
    Command(Command, Option<SyncSender<Result<(), String>>>),
}

/// What the machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Getting ready.
    Starting,
    /// The vCPUs run.
    Running,
    /// The vCPUs are held, and no device uses the guest's memory.
    Paused,
    /// It has ended or is about to.
    Ended,
}

/// What others see of the machine.
#[derive(Debug)]
pub(super) struct Status {
    pub(super) state: State,
    pub(super) resets: u64,
}

/// A handle on a running machine. Clones are handles on the same one.
#[derive(Debug, Clone)]
pub struct Control {
    sender: SyncSender<Message>,
    status: Arc<Mutex<Status>>,
}

impl Control {
    /// A handle, and the end that the machine keeps.
    pub(super) fn new() -> (Self, Receiver<Message>) {
        let (sender, receiver) = sync_channel(DEPTH);
        let status = Arc::new(Mutex::new(Status {
            state: State::Starting,
            resets: 0,
        }));
        (Self { sender, status }, receiver)
    }

    /// Does `command` and waits for it to be done.
    pub fn command(&self, command: Command) -> Result<(), CommandError> {
        let (done, result) = sync_channel(1);
        self.sender
            .try_send(Message::Command(command, Some(done)))
            .map_err(|e| match e {
                TrySendError::Full(_) => CommandError::Busy,
                TrySendError::Disconnected(_) => CommandError::Ended,
            })?;
        match result.recv_timeout(PATIENCE) {
            Ok(result) => result.map_err(CommandError::Failed),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Err(CommandError::Timeout),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Err(CommandError::Ended),
        }
    }

    /// Asks for `command` and goes on.
    pub fn request(&self, command: Command) {
        self.tell(Message::Command(command, None));
    }

    /// What the machine is doing.
    pub fn state(&self) -> State {
        self.status().state
    }

    /// How often the guest was reset.
    pub fn resets(&self) -> u64 {
        self.status().resets
    }

    pub(super) fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tell(&self, message: Message) {
        // If it is full, hundreds of people want something at the same moment; if it is gone, nobody cares.
        if let Err(error) = self.sender.try_send(message) {
            tracing::warn!(%error, "a message to the VM is lost");
        }
    }
}
