//! A port's link, set down and up while it is in use.

use crate::support::net::{BROADCAST, Net, frame, mac};
use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::wait_for;
use vswitch::config::LinkSetting;
use vswitch::model::{PortChange, PortState};

fn set(net: &Net, port: &str, link: LinkSetting) {
    let change = PortChange {
        link: Some(link),
        ..PortChange::default()
    };
    assert_eq!(net.switch.set_port(port, &change).unwrap().link, link);
}

#[test]
fn no_frame_passes_a_port_that_is_set_down_and_its_guest_sees_it() {
    let net = Net::new();
    let (mut a, mut b, mut c) = (net.guest("a"), net.guest("b"), net.guest("c"));
    let hello = frame(BROADCAST, mac(2), 1, 60);
    b.send(0, &hello);
    a.expect(&hello);
    c.expect(&hello);
    assert!(b.link_is_up());

    set(&net, "b", LinkSetting::Down);
    assert!(!b.link_is_up());
    assert_eq!(
        net.known(mac(2)),
        None,
        "what was learned of it misleads no frame"
    );
    assert_eq!(
        (net.port("b").state, net.port("b").enabled_queue_pairs),
        (PortState::Down, 1)
    );
    // Neither from it nor to it; what it sends is taken all the same.
    b.send(0, &frame(BROADCAST, mac(2), 2, 60));
    b.flush();
    wait_for("its frame to be dropped", || net.drops("b", "link-down") == 1);
    let flood = frame(mac(2), mac(1), 3, 60);
    a.send(0, &flood);
    c.expect(&flood);
    b.expect_nothing();
    a.expect_nothing();

    // A guest that comes now sees the same.
    drop(b);
    wait_for("it to be gone", || !net.port("b").connected);
    let mut b = net.connect("b", Options::default());
    assert!(!b.link_is_up());
    assert_eq!(net.port("b").state, PortState::Down);

    set(&net, "b", LinkSetting::Up);
    assert!(b.link_is_up());
    b.send(0, &hello);
    a.expect(&hello);
    let answer = frame(mac(2), mac(1), 4, 60);
    a.send(0, &answer);
    b.expect(&answer);
    assert!(net.switch.set_port("none", &PortChange::default()).is_err());
}
