//! Messages of the control queues (VIRTIO 1.3, section 5.3.6.2).

/// Length of a message without a name.
pub(super) const LEN: usize = 8;

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The driver is ready for ports.
    DeviceReady,
    /// There is a port.
    DeviceAdd,
    /// The driver has set a port up.
    PortReady,
    /// The port is a console.
    ConsolePort,
    /// One end of the port was opened or closed.
    PortOpen,
    /// The name of the port follows.
    PortName,
}

const EVENTS: [(u16, Event); 6] = [
    (0, Event::DeviceReady),
    (1, Event::DeviceAdd),
    (3, Event::PortReady),
    (4, Event::ConsolePort),
    (6, Event::PortOpen),
    (7, Event::PortName),
];

/// A message about one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) port: u32,
    pub(super) event: Event,
    pub(super) value: bool,
}

impl Message {
    /// `None` if it is none that we know.
    pub(super) fn decode(bytes: [u8; LEN]) -> Option<Self> {
        let [port @ .., event_low, event_high, value_low, value_high] = bytes;
        let code = u16::from_le_bytes([event_low, event_high]);
        let (_, event) = EVENTS.into_iter().find(|(known, _)| *known == code)?;
        let value = [value_low, value_high] != [0, 0];
        Some(Self {
            port: u32::from_le_bytes(port),
            event,
            value,
        })
    }

    pub(super) fn encode(self) -> [u8; LEN] {
        let code = EVENTS
            .iter()
            .find(|(_, event)| *event == self.event)
            .map_or(0, |(code, _)| *code);
        let mut bytes = [0; LEN];
        bytes[..4].copy_from_slice(&self.port.to_le_bytes());
        bytes[4..6].copy_from_slice(&code.to_le_bytes());
        bytes[6] = u8::from(self.value);
        bytes
    }
}
