//! Functions are made, set up, bound and given back, and what stands in the way is told.

use netyard_tests::{bin, markdown};
use serde_json::Value;

use crate::machine::Machine;
use crate::{BRIDGE, BRIDGED, NIC, PAIR, PF, VFS};

/// Addresses are stable and known to the driver, attributes read back.
fn virtual_functions(machine: &Machine, pf: &str) {
    machine.refused(&format!("create {pf} 8"), "its limit is 7");
    machine.shell(&format!(
        "ip link set {pf} up && ip address add 10.0.2.9/24 dev {pf} && ip route add default via 10.0.2.2"
    ));
    machine.refused(&format!("create {pf} 2"), "default route");
    machine.refused(&format!("bind {PF}"), "default route");
    let (_, text) = machine.sriov(&format!("check {pf}"));
    let part = format!("{pf} carries this host's default route, so it is left alone");
    assert!(text.contains(&part), "{text}");
    machine.shell(&format!(
        "ip route del default && ip address flush dev {pf} && ip link set {pf} down"
    ));
    machine.done(&format!("create {pf} 2"));
    let first = machine.ip_link(pf);
    for index in 0..VFS.len() {
        let mac = first[index]["address"].as_str().expect("an address").to_owned();
        let start = u8::from_str_radix(&mac[..2], 16).expect("hexadecimal");
        assert_eq!(start & 3, 2, "{mac} is locally administered and for one station");
    }
    machine.done(&format!("destroy {pf}"));
    machine.done(&format!("create {pf} 2"));
    assert_eq!(machine.ip_link(pf), first, "the same addresses again");

    machine.done(&format!(
        "set {pf} 0 --mac 02:00:00:00:01:00 --vlan 100 --qos 3 --spoofchk off --trust on"
    ));
    let vf = &machine.ip_link(pf)[0];
    assert_eq!(vf["address"], "02:00:00:00:01:00", "{vf}");
    assert_eq!(vf["vlan_list"][0]["vlan"], 100, "{vf}");
    assert_eq!(vf["vlan_list"][0]["qos"], 3, "{vf}");
    assert_eq!(vf["spoofchk"], false, "{vf}");
    assert_eq!(vf["trust"], true, "{vf}");
    // Its driver limits the rate of a function whose link is up, and guarantees none.
    machine.shell(&format!(
        "until [ $(cat /sys/class/net/{pf}/carrier) = 1 ]; do sleep 0.1; done"
    ));
    machine.done(&format!("set {pf} 0 --max-rate 100"));
    let rate = &machine.ip_link(pf)[0]["rate"];
    assert_eq!((&rate["max_tx"], &rate["min_tx"]), (&100.into(), &0.into()));
    machine.refused(&format!("set {pf} 0 --min-rate 10"), "rate of VF 0");
    machine.done(&format!("set {pf} 0 --max-rate 0"));
    machine.refused(
        &format!("set {pf} 0 --state enable"),
        "this driver cannot do that",
    );
    let listed: Value = serde_json::from_str(&machine.done("list --format json")).expect("JSON");
    let vf = &listed[0]["vfs"][0];
    assert_eq!(vf["attributes"]["vlan"], 100, "{vf}");
    assert_eq!(vf["group_members"][0], VFS[0], "{vf}");
    let table = machine.done("list");
    for part in [&format!("{pf}:0"), VFS[0], "02:00:00:00:01:00", "flr"] {
        assert!(table.contains(part), "no {part} in {table}");
    }
    // Made by hand they have no address, which their drivers make up anew each time.
    machine.done(&format!("destroy {pf}"));
    machine.shell(&format!("echo 2 > /sys/bus/pci/devices/{PF}/sriov_numvfs"));
    let (_, text) = machine.sriov(&format!("check {pf}"));
    assert!(
        text.contains(&format!("VF 1 of {pf} has no MAC address")) && text.contains("--mac auto"),
        "{text}"
    );
    // Nobody answers their drivers now.
    machine.shell(&format!("ip link set {pf} down"));
    let (_, text) = machine.sriov(&format!("check {pf}"));
    let part = format!("{pf} is down, so its virtual functions have no link");
    assert!(text.contains(&part), "{text}");
    machine.shell(&format!("ip link set {pf} up"));
}

fn binding(machine: &Machine, pf: &str) {
    let vf = VFS[0];
    assert_eq!(machine.driver(vf), "none");
    machine.done(&format!("bind {vf} --dry-run"));
    assert_eq!(machine.driver(vf), "none", "a dry run changes nothing");
    machine.done(&format!("bind {vf}"));
    assert_eq!(machine.driver(vf), "vfio-pci");
    machine.shell(&format!(
        "test -c /dev/vfio/$(basename $(readlink /sys/bus/pci/devices/{vf}/iommu_group))"
    ));
    machine.done(&format!("bind {vf}"));
    machine.done(&format!("release {vf}"));
    assert_eq!(machine.driver(vf), "none", "it had no driver");

    // A NIC in use by the host comes back with its interface.
    machine.done(&format!("bind {NIC}"));
    assert_eq!(machine.driver(NIC), "vfio-pci");
    machine.done(&format!("release {NIC}"));
    assert_eq!(machine.driver(NIC), "e1000e");
    assert_ne!(machine.interface(NIC), "");

    // A process that holds the group is named, and nothing is taken from it.
    machine.done(&format!("bind {vf}"));
    let group = machine.shell(&format!(
        "basename $(readlink /sys/bus/pci/devices/{vf}/iommu_group)"
    ));
    let program = bin::path("sriov").display().to_string();
    let held = machine.shell(&format!(
        "exec 2>&1; sleep 60 9<>/dev/vfio/{} & user=$!
         {program} release {vf}; {program} destroy {pf}; {program} list; kill $user",
        group.trim()
    ));
    for part in [
        format!("{vf} is in use by sleep"),
        format!("VF 0 of {pf} ({vf}) is in use by sleep"),
        "sleep (".to_owned(),
    ] {
        assert!(held.contains(&part), "no `{part}` in {held}");
    }
    machine.done(&format!("release {vf}"));
}

/// Functions of one group: refused alone, with the reason, and taken and given back together.
fn shared_group(machine: &Machine, functions: [&str; 2], driver: &str, reason: &str) {
    let [first, second] = functions;
    let (code, text) = machine.sriov(&format!("check {first}"));
    assert_eq!(code, 1, "{text}");
    let part = format!("is not viable: {second} ({driver}) in it too; {reason}");
    assert!(text.contains(&part), "{text}");
    assert!(text.contains(&format!("sriov bind {first} --group")), "{text}");
    machine.refused(&format!("bind {first}"), "--group");
    assert_eq!(machine.drivers(functions), [driver; 2]);
    machine.done(&format!("bind {first} --group"));
    assert_eq!(machine.drivers(functions), ["vfio-pci"; 2]);
    machine.done(&format!("release {first} --group"));
    assert_eq!(machine.drivers(functions), [driver; 2]);
}

fn shared_groups(machine: &Machine) {
    shared_group(
        machine,
        PAIR,
        "e1000e",
        "they are functions of one device, with no ACS between them",
    );
    let bus = format!("they are on the conventional PCI bus below {BRIDGE}");
    shared_group(machine, BRIDGED, "e1000", &bus);
    machine.refused(&format!("bind {BRIDGE}"), "is a PCI bridge");
    let (_, text) = machine.sriov(&format!("check {}", BRIDGED[1]));
    let part = format!("{} cannot be reset on its own", BRIDGED[1]);
    assert!(text.contains(&part), "{text}");
}

/// What a dry run prints are commands, which do what the program does.
fn dry_runs(machine: &Machine, pf: &str) {
    machine.done(&format!("destroy {pf}"));
    machine.done(&format!("create {pf} 2"));
    let made = machine.ip_link(pf);
    machine.done(&format!("destroy {pf}"));
    machine.in_shell(&format!("create {pf} 2"));
    assert_eq!(machine.ip_link(pf), made);
    machine.in_shell(&format!("set {pf} 1 --vlan 5 --trust on"));
    let vf = &machine.ip_link(pf)[1];
    assert_eq!(vf["vlan_list"][0]["vlan"], 5, "{vf}");
    assert_eq!(vf["trust"], true, "{vf}");
    machine.in_shell(&format!("bind {}", VFS[0]));
    assert_eq!(machine.driver(VFS[0]), "vfio-pci");
    machine.in_shell(&format!("release {}", VFS[0]));
    assert_eq!(machine.driver(VFS[0]), "none");
    machine.in_shell(&format!("destroy {pf}"));
    assert_eq!(machine.ip_link(pf), Value::Array(Vec::new()));
}

/// A count that cannot be written for want of space, as a device without vectors answers: here the file is on a full disk.
fn no_space(machine: &Machine, pf: &str) {
    let count = format!("/sys/bus/pci/devices/{PF}/sriov_numvfs");
    machine.shell(&format!(
        "cd /tmp; mkdir lower full merged; echo 0 > lower/count; mount -t tmpfs -o size=16k full full; mkdir full/upper full/work
         mount -t overlay -o lowerdir=lower,upperdir=full/upper,workdir=full/work over merged
         cat /dev/zero > full/fill 2> /dev/null; mount --bind merged/count {count}"
    ));
    let cause = "No space left on device (os error 28); the device has run out of MSI-X vectors or queues: ask for fewer";
    machine.refused(&format!("create {pf} 2"), cause);
    machine.shell(&format!(
        "cd /tmp; umount {count} merged full; rm -r lower full merged"
    ));
    assert_eq!(machine.ip_link(pf), Value::Array(Vec::new()));
    let autoprobe = machine.shell(&format!("cat /sys/bus/pci/devices/{PF}/sriov_drivers_autoprobe"));
    assert_eq!(autoprobe.trim(), "1", "it is as it was");
}

/// `create` is killed before the functions are there, and when they are there and have no addresses; the next one makes them whole.
fn killed_while_it_creates(machine: &Machine, pf: &str) {
    let program = bin::path("sriov").display().to_string();
    let device = format!("/sys/bus/pci/devices/{PF}");
    let record = format!("/run/netyard/sriov/{PF}.autoprobe");
    for reached in [&record, &format!("{device}/virtfn0")] {
        machine.shell(&format!(
            "{program} create {pf} 2 > /dev/null & create=$!
             until [ -e {reached} ]; do [ -e /proc/$create/exe ] || exit 1; done
             kill -9 $create; wait $create; [ -e {record} ]"
        ));
        machine.done(&format!("create {pf} 2"));
        let vfs = machine.ip_link(pf);
        for index in 0..VFS.len() {
            assert_ne!(vfs[index]["address"], "00:00:00:00:00:00", "{reached}: {vfs}");
        }
        let autoprobe = machine.shell(&format!("cat {device}/sriov_drivers_autoprobe"));
        assert_eq!(autoprobe.trim(), "1", "{reached}: drivers take functions again");
        machine.done(&format!("destroy {pf}"));
    }
}

/// A physical function whose driver let go of it is told of, with a cure that cures.
fn no_driver(machine: &Machine) {
    machine.shell(&format!("echo {PF} > /sys/bus/pci/drivers/igb/unbind"));
    let (code, text) = machine.sriov(&format!("check {PF}"));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains(&format!("{PF} has no driver")), "{text}");
    let cure = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("cure: load its driver: "));
    machine.shell(cure.unwrap_or_else(|| panic!("no cure in {text}")));
    assert_eq!(machine.driver(PF), "igb");
}

/// `bind` is killed when it has written down what was, when the driver has let go, and not at all; `release` finds the old driver
/// each time.
fn killed_half_way(machine: &Machine) {
    let program = bin::path("sriov").display().to_string();
    let device = format!("/sys/bus/pci/devices/{NIC}");
    let script = format!(
        "for reached in '-e /run/netyard/sriov/{NIC}.json' '! -e {device}/driver' '-z never'; do
            {program} bind {NIC} > /dev/null & bind=$!
            until [ $reached ]; do [ -e /proc/$bind/exe ] || break; done
            kill -9 $bind 2>/dev/null; wait $bind 2>/dev/null
            basename $(readlink {device}/driver || echo none)
            {program} release {NIC} > /dev/null || exit 1
            driver=$(basename $(readlink {device}/driver))
            [ \"$driver\" = e1000e ] || {{ echo \"after $reached: $driver\"; exit 1; }}
            override=$(cat {device}/driver_override)
            [ \"$override\" = '(null)' ] || {{ echo \"after $reached: $override\"; exit 1; }}
        done; ls /run/netyard/sriov"
    );
    let stages = machine.shell(&script);
    let drivers: std::collections::HashSet<&str> = stages.lines().collect();
    assert!(
        drivers.contains("vfio-pci") && (drivers.contains("e1000e") || drivers.contains("none")),
        "killed before the end as well as after it: {stages}"
    );
    assert!(!stages.contains(".json"), "no record stays: {stages}");
}

fn declared_state(machine: &Machine, pf: &str) {
    let text = format!(
        "pfs: {{{pf}: {{vfs: 2, vf: {{0: {{set: {{mac: '02:00:00:00:02:00', vlan: 7}}, vfio: true}}, 1: {{vfio: true}}}}}}}}"
    );
    machine.shell(&format!("echo \"{text}\" > /tmp/state.yaml"));
    let planned = machine.done("apply /tmp/state.yaml --dry-run");
    assert!(
        planned.contains(&format!("ip link set {pf} vf 0 mac 02:00:00:00:02:00 vlan 7")),
        "{planned}"
    );
    assert_eq!(machine.driver(VFS[0]), "none", "a dry run changes nothing");
    machine.done("apply /tmp/state.yaml");
    assert_eq!(VFS.map(|vf| machine.driver(vf)), ["vfio-pci", "vfio-pci"]);
    assert_eq!(machine.ip_link(pf)[0]["vlan_list"][0]["vlan"], 7);
    assert_eq!(machine.done("apply /tmp/state.yaml"), "nothing to change\n");
    machine.done("release --all");
    machine.done(&format!("destroy {pf}"));
    assert_eq!(machine.ip_link(pf), Value::Array(Vec::new()));
}

/// A lab's functions are allocated as its machines need them, and nothing is made for that.
fn planned(machine: &Machine) {
    let file = markdown::repository().join("topologies/labs/sriov.lab.yaml");
    let text = machine.done(&format!("plan {}", file.display()));
    assert_eq!(text, format!("a nic 0 gets {PF}:0\nb nic 0 gets {PF}:1\n"));
    let count = machine.shell(&format!("cat /sys/bus/pci/devices/{PF}/sriov_numvfs"));
    assert_eq!(count.trim(), "0");
}

/// A user with little memory to lock is told so.
fn memory_limit(machine: &Machine) {
    let program = bin::path("sriov").display().to_string();
    let limited = [
        "prlimit",
        "--memlock=8388608",
        "setpriv",
        "--bounding-set=-ipc_lock",
    ];
    let output = machine.output(&[&limited[..], &[&program, "check", PF]].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("at most 8 MiB of memory can be locked") && text.contains("ulimit -l unlimited"),
        "{text}"
    );
}

#[test]
fn e2e_sriov_makes_binds_and_gives_back() {
    let machine = Machine::boot("");
    let pf = machine.interface(PF);
    let (_, before) = machine.sriov(&format!("check {pf}"));
    assert!(before.contains("modprobe vfio-pci"), "{before}");
    memory_limit(&machine);
    machine.shell("modprobe -a e1000e e1000");
    virtual_functions(&machine, &pf);
    binding(&machine, &pf);
    killed_half_way(&machine);
    shared_groups(&machine);
    dry_runs(&machine, &pf);
    no_space(&machine, &pf);
    killed_while_it_creates(&machine, &pf);
    declared_state(&machine, &pf);
    planned(&machine);
    no_driver(&machine);
}
