use virtio::features as f;

use super::queue::{TUN_F_USO4, TUN_F_USO6, offload_flags};
use super::*;

#[test]
fn names_that_no_interface_has_are_refused() {
    for name in ["", "a/b", "tap%d", "a b", "sixteen-letters-", ".", ".."] {
        assert!(matches!(Tap::open(name, 1), Err(TapError::Name(_))), "{name:?}");
    }
    assert!(matches!(Tap::open("tap0", 0), Err(TapError::Queues(0))));
}

#[test]
fn a_descriptor_that_is_no_tap_is_refused() {
    let file = std::fs::File::open("/dev/null").unwrap();
    let fd = std::os::fd::IntoRawFd::into_raw_fd(file);
    assert!(matches!(
        Tap::from_raw_fds(&[fd]),
        Err(TapError::Descriptor { .. })
    ));
    assert!(matches!(
        Tap::from_raw_fds(&[9999]),
        Err(TapError::Descriptor { fd: 9999, .. })
    ));
    assert!(matches!(
        Tap::from_raw_fds(&[1]),
        Err(TapError::Descriptor { fd: 1, .. })
    ));
}

#[test]
fn offloads_follow_what_the_driver_acknowledged() {
    assert_eq!(offload_flags(0), 0);
    assert_eq!(offload_flags(f::NET_F_GUEST_TSO4), 0);
    assert_eq!(
        offload_flags(f::NET_F_GUEST_CSUM | f::NET_F_GUEST_ECN),
        libc::TUN_F_CSUM
    );
    let all = f::NET_F_GUEST_CSUM | f::NET_F_GUEST_TSO4 | f::NET_F_GUEST_TSO6 | f::NET_F_GUEST_ECN;
    let flags = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    assert_eq!(offload_flags(all), flags);
    // Half of UDP's would be refused.
    assert_eq!(offload_flags(all | f::NET_F_GUEST_USO4), flags);
    assert_eq!(
        offload_flags(all | f::NET_F_GUEST_USO4 | f::NET_F_GUEST_USO6),
        flags | TUN_F_USO4 | TUN_F_USO6
    );
}
