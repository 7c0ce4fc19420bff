//! Drivers of QEMU's guests.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use netyard_tests::deadline::wait_for;
use netyard_tests::lab::{Lab, Place, Yard};

use crate::traffic::{Stream, ping};
use crate::{guest_reboot, nothing_is_left};

/// A third node.
const PLAIN_NODE: &str = "  c: {memory: 256M, nics: [{switch: lan, ip: 10.0.0.3/24}]}\n";

/// `PATH` with a QEMU in front whose machine of this name has a NIC without any offload, mergeable buffer or packed ring.
fn path_with_a_plain_nic_for(machine: &str, folder: &Path) -> OsString {
    let path = std::env::var_os("PATH").expect("PATH is set");
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    let all = folders.iter().map(|folder| folder.join("qemu-system-x86_64"));
    let real = all
        .into_iter()
        .find(|path| path.exists())
        .expect("QEMU is installed");
    let off = [
        "packed",
        "mrg_rxbuf",
        "csum",
        "guest_csum",
        "gso",
        "host_tso4",
        "host_tso6",
        "host_ecn",
        "host_ufo",
        "host_uso",
        "guest_tso4",
        "guest_tso6",
        "guest_ecn",
        "guest_ufo",
        "guest_uso4",
        "guest_uso6",
    ]
    .map(|property| format!("{property}=off"))
    .join(",");
    let text = format!(
        "#!/bin/bash\ncase \" $* \" in *' -name {machine} '*) set -- \"${{@/packed=on/{off}}}\" ;; esac\nexec {} \"$@\"\n",
        real.display()
    );
    let wrapper = folder.join("qemu-system-x86_64");
    std::fs::write(&wrapper, text).expect("the program is written");
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).expect("it may be run");
    folders.insert(0, folder.to_path_buf());
    std::env::join_paths(folders).expect("a list of folders")
}

/// A stream in either direction. Returns the bytes of a frame that `a` and that `b` sent, on the average.
fn streams(lab: &Lab<'_>) -> [u64; 2] {
    [false, true].map(|reverse| {
        let stream = Stream {
            client: "a",
            server: "b",
            address: "10.0.0.2",
            reverse,
            amount: "8M",
        };
        stream.run(lab)[0]
    })
}

/// Frames still to be segmented are segmented for a guest that cannot take them, and their checksums completed.
fn plain_receiver(lab: &Lab<'_>) {
    let features = lab.run("c", &["cat", "/sys/class/net/eth0/device/features"]);
    for bit in [0, 1, 7, 8, 11, 12, 15, 34] {
        assert_eq!(features.get(bit..=bit), Some("0"), "bit {bit}: {features}");
    }
    lab.run("c", &["iperf3", "-s", "-D"]);
    for reverse in [false, true] {
        let stream = Stream {
            client: "a",
            server: "c",
            address: "10.0.0.3",
            reverse,
            amount: "8M",
        };
        let [sent, came] = stream.run(lab);
        assert_eq!(
            (sent > 1514, came > 1514),
            (!reverse, false),
            "reverse {reverse}: {sent} and {came} bytes a frame"
        );
    }
    let wrong = lab.run(
        "c",
        &["awk", "/^Tcp:/ && $2 ~ /[0-9]/ {print $NF}", "/proc/net/snmp"],
    );
    assert_eq!(wrong.trim(), "0", "segments with a wrong checksum");
}

/// What a driver may do to its NIC: other numbers of queue pairs, offloads on and off at either end, and letting go of it.
#[test]
fn e2e_qemu_queue_pairs_offloads_and_a_driver_that_comes_back() {
    let mut yard = Yard::new(Place::Qemu);
    let programs = tempfile::tempdir().expect("a folder for the test");
    yard.set(
        "PATH",
        Path::new(&path_with_a_plain_nic_for("driver.c", programs.path())),
    );
    let lab = yard.up(&yard.two_nodes_and("driver", 4, false, PLAIN_NODE));
    ping(&lab);
    lab.run("b", &["iperf3", "-s", "-D"]);
    for pairs in [1, 3, 4, 2] {
        for node in ["a", "b"] {
            lab.run(node, &["ethtool", "-L", "eth0", "combined", &pairs.to_string()]);
            wait_for(
                "the switch to know of the queue pairs",
                Place::Qemu.patience(),
                || (lab.port(&format!("{node}-0"))["enabled_queue_pairs"] == pairs).then_some(()),
            );
        }
        streams(&lab);
    }
    for offloads in [["off", "on"], ["off", "off"], ["on", "off"], ["on", "on"]] {
        for (node, on) in ["a", "b"].into_iter().zip(offloads) {
            lab.run(
                node,
                &["ethtool", "-K", "eth0", "tx", on, "sg", on, "tso", on, "gso", on],
            );
        }
        // Acknowledgements count as well: segments of a stream are what makes the average large.
        for ((node, on), bytes) in ["a", "b"].into_iter().zip(offloads).zip(streams(&lab)) {
            assert_eq!(bytes > 1514, on == "on", "{node}, {on}: {bytes} bytes a frame");
        }
    }
    plain_receiver(&lab);
    lab.run(
        "a",
        &[
            "sh",
            "-ec",
            "device=$(basename $(readlink /sys/class/net/eth0/device))
             cd /sys/bus/virtio/drivers/virtio_net
             for round in 1 2 3; do
                 echo $device > unbind
                 test ! -e /sys/class/net/eth0
                 echo $device > bind
             done
             ip link set eth0 up
             ip addr add 10.0.0.1/24 dev eth0",
        ],
    );
    ping(&lab);
    streams(&lab);
    guest_reboot(&lab, Place::Qemu);
    lab.run("b", &["iperf3", "-s", "-D"]);
    streams(&lab);
    lab.down();
    nothing_is_left(&yard);
}
