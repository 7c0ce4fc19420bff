use std::path::Path;

use super::check;
use crate::lab::Lab;
use crate::paths::RunDir;

const TWO: &str = "\
name: two
switches:
  lan:
    mtu: 1400
nodes:
  a:
    image: base
    nics:
      - switch: lan
        ip: 10.0.0.1/24
  b:
    image: base
    nics:
      - {switch: lan, ip: 10.0.0.2/24, queues: 2}
";

fn run() -> RunDir {
    RunDir::new("/run/netyard")
}

fn good(text: &str) -> Lab {
    check(Path::new("x.lab.yaml"), text, &run()).expect("a lab without faults")
}

/// The problems of `TWO` with `from` replaced by `to`.
fn problems_with(from: &str, to: &str) -> String {
    assert!(TWO.contains(from));
    problems(&TWO.replacen(from, to, 1))
}

fn problems(text: &str) -> String {
    check(Path::new("x.lab.yaml"), text, &run())
        .expect_err("a lab with faults")
        .to_string()
}

#[test]
fn defaults_are_filled_in() {
    let lab = good(TWO);
    let nic = &lab.nodes[0].nics[0];
    let on = nic.on_switch().expect("a NIC on a switch");
    assert_eq!((nic.mtu, on.queues, on.isolate), (1400, 1, false));
    assert_eq!(
        (lab.nodes[0].cpus, lab.nodes[0].memory_mib, lab.nodes[0].agent),
        (1, 512, true)
    );
    assert_eq!(nic.mac, Some(crate::mac::generate("two", "a", 0)));
    assert_eq!(good(&TWO.replacen("name: two\n", "", 1)).name, "x");
    assert_eq!(lab.bridge("lan"), "two.lan");
}

#[test]
fn an_unknown_key_is_refused_at_every_level_with_the_nearest_one() {
    assert_eq!(
        problems_with("nodes:", "nods:"),
        "x.lab.yaml:5:1: unknown key `nods`; did you mean `nodes`? (keys known here: name, switches, nodes)"
    );
    assert_eq!(
        problems_with("mtu: 1400", "mtuu: 1400"),
        "x.lab.yaml:4:5: unknown key `mtuu`; did you mean `mtu`? (keys known here: mtu, ageing, fdb_size, on_full, \
         workers)"
    );
    assert_eq!(
        problems_with("image: base\n", "image: base\n    memroy: 1G\n"),
        "x.lab.yaml:8:5: unknown key `memroy`; did you mean `memory`? (keys known here: image, kernel, initrd, \
         cmdline, agent, engine, cpus, memory, nics, disks)"
    );
    assert_eq!(
        problems_with("image: base\n", "image: base\n    engine: qemuu\n"),
        "x.lab.yaml:8:13: unknown value `qemuu`; did you mean `qemu`? (values known here: vmm, qemu)"
    );
    assert_eq!(
        problems_with("queues: 2", "queue: 2"),
        "x.lab.yaml:14:40: unknown key `queue`; did you mean `queues`? (keys known here: switch, vf, pci, mac, ip, queues, \
         isolate, mtu, vlan, promisc, spoof, control_queue)"
    );
    assert_eq!(
        problems_with("image: base\n", "image: base\n    disks: [{file: x}]\n"),
        "x.lab.yaml:8:14: unknown key `file` (keys known here: path, readonly)"
    );
}

#[test]
fn values_of_the_wrong_kind_say_what_is_needed() {
    assert_eq!(
        problems_with("queues: 2", "queues: two"),
        "x.lab.yaml:14:48: not a whole number of at least 0; write digits only"
    );
    assert_eq!(
        problems_with("queues: 2", "isolate: yes"),
        "x.lab.yaml:14:49: not a truth value; write true or false"
    );
    assert_eq!(
        problems_with("mtu: 1400", "on_full: flod"),
        "x.lab.yaml:4:14: unknown value `flod`; did you mean `flood`? (values known here: flood, evict-lru, \
         evict-fair, drop)"
    );
    assert_eq!(
        problems_with(
            "- {switch: lan, ip: 10.0.0.2/24, queues: 2}",
            "- {ip: 10.0.0.2/24}"
        ),
        "x.lab.yaml:14:9: a NIC is on a switch, a virtual function or a PCI device; add `switch`, `vf` or `pci`"
    );
    assert_eq!(
        problems_with("  b:", "  a:"),
        "x.lab.yaml:11:3: `a` is given twice; rename or remove one of them"
    );
    assert_eq!(
        problems("name: ["),
        "x.lab.yaml:1:7: not understood: expected string scalar"
    );
}

#[test]
fn every_problem_is_reported_in_the_order_of_the_file() {
    let text = TWO
        .replacen("switch: lan\n", "switch: lam\n", 1)
        .replacen("10.0.0.2/24", "10.0.0.2", 1)
        .replacen("queues: 2", "queues: 17", 1);
    assert_eq!(
        problems(&text),
        "x.lab.yaml:9:17: there is no switch `lam`; did you mean `lan`? (switches of this lab: lan)\n\
         x.lab.yaml:14:27: 10.0.0.2 has no prefix length; write e.g. 10.0.0.2/24\n\
         x.lab.yaml:14:45: `queues` cannot be 17; use 1 to 16"
    );
}

#[test]
fn addresses_are_checked() {
    assert_eq!(
        problems_with("10.0.0.2/24", "10.0.0.1/24"),
        "x.lab.yaml:14:27: 10.0.0.1 is the address of NIC a-0 already; give one of them another"
    );
    for (bad, why) in [
        ("10.0.0.0/24", "is the address of the network"),
        ("10.0.0.255/24", "is the broadcast address"),
        ("10.0.0.300/24", "is not an address"),
        ("10.0.0.1/33", "is not an address"),
        ("224.0.0.1/24", "multicast"),
        ("\"::1/64\"", "loopback"),
        ("\"fd00::1\"", "write e.g. fd00::1/64"),
    ] {
        let text = problems_with("10.0.0.2/24", bad);
        assert!(text.contains(why), "{bad}: {text}");
    }
    good(&TWO.replace("10.0.0.2/24", "\"fd00::1/64\""));
    good(&TWO.replace("10.0.0.2/24", "10.0.1.0/31"));
}

#[test]
fn macs_are_unique_even_against_generated_ones() {
    let generated = crate::mac::generate("two", "a", 0);
    assert_eq!(
        problems_with("queues: 2", &format!("mac: \"{generated}\"")),
        format!("x.lab.yaml:9:17: {generated} is the address of NIC b-0 already; give one of them another")
    );
    assert!(problems_with("queues: 2", "mac: \"01:00:00:00:00:00\"").contains("group address"));
}

#[test]
fn limits_are_kept() {
    assert_eq!(
        problems_with("image: base\n", "image: base\n    memory: 64M\n"),
        "x.lab.yaml:8:13: 64M is too little memory; use at least 128M"
    );
    assert_eq!(
        problems_with("image: base\n", "image: base\n    memory: 512\n"),
        "x.lab.yaml:8:13: `512` has no unit; write e.g. 512M or 2G"
    );
    assert_eq!(
        problems_with("image: base\n", "image: base\n    cpus: 64\n"),
        "x.lab.yaml:8:11: `cpus` cannot be 64; use 1 to 32"
    );
    assert_eq!(
        problems_with("queues: 2", "mtu: 1500"),
        "x.lab.yaml:14:45: `mtu` cannot be 1500; use 68 to 1400"
    );
    assert!(problems_with("  b:", "  b_1:").contains("cannot name a node"));
    assert!(problems_with("name: two", "name: two.lan").contains("cannot name a lab"));
}

#[test]
fn a_node_boots_exactly_one_thing() {
    let lab = good(&TWO.replacen("    image: base\n", "", 1));
    assert_eq!(lab.nodes[0].boot, crate::lab::Boot::Image("debian".into()));
    assert!(problems_with("image: base\n", "initrd: /dev/null\n").contains("add `kernel`"));
    assert!(
        problems_with("image: base\n", "image: base\n    kernel: /dev/null\n").contains("remove `image` or")
    );
    assert!(
        problems_with("image: base\n", "image: base\n    initrd: /dev/null\n").contains("has its own initrd")
    );
    assert!(problems_with("image: base\n", "kernel: /no/such\n").contains("cannot be opened"));
    assert!(
        problems_with("image: base\n", "kernel: /dev/zero\n").contains("neither a bzImage nor an ELF file")
    );
    let lab = good(&TWO.replacen("image: base\n", "kernel: /proc/self/exe\n", 1));
    assert!(!lab.nodes[0].agent);
}

#[test]
fn socket_paths_that_are_too_long_are_refused_before_anything_runs() {
    let deep = RunDir::new(format!("/tmp/{}", "x".repeat(80)));
    let text = check(Path::new("x.lab.yaml"), TWO, &deep)
        .unwrap_err()
        .to_string();
    assert!(text.contains("a shorter NETYARD_RUN_DIR"), "{text}");
    assert!(text.contains("x.lab.yaml:6:3: its socket /tmp/xxx"), "{text}");
}

#[test]
fn the_labs_that_come_with_netyard_are_good() {
    let labs = Path::new(env!("CARGO_MANIFEST_DIR")).join("labs");
    let mut seen = 0;
    for entry in std::fs::read_dir(labs).unwrap() {
        super::load(&entry.unwrap().path(), &run()).unwrap();
        seen += 1;
    }
    assert!(seen > 0);
}

/// The problems of `TWO` with the last NIC replaced by this.
fn nic_problems(nic: &str) -> String {
    problems_with("{switch: lan, ip: 10.0.0.2/24, queues: 2}", nic)
}

#[test]
fn a_nic_is_a_virtual_function_or_a_pci_device_as_well() {
    let lab = good(
        "switches: {}\nnodes:\n  a: {nics: [{vf: 'eth0:1', vlan: 7, spoof: true}, {pci: '02:00.0'}]}\n  b: {nics: [{vf: eth0}]}\n",
    );
    let nics = &lab.nodes[0].nics;
    assert_eq!(nics[0].place(), "vf eth0:1");
    assert_eq!(nics[0].mac, Some(crate::mac::generate("x", "a", 0)));
    assert_eq!(
        (nics[1].place().as_str(), nics[1].mac),
        ("pci 0000:02:00.0", None)
    );
    assert!(!nics[0].shares_network(&lab.nodes[1].nics[0]), "another VLAN");
    let image = crate::lab::Boot::Image(crate::image::WITH_DRIVERS.to_owned());
    assert_eq!(lab.nodes[0].boot, image, "an image with drivers for them");
    assert_eq!(lab.warnings().len(), 1, "{:?}", lab.warnings());
    assert!(lab.warnings()[0].contains("NIC a-0: frames from other addresses go out"));
    let json = serde_json::to_string(&lab).expect("JSON");
    assert_eq!(serde_json::from_str::<Lab>(&json).expect("the same"), lab);
}

#[test]
fn a_control_queue_is_served_on_a_switch_and_nowhere_else() {
    for (nic, kind) in [
        (
            "{switch: lan, isolate: true, control_queue: true}",
            "a NIC with a process of its own",
        ),
        ("{vf: eth0, control_queue: true}", "a virtual function"),
        ("{pci: '02:00.0', control_queue: true}", "a PCI device"),
    ] {
        let problems = nic_problems(nic);
        assert!(
            problems.contains(&format!("{kind} has no `control_queue`; remove it")),
            "{problems}"
        );
    }
    let near = nic_problems("{switch: lan, control_que: true}");
    assert!(near.contains("did you mean `control_queue`?"), "{near}");
}

#[test]
fn a_nic_of_the_host_has_keys_of_its_own() {
    assert_eq!(
        nic_problems("{switch: lan, vf: eth0}"),
        "x.lab.yaml:14:27: a NIC cannot have both `switch` and `vf`; remove one of them"
    );
    assert_eq!(
        nic_problems("{vf: eth0, queues: 2}"),
        "x.lab.yaml:14:28: a virtual function has no `queues`; remove it"
    );
    assert_eq!(
        nic_problems("{vf: 'eth0:x'}"),
        "x.lab.yaml:14:14: \"eth0:x\" names no virtual function; write PF or PF:INDEX, such as eth0 or eth0:1"
    );
    assert_eq!(
        nic_problems("{vf: eth0, vlan: 4095}"),
        "x.lab.yaml:14:26: `vlan` cannot be 4095; use 1 to 4094"
    );
    assert_eq!(
        nic_problems("{pci: '01:00.0', mac: '02:00:00:00:00:01'}"),
        "x.lab.yaml:14:31: a PCI device has no `mac`; remove it"
    );
    assert_eq!(
        nic_problems("{pci: eth0}"),
        "x.lab.yaml:14:15: \"eth0\" is no PCI address: write it as DOMAIN:BUS:DEVICE.FUNCTION in hexadecimal, such as \
         0000:01:10.0"
    );
    assert_eq!(
        problems_with("queues: 2", "vlan: 7"),
        "x.lab.yaml:14:46: a NIC on a switch has no `vlan`; remove it"
    );
    assert_eq!(
        nic_problems("{vf: 'eth0:1'}\n      - {vf: 'eth0:1'}"),
        "x.lab.yaml:15:14: VF eth0:1 is NIC b-0 already; give one of them another"
    );
    assert_eq!(
        problems("switches: {}\nnodes:\n  a: {image: debian, nics: [{vf: eth0}]}\n"),
        "x.lab.yaml:3:14: image `debian` has no drivers for NICs of the host; use `debian-hardware`, or leave `image` out"
    );
}
