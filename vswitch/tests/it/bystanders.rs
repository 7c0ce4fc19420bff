//! What one port's guest does, or has done to it, is not felt on others: their flow loses nothing meanwhile.

use crate::support::net::{Net, frame, mac};
use crate::support::pair::Pair;
use netyard_testkit::endpoint::{Options, region_info};
use netyard_testkit::guest::{Guest, wait_for};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use virtio::memory::SharedMemory;

/// Times that something is done to a neighbour.
const ROUNDS: u8 = 25;

fn bystanders(net: &Net) -> Pair {
    let mut pair = Pair::new(net.guest("from"), net.guest("to"));
    pair.meet();
    pair.run(100);
    pair
}

fn unharmed(net: &Net, pair: &mut Pair) {
    pair.run(1000);
    for name in ["from", "to"] {
        assert_eq!(
            net.total_drops(name),
            0,
            "{name}: {:?}",
            net.port(name).counters.drops
        );
    }
}

#[test]
fn a_receiver_that_is_full_stopped_or_disabled_costs_its_own_frames_only() {
    let net = Net::new();
    let mut pair = bystanders(&net);
    let mut sender = net.guest("sender");
    let no_buffers = Options {
        post: false,
        ..Options::default()
    };
    let mut full = net.guest_with("full", no_buffers);
    let (mut stopped, mut disabled) = (net.guest("stopped"), net.guest("disabled"));
    for (guest, number) in [(&mut full, 11), (&mut stopped, 12), (&mut disabled, 13)] {
        guest.send(0, &frame(mac(10), mac(number), 1, 60));
        guest.flush();
    }
    wait_for("all addresses", || {
        (11..=13).all(|number| net.known(mac(number)).is_some())
    });
    // Known by an entry that stays, whatever becomes of the rings.
    stopped.frontend.get_vring_base(0).unwrap();
    disabled.frontend.set_vring_enable(0, false).unwrap();
    // Messages are handled in order: with this answer the ring is disabled.
    disabled.frontend.get_features().unwrap();
    for number in [12, 13] {
        let port = if number == 12 { "stopped" } else { "disabled" };
        let entry = vswitch::model::NewFdbEntry {
            mac: mac(number),
            vlan: 0,
            port: port.into(),
        };
        net.switch.add_fdb(&entry).unwrap();
    }
    let sent = 40 * u64::from(ROUNDS);
    let flooded = net.drops("full", "no-buffer");
    for _ in 0..ROUNDS {
        for number in 11..=13 {
            for _ in 0..40 {
                sender.send(0, &frame(mac(number), mac(10), 1, 60));
                pair.step();
            }
        }
    }
    sender.flush();
    unharmed(&net, &mut pair);
    wait_for("every frame to be accounted for", || {
        net.drops("full", "no-buffer") - flooded == sent
            && net.drops("stopped", "link-down") == sent
            && net.drops("disabled", "link-down") == sent
    });
    assert_eq!(net.total_drops("sender"), 0);
    // The full one only has to make room.
    full.post_all(0);
    let last = frame(mac(11), mac(10), 9, 60);
    sender.send(0, &last);
    full.expect(&last);
}

fn with_extra(guest: &Guest, extra: &SharedMemory) -> Vec<VhostUserMemoryRegionInfo> {
    guest.memory.iter().chain([extra]).map(region_info).collect()
}

#[test]
fn memory_rings_and_ports_come_and_go_under_load_without_loss_elsewhere() {
    let net = Net::new();
    let mut pair = bystanders(&net);
    let mut peer = net.guest("peer");
    let mut busy = net.guest("busy");
    let hello = frame(mac(20), mac(21), 1, 60);
    peer.send(0, &hello);
    busy.expect(&hello);
    std::thread::scope(|scope| {
        let churn = scope.spawn(|| {
            for round in 0..ROUNDS {
                // More memory, and back, while this guest has frames on their way.
                let extra = SharedMemory::new("extra", 0x9_0000_0000, 2 << 20).unwrap();
                let table = with_extra(&busy, &extra);
                for regions in [&table[..], &table[..table.len() - 1]] {
                    for tag in 0..16 {
                        busy.send(0, &frame(mac(21), mac(20), tag, 100));
                    }
                    busy.frontend.set_mem_table(regions).unwrap();
                    for tag in 0..16 {
                        peer.expect(&frame(mac(21), mac(20), tag, 100));
                    }
                }
                // Rings stopped and started where they were.
                for ring in 0..2 {
                    let base = busy.frontend.get_vring_base(ring).unwrap();
                    busy.restart(ring, u16::try_from(base).unwrap()).unwrap();
                }
                let again = frame(mac(20), mac(21), round, 60);
                peer.send(0, &again);
                busy.expect(&again);
                // A port that comes, is used, and goes.
                let mut guest = net.guest("passing");
                guest.send(0, &frame(mac(21), mac(30), round, 60));
                peer.expect(&frame(mac(21), mac(30), round, 60));
                net.switch.delete_port("passing").unwrap();
            }
        });
        while !churn.is_finished() {
            pair.step();
        }
        churn.join().unwrap();
    });
    unharmed(&net, &mut pair);
    for name in ["peer", "busy"] {
        assert_eq!(
            net.total_drops(name),
            0,
            "{name}: {:?}",
            net.port(name).counters.drops
        );
    }
}
