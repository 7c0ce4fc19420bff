//! Devices of the host in a guest, through VFIO: in the emulated host, which has an SR-IOV NIC, other NICs and a drive behind an
//! IOMMU, with our own `vmm`.

#![forbid(unsafe_code)]

mod dma;
mod faults;
mod interrupts;
mod iommufd;
mod kernel;
mod rig;

use std::time::Instant;

use netyard_tests::bin;
use netyard_tests::deadline::wait_for;
use netyard_tests::lab::{Place, Yard};

use rig::{PATIENCE, Rig};

/// The host's end of the wire that all NICs but the pair are on, and the guest's.
const HOST: &str = "10.9.0.1";
const GUEST: &str = "10.9.0.2/24";
/// What answers on the wire besides.
const GATEWAY: &str = "10.0.2.2";

const NIC: &str = "0000:01:00.0";
const VF: &str = "0000:01:10.0";
const VF_MAC: &str = "02:00:00:00:00:a1";
const E1000E: &str = "0000:02:00.0";
const DRIVE: &str = "0000:03:00.0";
/// A device of two functions in one IOMMU group.
const PAIR: [&str; 2] = ["0000:04:00.0", "0000:04:00.1"];
/// Two conventional NICs behind one bridge, whose only reset is that of their bus.
const OLD: [&str; 2] = ["0000:06:01.0", "0000:06:02.0"];

const GUEST_MIB: u64 = 384;
const REBOOTS: u32 = 10;
/// The process of the only VMM that runs.
const VMM: &str = "$(pidof vmm)";

#[test]
fn e2e_vfio_devices_come_work_and_go() {
    let yard = Yard::new(Place::Emulated);
    let rig = Rig::new(&yard);
    run(
        &rig,
        &[
            ("reboots", |rig| a_vf_is_plugged_and_survives_reboots(rig)),
            ("old NICs", |rig| old_nics_are_reset_with_their_bus(rig)),
            ("a pause", |rig| a_paused_guest_goes_on_with_its_vf(rig)),
            ("no answer from the guest", |rig| {
                a_guest_that_does_not_answer_keeps_its_vf(rig);
            }),
            ("unplug under traffic", |rig| traffic_does_not_keep_a_vf(rig)),
            ("taken back", |rig| the_host_takes_a_vf_back(rig)),
            ("drive", |rig| a_drive_is_written(rig)),
            ("interrupts", |rig| interrupts::of_pin_and_messages(rig)),
            ("whole NIC", |rig| interrupts::of_a_whole_nic(rig)),
            ("pair", |rig| a_device_of_two_functions(rig)),
            ("refusals", |rig| refusals(rig)),
            ("no answer", |rig| faults::a_device_that_is_gone_is_given_up(rig)),
            ("pulled out", |rig| {
                faults::a_slot_is_emptied_while_its_nic_is_in_use(rig);
            }),
            ("errors", |rig| faults::an_error_stops_a_device(rig)),
            ("older messages", |rig| interrupts::of_older_messages(rig)),
            ("killed", |rig| a_killed_vmm_leaves_a_device_that_works(rig)),
        ],
    );
}

/// The parts of a test, which share a machine, and what they are called.
type Part<'a> = (&'a str, fn(&Rig<'_>));

fn run(rig: &Rig<'_>, parts: &[Part<'_>]) {
    for (name, part) in parts {
        let start = Instant::now();
        part(rig);
        eprintln!("{name}: {:.0} s", start.elapsed().as_secs_f64());
    }
}

fn a_vf_is_plugged_and_survives_reboots(rig: &Rig<'_>) {
    rig.virtual_function();
    assert_eq!(rig.pinned(), 0);
    rig.plug(VF);
    assert_eq!(rig.pinned(), GUEST_MIB << 10);
    dma::reaches_guest_memory_alone(rig, VF, GUEST_MIB, VMM);
    rig.guest_until("ls /sys/bus/pci/devices/0000:00:10.0");
    rig.vf_works();
    assert_eq!(
        rig.guest("cat /sys/bus/pci/devices/0000:00:10.0/net/*/address")
            .trim(),
        VF_MAC
    );
    assert!(
        rig.devices()
            .contains(&format!("{VF}  at 0000:00:10.0 in the guest  working"))
    );
    let twice = bin::finish(&mut rig.device(&["add", VF]));
    assert!(!twice.status.success(), "{twice:?}");
    // All but the last, which has other devices as well.
    for _ in 1..REBOOTS {
        rig.restart_guest();
        rig.vf_works();
    }
    dma::reaches_guest_memory_alone(rig, VF, GUEST_MIB, VMM);
    assert_eq!(rig.pinned(), GUEST_MIB << 10);
}

/// A register that only a reset clears. The host's driver for them is not there to do it.
fn old_nics_are_reset_with_their_bus(rig: &Rig<'_>) {
    for nic in OLD {
        rig.bind(nic);
        let reset = rig.host(&format!(
            "cat /sys/bus/pci/devices/{nic}/reset_method 2>/dev/null || true"
        ));
        assert!(!reset.contains("flr") && !reset.contains("pm"), "{nic}: {reset}");
    }
    rig.plug_together(&OLD);
    let register = |nic: &str, value: &str| {
        rig.guest_until(&format!(
            "cd /sys/bus/pci/devices/{} && {{ [ $(cat enable) = 1 ] || echo 1 > enable; }} && set -- $(sed -n 1p resource) && \
             devmem $(($1 + 0x2800)) 32 {value}",
            rig.place(nic)
        ))
    };
    for nic in OLD {
        register(nic, "0x12340");
        assert_eq!(register(nic, "").trim(), "0x00012340", "{nic}");
    }
    rig.restart_guest();
    rig.vf_works();
    for nic in OLD {
        assert_eq!(register(nic, "").trim(), "0x00000000", "{nic}");
    }
    // While the guest's driver uses one of them, the other one goes without a reset.
    let master = format!(
        "printf '\\007' | dd of=/sys/bus/pci/devices/{}/config bs=1 seek=4 conv=notrunc",
        rig.place(OLD[1])
    );
    rig.guest(&master);
    register(OLD[1], "0x12340");
    rig.unplug(OLD[0]);
    assert_eq!(register(OLD[1], "").trim(), "0x00012340");
    rig.unplug(OLD[1]);
}

/// Its NIC goes on alone, so that the two still understand each other afterwards.
fn a_paused_guest_goes_on_with_its_vf(rig: &Rig<'_>) {
    let address = GUEST.trim_end_matches("/24");
    rig.host(&format!("busybox ping -c 1 -W 5 {address}"));
    rig.ctl("pause");
    let ping = rig.try_host(&format!("busybox ping -c 3 -W 2 {address}"));
    assert!(!ping.status.success(), "{ping:?}");
    rig.ctl("resume");
    rig.host_until(&format!("busybox ping -c 1 -W 2 {address}"));
}

/// It is asked, and lets go when it can. By force the VF is taken from it, and it hears of that later.
fn a_guest_that_does_not_answer_keeps_its_vf(rig: &Rig<'_>) {
    rig.ctl("pause");
    let kept = bin::finish(&mut rig.device(&["del", VF]));
    let text = String::from_utf8_lossy(&kept.stderr).into_owned();
    assert!(
        !kept.status.success() && text.contains("has not let go of"),
        "{text}"
    );
    assert_eq!(rig.state(VF), "leaving");
    rig.ctl("resume");
    wait_for("the guest has let go", PATIENCE, || {
        rig.devices().is_empty().then_some(())
    });
    rig.plug(VF);
    rig.vf_works();
    let place = rig.place(VF);
    rig.ctl("pause");
    bin::succeed(&mut rig.device(&["del", "--force", VF]));
    assert_eq!((rig.pinned(), rig.devices().as_str()), (0, ""));
    dma::reaches_nothing(rig, VF);
    rig.ctl("resume");
    rig.guest_until(&format!("[ ! -e /sys/bus/pci/devices/{place} ]"));
    rig.plug(VF);
    rig.vf_works();
}

fn traffic_does_not_keep_a_vf(rig: &Rig<'_>) {
    for _ in 0..2 {
        let traffic = rig.lab.start("a", &["ping", "-A", "-w", "600", HOST]);
        rig.unplug(VF);
        drop(traffic);
        assert_eq!((rig.pinned(), rig.devices().as_str()), (0, ""));
        dma::reaches_nothing(rig, VF);
        rig.guest("! ls /sys/bus/pci/devices/0000:00:10.0");
        rig.plug(VF);
        rig.vf_works();
    }
}

fn the_host_takes_a_vf_back(rig: &Rig<'_>) {
    let traffic = rig.lab.start("a", &["ping", "-A", "-w", "600", HOST]);
    rig.host(&format!("echo 0 > /sys/bus/pci/devices/{NIC}/sriov_numvfs"));
    drop(traffic);
    assert_eq!((rig.pinned(), rig.devices().as_str()), (0, ""));
    rig.guest("true");
}

fn a_drive_is_written(rig: &Rig<'_>) {
    rig.bind(DRIVE);
    // By its folder.
    rig.plug(&format!("/sys/bus/pci/devices/{DRIVE}"));
    rig.guest("modprobe nvme");
    rig.guest_until("[ -b /dev/nvme0n1 ]");
    let written = rig.guest(
        "dd if=/dev/urandom of=/tmp/x bs=64k count=32 2>/dev/null; \
         dd if=/tmp/x of=/dev/nvme0n1 bs=64k oflag=direct 2>/dev/null; \
         dd if=/dev/nvme0n1 bs=64k count=32 iflag=direct 2>/dev/null | sha256sum",
    );
    assert_eq!(rig.guest("sha256sum < /tmp/x"), written);
    rig.unplug(DRIVE);
    rig.host("modprobe nvme");
    rig.release(DRIVE);
    rig.host_until("[ -b /dev/nvme0n1 ]");
    let read = rig.host("dd if=/dev/nvme0n1 bs=64k count=32 2>/dev/null | sha256sum");
    assert_eq!(read, written);
}

fn a_device_of_two_functions(rig: &Rig<'_>) {
    rig.bind(PAIR[0]);
    // The other one still has the host's driver.
    rig.host(&format!(
        "modprobe e1000e; [ -e /sys/bus/pci/devices/{}/driver ]",
        PAIR[1]
    ));
    let refused = bin::finish(&mut rig.device(&["add", PAIR[0]]));
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("group"), "{text}");
    rig.bind(PAIR[1]);
    rig.guest("rmmod e1000e 2>/dev/null || true");
    rig.plug_together(&PAIR);
    let places = PAIR.map(|function| rig.place(function));
    assert_eq!(
        (places[0].strip_suffix(".0"), places[0].len()),
        (places[1].strip_suffix(".1"), 12),
        "{places:?}"
    );
    has_ports(rig, &places[1]);
    // A group has one map.
    for function in PAIR {
        dma::reaches_guest_memory_alone(rig, function, GUEST_MIB, VMM);
    }
    // They are wired to each other.
    rig.guest("modprobe e1000e");
    rig.guest_until(
        "set -- $(for n in /sys/class/net/*; do [ -e $n/device/driver/module ] && \
         [ $(basename $(readlink $n/device/driver)) = e1000e ] && basename $n; done); [ $# = 2 ] && ip link set $1 up && \
         ip link set $2 up && before=$(cat /sys/class/net/$2/statistics/rx_packets) && \
         ip address replace 10.8.0.1/24 dev $1 && ! ping -c 3 -W 1 10.8.0.2 && \
         [ $(cat /sys/class/net/$2/statistics/rx_packets) -gt $before ]",
    );
    // Who asks for one gets both.
    rig.unplug(PAIR[1]);
    assert_eq!((rig.pinned(), rig.devices().as_str()), (0, ""));
    for function in PAIR {
        dma::reaches_nothing(rig, function);
    }
}

/// A register of an 82574L says the same by memory and by its ports, an address and what is there. No driver has it yet.
fn has_ports(rig: &Rig<'_>, place: &str) {
    rig.guest_until(&format!(
        "cd /sys/bus/pci/devices/{place}; set -- $(sed -n 1p resource); memory=$(devmem $(($1 + 8)) 8); \
         set -- $(sed -n 3p resource); printf '\\010' | dd of=/dev/port bs=1 seek=$(($1)) conv=notrunc; \
         ports=$(dd if=/dev/port bs=1 count=1 skip=$(($1 + 4)) | hexdump -v -e '/1 \"0x%02X\"'); \
         echo $memory $ports; [ $memory = $ports ] && [ $memory != 0xFF ] && [ $memory != 0x00 ]"
    ));
}

fn refusals(rig: &Rig<'_>) {
    let refused = |words: &[&str], what: &str| {
        let output = bin::finish(&mut rig.device(words));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && text.contains(what),
            "{words:?}: {text}"
        );
    };
    refused(&["add", "0000:01:1f.7"], "there is none");
    refused(&["add", NIC], "sriov bind");
    refused(&["del", NIC], "has no device");
    // Less memory may be locked than the guest has.
    let image = rig.host("tr '\\0' '\\n' < /proc/$(pidof vmm)/cmdline | grep -A1 -x -e --kernel | tail -1");
    let output = rig.try_host(&format!(
        "ulimit -l 65536; setpriv --bounding-set -ipc_lock --inh-caps=-ipc_lock {} run --kernel {} --memory 256M --serial off \
         --device {}",
        bin::path("vmm").display(),
        image.trim(),
        PAIR[0]
    ));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(
        text.contains("may lock 67108864 bytes") && text.contains("ulimit -l"),
        "{text}"
    );
}

fn a_killed_vmm_leaves_a_device_that_works(rig: &Rig<'_>) {
    rig.virtual_function();
    rig.plug(VF);
    rig.vf_works();
    dma::reaches_guest_memory_alone(rig, VF, GUEST_MIB, VMM);
    rig.host("kill -9 $(pidof vmm); while pidof vmm; do sleep 0.1; done");
    dma::comes_to_reach_nothing(rig, VF);
    rig.host("modprobe igbvf");
    rig.release(VF);
    rig.host_until(&format!(
        "vf=$(ls /sys/bus/pci/devices/{VF}/net) && ip link set $vf up && ip address replace 10.0.2.16/24 dev $vf && \
         busybox ping -c 2 -W 5 -I $vf {GATEWAY}"
    ));
}
