use super::*;

fn board() -> (Bus, Arc<Mutex<Vec<GuestAction>>>, Arc<ActionSink>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = ActionSink::new({
        let seen = Arc::clone(&seen);
        move |action| seen.lock().unwrap().push(action)
    });
    let pio = Bus::new();
    let keyboard = Arc::new(Keyboard(Mutex::new(I8042Device::new(ResetLine {
        sink: Arc::clone(&sink),
    }))));
    pio.insert(0x64..0x65, keyboard).unwrap();
    pio.insert(ports(PANIC_PORT, 1), Arc::new(PanicPort(Arc::clone(&sink))))
        .unwrap();
    (pio, seen, sink)
}

#[test]
fn keyboard_reset_command_resets() {
    let (pio, seen, _) = board();
    pio.write(0x64, &[0x20]);
    assert!(seen.lock().unwrap().is_empty());
    pio.write(0x64, &[0xfe]);
    assert_eq!(*seen.lock().unwrap(), [GuestAction::Reset]);
}

#[test]
fn a_flood_of_actions_is_one_action_until_the_next_life() {
    let (pio, seen, sink) = board();
    for _ in 0..1000 {
        pio.write(u64::from(PANIC_PORT), &[1]);
        pio.write(0x64, &[0xfe]);
    }
    assert_eq!(*seen.lock().unwrap(), [GuestAction::Panic]);
    sink.reset();
    pio.write(0x64, &[0xfe]);
    assert_eq!(*seen.lock().unwrap(), [GuestAction::Panic, GuestAction::Reset]);
}

#[test]
fn a_crash_kernel_is_no_end() {
    let (pio, seen, _) = board();
    pio.write(u64::from(PANIC_PORT), &[2]);
    assert!(seen.lock().unwrap().is_empty());
    let mut supported = [0];
    pio.read(u64::from(PANIC_PORT), &mut supported);
    assert_eq!(supported, [3]);
}
