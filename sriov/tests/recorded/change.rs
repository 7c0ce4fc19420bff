//! What is refused and why, what would be written, and what is.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use crate::tree::{Tree, below, stderr, stdout};

#[test]
fn a_group_that_is_not_viable_names_who_is_in_it() {
    let tree = Tree::new();
    tree.iommu_with_remapping();
    tree.function("0000:02:00.0", "0x020000", Some("e1000e"), Some(3));
    tree.function("0000:02:00.1", "0x010802", Some("nvme"), Some(3));
    tree.function("0000:00:1c.0", "0x060400", Some("pcieport"), Some(3));
    let checked = stdout(&tree.run(&["check", "0000:02:00.0"]));
    assert!(
        checked.contains("group 3 of 0000:02:00.0 is not viable: 0000:02:00.1 (nvme)"),
        "{checked}"
    );
    assert!(
        !checked.contains("0000:00:1c.0 (pcieport)"),
        "a bridge does no harm: {checked}"
    );

    let refused = tree.run(&["bind", "0000:02:00.0"]);
    assert_eq!(refused.status.code(), Some(1));
    let text = stderr(&refused);
    assert!(
        text.contains("0000:02:00.1 (nvme)") && text.contains("--group"),
        "{text}"
    );
    assert_eq!(
        tree.read("sys/bus/pci/devices/0000:02:00.0/driver_override"),
        "(null)",
        "nothing was written"
    );
}

#[test]
fn a_dry_run_prints_each_write_and_does_none() {
    let tree = Tree::new();
    tree.function("0000:02:00.0", "0x020000", Some("e1000e"), Some(3));
    let output = tree.run(&["bind", "0000:02:00.0", "--dry-run"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let expected = "\
echo \"vfio-pci\" > /sys/bus/pci/devices/0000:02:00.0/driver_override
echo \"0000:02:00.0\" > /sys/bus/pci/drivers/e1000e/unbind
echo \"0000:02:00.0\" > /sys/bus/pci/drivers_probe
";
    let printed = below(&tree, &stdout(&output));
    assert!(printed.starts_with(expected), "{printed}");
    assert_eq!(tree.read("sys/bus/pci/drivers/e1000e/unbind"), "");
    assert!(!tree.path("records").exists());
}

#[test]
fn create_goes_through_zero() {
    let tree = Tree::new();
    tree.physical("0000:01:00.0", "eth0", 2);
    let output = tree.run(&["create", "eth0", "4", "--dry-run"]);
    let printed = below(&tree, &stdout(&output));
    let counts: Vec<&str> = printed
        .lines()
        .filter(|line| line.ends_with("sriov_numvfs"))
        .collect();
    let file = "/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs";
    assert_eq!(
        counts,
        [format!("echo \"0\" > {file}"), format!("echo \"4\" > {file}")],
        "{printed}"
    );
}

#[test]
fn create_refuses_more_than_there_can_be() {
    let tree = Tree::new();
    tree.physical("0000:01:00.0", "eth0", 0);
    let output = tree.run(&["create", "eth0", "8"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("its limit is 7"), "{}", stderr(&output));
    assert_eq!(tree.read("sys/bus/pci/devices/0000:01:00.0/sriov_numvfs"), "0");
}

#[test]
fn create_refuses_the_default_route() {
    let tree = Tree::new();
    tree.physical("0000:01:00.0", "eth9", 0);
    let output = tree.run(&["create", "eth9", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("--allow-default-route"),
        "{}",
        stderr(&output)
    );
    let allowed = tree.run(&["create", "eth9", "1", "--allow-default-route", "--dry-run"]);
    assert_eq!(allowed.status.code(), Some(0), "{}", stderr(&allowed));
}

#[test]
fn plans_a_lab() {
    let tree = Tree::new();
    tree.physical("0000:01:00.0", "eth0", 0);
    let lab = tree.path("x.lab.yaml");
    fs::write(
        &lab,
        "nodes: {a: {nics: [{vf: eth0, vlan: 7}]}, b: {nics: [{vf: 'eth0:0'}]}}",
    )
    .expect("a file");
    let output = tree.run(&["plan", lab.to_str().expect("UTF-8"), "--format", "json"]);
    let plan: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!(plan["declared"]["pfs"]["eth0"]["vfs"], 2);
    assert_eq!(plan["declared"]["pfs"]["eth0"]["vf"]["1"]["set"]["vlan"], 7);
    assert_eq!(plan["allocations"][1]["node"], "b");
}
#[test]
fn other_drivers_that_leave_dma_to_vfio_do_no_harm() {
    let tree = Tree::new();
    tree.function("0000:02:00.0", "0x020000", Some("e1000e"), Some(3));
    tree.function("0000:02:00.1", "0x020000", Some("mlx5_vfio_pci"), Some(3));
    tree.function("0000:00:1c.0", "0x060400", Some("pcieport"), Some(3));
    let output = tree.run(&["bind", "0000:02:00.0", "--dry-run"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    tree.function("0000:00:1f.0", "0x060100", Some("lpc_ich"), Some(3));
    let refused = tree.run(&["bind", "0000:02:00.0", "--dry-run"]);
    assert!(
        stderr(&refused).contains("0000:00:1f.0 (lpc_ich)"),
        "{}",
        stderr(&refused)
    );
}

#[test]
fn what_the_host_needs_is_not_given_away() {
    let tree = Tree::new();
    tree.physical("0000:01:00.0", "eth0", 0);
    tree.file("sys/class/net/eth0/upper_eth9/ifindex", "5");
    let route = tree.run(&["bind", "0000:01:00.0"]);
    assert_eq!(route.status.code(), Some(1));
    let text = stderr(&route);
    assert!(
        text.contains("eth0 (0000:01:00.0) carries this host's default route"),
        "{text}"
    );
    let allowed = tree.run(&["bind", "0000:01:00.0", "--allow-default-route", "--dry-run"]);
    assert_eq!(allowed.status.code(), Some(0), "{}", stderr(&allowed));
    let created = tree.run(&["create", "eth0", "1"]);
    assert!(
        stderr(&created).contains("default route"),
        "a bridge over it carries the route: {}",
        stderr(&created)
    );

    tree.function("0000:03:00.0", "0x010802", Some("nvme"), Some(4));
    tree.file("sys/bus/pci/devices/0000:03:00.0/nvme/nvme0n1p1/size", "1");
    tree.link(
        "sys/class/block/nvme0n1p1",
        "../../bus/pci/devices/0000:03:00.0/nvme/nvme0n1p1",
    );
    tree.file("proc/self/mounts", "/dev/nvme0n1p1 /home ext4 rw 0 0\n");
    let mounted = tree.run(&["bind", "0000:03:00.0"]);
    assert!(
        stderr(&mounted).contains("/dev/nvme0n1p1, which is mounted on /home"),
        "{}",
        stderr(&mounted)
    );
}

#[test]
fn release_after_a_crash_half_way_knows_the_driver() {
    let tree = Tree::new();
    let bdf = "0000:02:00.0";
    // Unbound, override set, record kept: `bind` was killed before the probe.
    tree.function(bdf, "0x020000", None, Some(3));
    let dir = format!("sys/bus/pci/devices/{bdf}");
    tree.file(&format!("{dir}/driver_override"), "vfio-pci");
    tree.file(
        &format!("records/{bdf}.json"),
        r#"{"bdf":"0000:02:00.0","driver":"e1000e","driver_override":null}"#,
    );
    tree.run(&["bind", bdf, "--dry-run"]);
    let output = tree.run(&["release", bdf, "--dry-run"]);
    let printed = below(&tree, &stdout(&output));
    assert!(
        printed.contains("/driver_override") && printed.contains("/sys/bus/pci/drivers_probe"),
        "{printed}"
    );
}

#[test]
fn a_function_that_had_no_driver_gets_none() {
    let tree = Tree::new();
    let bdf = "0000:02:00.0";
    tree.function(bdf, "0x020000", Some("vfio-pci"), Some(3));
    tree.file(
        &format!("records/{bdf}.json"),
        r#"{"bdf":"0000:02:00.0","driver":null,"driver_override":null}"#,
    );
    let output = tree.run(&["release", bdf]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(tree.read("sys/bus/pci/drivers/vfio-pci/unbind"), bdf);
    assert_eq!(tree.read("sys/bus/pci/drivers_probe"), "");
    assert!(!tree.path(&format!("records/{bdf}.json")).exists());
}

#[test]
fn destroyed_functions_are_forgotten() {
    let tree = Tree::new();
    tree.physical("0000:01:00.0", "eth0", 1);
    tree.file(
        "records/0000:01:10.0.json",
        r#"{"bdf":"0000:01:10.0","driver":"igbvf","driver_override":null}"#,
    );
    let output = tree.run(&["destroy", "eth0"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!tree.path("records/0000:01:10.0.json").exists());
}

#[test]
fn a_dry_run_of_create_tells_addresses_and_probes() {
    let tree = Tree::new();
    tree.physical("0000:01:00.0", "eth0", 0);
    tree.config("0000:01:00.0", &[(0x100, 0x0001_0010), (0x114, 0x0002_0080)]);
    tree.file("sys/bus/pci/devices/0000:01:00.0/net/eth0/flags", "0x1002");
    let output = tree.run(&["create", "eth0", "2", "--dry-run"]);
    let printed = below(&tree, &stdout(&output));
    let lines: Vec<&str> = printed.lines().collect();
    let dir = "/sys/bus/pci/devices/0000:01:00.0";
    let expected = [
        format!("echo \"0\" > {dir}/sriov_drivers_autoprobe"),
        "ip link set eth0 up".to_owned(),
        format!("echo \"2\" > {dir}/sriov_numvfs"),
        "ip link set eth0 vf 0 mac ".to_owned(),
        "ip link set eth0 vf 1 mac ".to_owned(),
        format!("echo \"1\" > {dir}/sriov_drivers_autoprobe"),
        "echo \"0000:01:10.0\" > /sys/bus/pci/drivers_probe".to_owned(),
        "echo \"0000:01:10.2\" > /sys/bus/pci/drivers_probe".to_owned(),
    ];
    assert_eq!(lines.len(), expected.len(), "{printed}");
    for (line, expected) in lines.iter().zip(&expected) {
        assert!(line.starts_with(expected.as_str()), "{line} is not {expected}");
    }
    assert_eq!(tree.read("sys/bus/pci/devices/0000:01:00.0/sriov_numvfs"), "0");
}

#[test]
fn plans_around_what_others_use() {
    let tree = Tree::new();
    tree.physical("0000:01:00.0", "eth0", 2);
    tree.link("proc/77/fd/9", "/dev/vfio/20");
    tree.file("proc/77/comm", "vmm\n");
    let lab = tree.path("x.lab.yaml");
    let plan = |text: &str| {
        fs::write(&lab, text).expect("a file");
        tree.run(&["plan", lab.to_str().expect("UTF-8"), "--format", "json"])
    };
    let output = plan("nodes: {a: {nics: [{vf: '0000:01:00.0'}, {vf: eth0, promisc: true}]}}");
    let json: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    let indexes: Vec<_> = json["allocations"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| one["index"].clone())
        .collect();
    assert_eq!(indexes, [1, 2], "{json}");
    assert_eq!(
        json["declared"]["pfs"]["0000:01:00.0"]["vf"]["2"]["set"]["trust"],
        true
    );
    for (text, part) in [
        ("nodes: {a: {nics: [{vf: 'eth0:0'}]}}", "vmm (pid 77) uses"),
        (
            "nodes: {a: {nics: [{vf: 'eth0:3'}]}, b: {nics: [{vf: '0000:01:00.0:3'}]}}",
            "nodes a and b both want VF 3",
        ),
        ("nodes: {a: {nics: [{vf: 'eth0:7'}]}}", "which can have 7"),
    ] {
        let output = plan(text);
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
}

#[test]
fn functions_that_appear_late_are_waited_for() {
    let tree = Tree::new();
    let pf = "0000:01:00.0";
    tree.function(pf, "0x020000", Some("igb"), Some(1));
    let dir = format!("sys/bus/pci/devices/{pf}");
    tree.file(&format!("{dir}/sriov_totalvfs"), "7");
    tree.file(&format!("{dir}/sriov_numvfs"), "0");
    let (count, links) = (tree.path(&format!("{dir}/sriov_numvfs")), tree.path(&dir));
    let kernel = std::thread::spawn(move || {
        while fs::read_to_string(&count).expect("a file") != "2" {
            std::thread::sleep(Duration::from_millis(5));
        }
        for index in 0..2 {
            std::thread::sleep(Duration::from_millis(100));
            let link = links.join(format!("virtfn{index}"));
            symlink(format!("../0000:01:10.{}", index * 2), link).expect("a link");
        }
    });
    let output = tree.run(&["create", pf, "2"]);
    kernel.join().expect("it ended");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("0000:01:00.0:1  0000:01:10.2"),
        "{}",
        stdout(&output)
    );
}
