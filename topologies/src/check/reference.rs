//! The book's page on the lab file, written from what the code knows: keys from the schema, defaults and limits from
//! the checks.

use std::fmt::{Display, Write as _};
use std::ops::RangeInclusive;
use std::path::Path;

use clap::ValueEnum as _;
use vswitch::config::{BridgeSettings, MAX_MTU, MIN_MTU};
use vswitch::fdb::OnFull;

use super::{
    AGEING, CPUS, DEFAULT_IMAGE, HARDWARE_IMAGE, MAX_CMDLINE, MAX_DISKS, MAX_NAME, MAX_NICS, MIN_MEMORY_MIB,
    QUEUES, WORKERS, check,
};
use crate::paths::RunDir;
use crate::schema;

/// Set to anything to write the page anew instead of comparing it.
const UPDATE: &str = "NETYARD_UPDATE_DOCS";

const EXAMPLE: &str = "\
name: office
switches:
  lan: {mtu: 9000}
  guests:
nodes:
  router:
    cpus: 2
    memory: 1G
    nics:
      - {switch: lan, ip: 10.0.0.1/24, queues: 2}
      - {switch: guests, ip: 192.168.7.1/24, isolate: true}
  pc:
    nics: [{switch: lan, ip: 10.0.0.2/24}]
";

/// The least that a lab can be: everything else in it is a default.
const LEAST: &str = "switches: {s: }\nnodes: {n: {nics: [{switch: s}]}}\n";

/// A mapping of the file.
struct Section {
    title: &'static str,
    text: String,
    keys: Vec<Key>,
    /// A lab whose only fault is the key `?` in this mapping.
    with_unknown_key: &'static str,
}

struct Key {
    name: &'static str,
    values: String,
    default: String,
    meaning: &'static str,
}

fn key(name: &'static str, values: impl Into<String>, default: &dyn Display, meaning: &'static str) -> Key {
    Key {
        name,
        values: values.into(),
        default: default.to_string(),
        meaning,
    }
}

fn from_to<T: Display>(range: &RangeInclusive<T>) -> String {
    format!("{} to {}", range.start(), range.end())
}

fn one_of(values: &[OnFull]) -> String {
    let names: Vec<String> = values.iter().map(|value| format!("`{}`", name(*value))).collect();
    names.join(", ")
}

fn name(policy: OnFull) -> String {
    let value = policy.to_possible_value().expect("no policy is hidden");
    value.get_name().to_owned()
}

fn sections() -> Vec<Section> {
    let least = check(Path::new("least.lab.yaml"), LEAST, &RunDir::new("/run/netyard")).expect("a good lab");
    vec![
        whole_file(),
        switch(),
        node(&least.nodes[0]),
        nic(&least.nodes[0].nics[0]),
        disk(),
    ]
}

fn whole_file() -> Section {
    Section {
        title: "The file",
        text: format!(
            "Names of labs, switches and nodes have 1 to {MAX_NAME} letters, digits, `-` and `_`, with a letter or \
             digit at both ends; a node's name is its host name too, so it has no `_`."
        ),
        keys: vec![
            key(
                "name",
                "a name",
                &"the file's name without `.lab.yaml`",
                "the lab's name, unique among those that are up",
            ),
            key(
                "switches",
                "a mapping from names to switches",
                &"required",
                "the switches; `{}` if there are none",
            ),
            key(
                "nodes",
                "a mapping from names to nodes",
                &"required",
                "the virtual machines, at least one",
            ),
        ],
        with_unknown_key: "?: 1",
    }
}

fn switch() -> Section {
    let defaults = BridgeSettings::default();
    let mtu = vswitch::config::DEFAULT_MTU;
    Section {
        title: "A switch",
        text: "On the host it is the bridge `LAB.SWITCH` of `vswitch`. A switch with defaults alone is `{}` or nothing.".to_owned(),
        keys: vec![
            key("mtu", from_to(&(MIN_MTU..=MAX_MTU)), &mtu, "largest IP packet that its ports carry, in bytes"),
            key("ageing", from_to(&AGEING), &defaults.ageing, "seconds until a silent address is forgotten"),
            key("fdb_size", from_to(&vswitch::fdb::SIZE_LIMITS), &defaults.fdb_size, "most addresses in the forwarding database"),
            key("on_full", one_of(OnFull::value_variants()), &name(defaults.on_full), "what a full forwarding database does with a new address: leave it unlearned, replace the oldest entry, replace one of the port that holds the most, or drop its frames"),
            key("workers", from_to(&WORKERS), &defaults.workers, "threads that forward frames"),
        ],
        with_unknown_key: "switches: {s: {?: 1}}",
    }
}

fn node(least: &crate::lab::Node) -> Section {
    Section {
        title: "A node",
        text: format!(
            "A node boots an image or a kernel, not both. It has at most {MAX_NICS} NICs and {MAX_DISKS} disks. Paths \
             are relative to the lab file."
        ),
        keys: vec![
            key(
                "image",
                "a name",
                &format!("`{DEFAULT_IMAGE}`, or `{HARDWARE_IMAGE}` for a node with a NIC of the host"),
                "guest image, built when it is first needed; see `lab image`",
            ),
            key(
                "kernel",
                "a path",
                &"none",
                "bzImage or ELF kernel, instead of an image",
            ),
            key("initrd", "a path", &"none", "initial RAM file system of `kernel`"),
            key(
                "cmdline",
                format!("one line, up to {MAX_CMDLINE} bytes"),
                &"empty",
                "words added to the kernel's command line",
            ),
            key(
                "agent",
                "`true`, `false`",
                &format!("{} with an image, false with a kernel", least.agent),
                "whether the guest runs the agent, which `lab exec` speaks to and `lab up` waits for",
            ),
            key(
                "engine",
                "`vmm`, `qemu`",
                &"what `lab up --engine` says",
                "the virtual machine monitor that runs it, whatever runs the others",
            ),
            key("cpus", from_to(&CPUS), &least.cpus, "virtual CPUs"),
            key(
                "memory",
                format!("an amount such as `512M` or `2G`, at least {MIN_MEMORY_MIB}M"),
                &format!("{}M", least.memory_mib),
                "guest memory",
            ),
            key(
                "nics",
                "a list of NICs",
                &"none",
                "in the order that the guest sees them",
            ),
            key(
                "disks",
                "a list of disks",
                &"none",
                "in the order that the guest sees them",
            ),
        ],
        with_unknown_key: "switches: {}\nnodes: {n: {?: 1}}",
    }
}

fn nic(least: &crate::lab::Nic) -> Section {
    let on = least.on_switch().expect("the least NIC is on a switch");
    Section {
        title: "A NIC",
        text: format!(
            "A NIC is on a `switch`, or it is a virtual function (`vf`) or a PCI device (`pci`) of the host, which `lab up` takes from \
             its driver and `lab down` gives back as it was. A node with one of the latter boots `{HARDWARE_IMAGE}` unless it says \
             otherwise, and these NICs come after those on switches."
        ),
        keys: vec![
            key(
                "switch",
                "a name",
                &"none",
                "the switch of this lab that it is plugged into",
            ),
            key(
                "vf",
                "`PF` or `PF:INDEX`, the physical function by interface or PCI address",
                &"none",
                "a virtual function; without an index any that is free, made if there are none",
            ),
            key(
                "pci",
                "an address such as `0000:02:00.0`",
                &"none",
                "a PCI device",
            ),
            key(
                "mac",
                "six octets such as `02:00:00:00:00:01`",
                &"made from the names of lab and node and the NIC's number",
                "address; two NICs of a lab cannot have the same; a PCI device has its own",
            ),
            key(
                "ip",
                "an address with prefix length such as `10.0.0.1/24`",
                &"none",
                "address that the image's guest gives to the interface",
            ),
            key("queues", from_to(&QUEUES), &on.queues, "queue pairs, on a switch"),
            key(
                "isolate",
                "`true`, `false`",
                &on.isolate,
                "on a switch: a process of its own stands between the machine and the switch, which then never maps the machine's memory",
            ),
            key(
                "mtu",
                format!("{MIN_MTU} to the switch's, or to {}", u16::MAX),
                &format!("the switch's, or {}", vswitch::config::DEFAULT_MTU),
                "largest IP packet, in bytes",
            ),
            key(
                "vlan",
                from_to(&super::nic::VLANS),
                &"none",
                "the VLAN that the physical function puts the virtual function in",
            ),
            key(
                "promisc",
                "`true`, `false`",
                &false,
                "the virtual function is trusted, so that its guest may ask for frames that are not for it; the NIC may filter them all the same",
            ),
            key(
                "spoof",
                "`true`, `false`",
                &"true on a switch, false for a virtual function",
                "whether the machine may send from other addresses than the NIC's; where not, such frames are dropped and counted",
            ),
            key(
                "control_queue",
                "`true`, `false`",
                &false,
                "on a switch: the switch serves the guest's control queue, so that the guest chooses what it receives (addresses, VLANs), how that is spread over its queue pairs and with which offloads; under QEMU, which answers that queue itself, without effect; not with `isolate`",
            ),
        ],
        with_unknown_key: "switches: {}\nnodes: {n: {nics: [{?: 1}]}}",
    }
}

fn disk() -> Section {
    Section {
        title: "A disk",
        text: String::new(),
        keys: vec![
            key("path", "a path", &"required", "raw file or block device"),
            key(
                "readonly",
                "`true`, `false`",
                &false,
                "whether the guest may only read it",
            ),
        ],
        with_unknown_key: "switches: {}\nnodes: {n: {disks: [{?: 1}]}}",
    }
}

fn page() -> String {
    let mut page = format!(
        "# The lab file\n\nA lab file is YAML. `lab validate FILE` checks one and `lab up FILE` starts it; each problem is \
         reported with its line and column, and an unknown key is an error.\n\n```yaml\n{EXAMPLE}```\n"
    );
    for section in sections() {
        writeln!(page, "\n## {}\n", section.title).expect("a string takes all");
        if !section.text.is_empty() {
            writeln!(page, "{}\n", section.text).expect("a string takes all");
        }
        page.push_str("| key | values | default | meaning |\n|---|---|---|---|\n");
        for key in section.keys {
            writeln!(
                page,
                "| `{}` | {} | {} | {} |",
                key.name, key.values, key.default, key.meaning
            )
            .expect("a string takes all");
        }
    }
    page
}

#[test]
fn the_page_lists_the_keys_of_the_schema() {
    for section in sections() {
        let names: Vec<&str> = section.keys.iter().map(|key| key.name).collect();
        let text = section.with_unknown_key.replace('?', "nosuchkey");
        let refused = schema::parse(Path::new("x.lab.yaml"), &text).expect_err("an unknown key is refused");
        let wanted = format!("unknown key `nosuchkey` (keys known here: {})", names.join(", "));
        assert!(
            refused.to_string().contains(&wanted),
            "{}: {refused}",
            section.title
        );
    }
}

#[test]
fn the_example_is_a_good_lab() {
    let lab = check(Path::new("x.lab.yaml"), EXAMPLE, &RunDir::new("/run/netyard")).expect("a good lab");
    assert_eq!((lab.switches.len(), lab.nodes.len()), (2, 2));
}

#[test]
fn the_book_has_the_page() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/reference/lab-file.md");
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, page()).expect("the page is written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == page(),
        "{} is not what the schema says: run the tests once with {UPDATE}=1 and commit the page",
        path.display()
    );
}
