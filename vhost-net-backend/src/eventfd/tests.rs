use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

fn eventfd(flags: EventfdFlags) -> (File, OwnedFd) {
    let fd = rustix::event::eventfd(0, flags).unwrap();
    (File::from(fd.try_clone().unwrap()), fd)
}

fn count(fd: &OwnedFd) -> Option<u64> {
    let flags = rustix::fs::fcntl_getfl(fd).unwrap();
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK).unwrap();
    let mut value = [0u8; 8];
    rustix::io::read(fd, &mut value)
        .ok()
        .map(|_| u64::from_ne_bytes(value))
}

#[test]
fn anything_but_an_eventfd_is_refused() {
    let (pipe, _writer) = rustix::pipe::pipe().unwrap();
    let file = File::open("/proc/self/stat").unwrap();
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
    for fd in [OwnedFd::from(file), pipe, epoll] {
        assert!(matches!(
            Kick::new(File::from(fd)),
            Err(EventFdError::NotAnEventFd(_))
        ));
    }
}

#[test]
fn a_call_adds_one_each_time() {
    let (file, peer) = eventfd(EventfdFlags::empty());
    let call = Call::new(file).unwrap();
    call.signal();
    call.signal();
    assert_eq!(count(&peer), Some(2));
}

#[test]
fn a_full_counter_that_blocks_does_not_hold_the_caller() {
    let (file, peer) = eventfd(EventfdFlags::empty());
    let call = Call::new(file).unwrap();
    rustix::io::write(&peer, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let flags = rustix::fs::fcntl_getfl(&peer).unwrap();
    rustix::fs::fcntl_setfl(&peer, flags - OFlags::NONBLOCK).unwrap();
    call.signal();
    assert!(count(&peer) >= Some(u64::MAX - 1));
}

#[test]
fn draining_an_empty_kick_that_blocks_does_not_hold_the_caller() {
    let (file, peer) = eventfd(EventfdFlags::empty());
    let kick = Kick::new(file).unwrap();
    let flags = rustix::fs::fcntl_getfl(&peer).unwrap();
    rustix::fs::fcntl_setfl(&peer, flags - OFlags::NONBLOCK).unwrap();
    kick.drain();
    rustix::io::write(&peer, &5u64.to_ne_bytes()).unwrap();
    kick.drain();
    assert_eq!(count(&peer), None);
}

#[test]
fn the_way_without_asynchronous_operations_works_too() {
    let (file, peer) = eventfd(EventfdFlags::empty());
    let call = Call::new(file).unwrap();
    call.write();
    assert_eq!(count(&peer), Some(1));
    rustix::io::write(&peer, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    call.write();
    assert_eq!(count(&peer), Some(u64::MAX - 1));
}

#[test]
fn a_peer_that_fills_and_empties_the_counter_all_the_time_holds_nobody() {
    let (file, peer) = eventfd(EventfdFlags::empty());
    let call = Call::new(file).unwrap();
    let flags = rustix::fs::fcntl_getfl(&peer).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Whatever is missing to the top, then to the bottom again: reads and writes that cannot sleep.
                rustix::fs::fcntl_setfl(&peer, flags | OFlags::NONBLOCK).unwrap();
                let _ = rustix::io::read(&peer, &mut [0u8; 8]);
                let _ = rustix::io::write(&peer, &(u64::MAX - 2).to_ne_bytes());
                let _ = rustix::io::write(&peer, &1u64.to_ne_bytes());
                rustix::fs::fcntl_setfl(&peer, flags - OFlags::NONBLOCK).unwrap();
            }
        });
        for _ in 0..200_000 {
            call.signal();
        }
        stop.store(true, Ordering::Relaxed);
    });
}
