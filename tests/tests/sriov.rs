//! `sriov`, and labs with its virtual functions, on a NIC and an IOMMU that do what real ones do: those of the emulated host.

use std::process::Output;

use netyard_tests::lab::{Lab, Place, Yard};
use netyard_tests::{bin, markdown};
use serde_json::Value;

const PF: &str = "0000:01:00.0";
const VFS: [&str; 2] = ["0000:01:10.0", "0000:01:10.2"];
/// A NIC without virtual functions, alone in its group.
const NIC: &str = "0000:02:00.0";
/// Two functions of one device in one IOMMU group.
const PAIR: [&str; 2] = ["0000:04:00.0", "0000:04:00.1"];

fn lab_file() -> std::path::PathBuf {
    markdown::repository().join("topologies/labs/sriov.lab.yaml")
}

/// The emulated host, booted with `words` on its kernel command line.
struct Machine(Yard);

impl Machine {
    fn boot(words: &str) -> Self {
        let yard = Yard::new(Place::Emulated);
        bin::succeed(yard.command().args(["host", "up", "--append", words]));
        Self(yard)
    }

    fn output(&self, argv: &[&str]) -> Output {
        bin::finish(self.0.command().args(["host", "exec", "--"]).args(argv))
    }

    fn succeed(&self, argv: &[&str]) -> String {
        bin::succeed(self.0.command().args(["host", "exec", "--"]).args(argv))
    }

    fn shell(&self, script: &str) -> String {
        self.succeed(&["sh", "-c", script])
    }

    /// `sriov` with these arguments: exit code and all that it printed.
    fn sriov(&self, arguments: &str) -> (i32, String) {
        let program = bin::path("sriov").display().to_string();
        let mut argv = vec![program.as_str()];
        argv.extend(arguments.split_whitespace());
        let output = self.output(&argv);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        (output.status.code().unwrap_or(-1), text)
    }

    fn done(&self, arguments: &str) -> String {
        let (code, text) = self.sriov(arguments);
        assert_eq!(code, 0, "sriov {arguments}: {text}");
        text
    }

    fn refused(&self, arguments: &str, part: &str) {
        let (code, text) = self.sriov(arguments);
        assert_ne!(code, 0, "sriov {arguments}: {text}");
        assert!(text.contains(part), "sriov {arguments}: no `{part}` in {text}");
    }

    /// The interface of a function, as the kernel names it.
    fn interface(&self, bdf: &str) -> String {
        self.shell(&format!("ls /sys/bus/pci/devices/{bdf}/net"))
            .trim()
            .to_owned()
    }

    fn driver(&self, bdf: &str) -> String {
        let link = format!("basename $(readlink /sys/bus/pci/devices/{bdf}/driver || echo none)");
        self.shell(&link).trim().to_owned()
    }

    /// What `ip link` tells of the virtual functions of `pf`.
    fn ip_link(&self, pf: &str) -> Value {
        let text = self.succeed(&["ip", "-j", "link", "show", pf]);
        let links: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
        links[0]["vfinfo_list"].clone()
    }
}

/// Addresses are stable and known to the driver, attributes read back.
fn virtual_functions(machine: &Machine, pf: &str) {
    machine.refused(&format!("create {pf} 8"), "its limit is 7");
    machine.shell(&format!(
        "ip link set {pf} up && ip address add 10.0.2.9/24 dev {pf} && ip route add default via 10.0.2.2"
    ));
    machine.refused(&format!("create {pf} 2"), "default route");
    machine.refused(&format!("bind {PF}"), "default route");
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

/// Two functions in one group: refused alone, taken and given back together.
fn shared_group(machine: &Machine) {
    let (code, text) = machine.sriov(&format!("check {}", PAIR[0]));
    assert_eq!(code, 1, "{text}");
    let part = format!(
        "is not viable: {} (e1000e) in it too; they are functions of one device",
        PAIR[1]
    );
    assert!(text.contains(&part), "{text}");
    machine.refused(&format!("bind {}", PAIR[0]), "--group");
    machine.done(&format!("bind {} --group", PAIR[0]));
    assert_eq!(PAIR.map(|bdf| machine.driver(bdf)), ["vfio-pci", "vfio-pci"]);
    machine.done(&format!("release {} --group", PAIR[0]));
    assert_eq!(PAIR.map(|bdf| machine.driver(bdf)), ["e1000e", "e1000e"]);
}

/// `bind` is killed at every stage; `release` finds the old driver all the same.
fn killed_half_way(machine: &Machine) {
    let program = bin::path("sriov").display().to_string();
    let script = format!(
        "for ms in 00 01 02 03 04 05 06 08 10 14 18 25 40; do
            {program} bind {NIC} > /dev/null & bind=$!
            sleep 0.$ms; kill -9 $bind 2>/dev/null; wait $bind 2>/dev/null
            basename $(readlink /sys/bus/pci/devices/{NIC}/driver || echo none)
            {program} release {NIC} > /dev/null || exit 1
            driver=$(basename $(readlink /sys/bus/pci/devices/{NIC}/driver))
            [ \"$driver\" = e1000e ] || {{ echo \"after $ms: $driver\"; exit 1; }}
            override=$(cat /sys/bus/pci/devices/{NIC}/driver_override)
            [ \"$override\" = '(null)' ] || {{ echo \"after $ms: $override\"; exit 1; }}
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
    machine.shell("modprobe e1000e");
    virtual_functions(&machine, &pf);
    binding(&machine, &pf);
    killed_half_way(&machine);
    shared_group(&machine);
    declared_state(&machine, &pf);
}

#[test]
fn e2e_sriov_tells_what_the_host_lacks() {
    let machine = Machine::boot("intremap=off");
    let (code, text) = machine.sriov("check");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("interrupt remapping is off"), "{text}");
    drop(machine);

    let machine = Machine::boot("intel_iommu=off");
    let (code, text) = machine.sriov("check");
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("the IOMMU is off") && text.contains("remove intel_iommu=off"),
        "{text}"
    );
    machine.refused(&format!("bind {PF}"), "turn on the IOMMU");
    let mut lab = machine.0.command();
    lab.args(["up", "--host", "emulated", "--engine", "vmm"])
        .arg(lab_file());
    let output = bin::finish(&mut lab);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(
        text.contains("this host cannot give devices to guests: the IOMMU is off"),
        "{text}"
    );
    // Without its module there is nothing to load.
    machine.shell("mount -t tmpfs none /lib/modules");
    let (_, text) = machine.sriov("check");
    assert!(text.contains("has no vfio-pci module"), "{text}");
}

/// Ping and iperf3 from a to this address of b.
fn carries(lab: &Lab<'_>, address: &str) {
    lab.run_until("a", &["ping", "-c", "2", "-W", "5", address]);
    let report = lab.run("a", &["iperf3", "-c", address, "-t", "2", "-J"]);
    let report: Value = serde_json::from_str(&report).unwrap_or_else(|error| panic!("{error} in {report}"));
    let rate = &report["end"]["sum_received"]["bits_per_second"];
    assert!(rate.as_f64() > Some(0.0), "{report}");
}

#[test]
fn e2e_sriov_lab_uses_virtual_functions_beside_the_switch() {
    let yard = Yard::new(Place::Emulated);
    let lab = yard.up(&lab_file());
    for (node, index, bdf) in [("a", 0, VFS[0]), ("b", 1, VFS[1])] {
        let nic = lab.node(node)["nics"][0].clone();
        assert_eq!(nic["device"], format!("vf {PF}:{index}"), "{nic}");
        assert_eq!(nic["pci"], bdf, "{nic}");
        assert_eq!(nic["link"], "up", "{nic}");
        // The guest's driver found the address that the physical function was given.
        let mac = nic["mac"].as_str().expect("an address");
        let guest = lab.run(
            node,
            &["sh", "-c", "cat /sys/bus/pci/drivers/igbvf/0*/net/*/address"],
        );
        assert_eq!(guest.trim(), mac);
    }
    lab.run("b", &["iperf3", "-s", "-D"]);
    carries(&lab, "10.1.0.2");
    carries(&lab, "10.0.0.2");
    // Both at once.
    let streaming = lab.start("a", &["iperf3", "-c", "10.0.0.2", "-t", "5"]);
    lab.run_until("a", &["ping", "-c", "3", "-W", "5", "10.1.0.2"]);
    let ended = streaming.finish();
    assert!(
        ended.status.success(),
        "{}{}",
        String::from_utf8_lossy(&ended.stdout),
        String::from_utf8_lossy(&ended.stderr)
    );
    // The host is on the NIC too, through the physical function.
    let address = "ip address add 10.1.0.254/24 dev $(ls /sys/bus/pci/devices/0000:01:00.0/net)";
    bin::succeed(&mut lab.on_host(&["sh", "-c", address]));
    lab.run_until("b", &["ping", "-c", "2", "-W", "5", "10.1.0.254"]);
    lab.down();
    let look = "cat /sys/bus/pci/devices/0000:01:00.0/sriov_numvfs; ls /run/netyard/sriov; \
                ip -br link show dev $(ls /sys/bus/pci/devices/0000:01:00.0/net)";
    let after = bin::succeed(yard.command().args(["host", "exec", "--", "sh", "-c", look]));
    assert!(
        after.starts_with("0\n"),
        "its virtual functions are gone: {after}"
    );
    assert!(!after.contains(".json"), "no record stays: {after}");
    assert!(after.contains("DOWN"), "it is down as it was: {after}");
}
