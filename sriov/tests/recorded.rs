//! The program on recorded trees: what it shows, what it refuses and why, and what it would write.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// A machine's sysfs and procfs, as far as the program reads them.
struct Tree(TempDir);

impl Tree {
    fn new() -> Self {
        let tree = Self(tempfile::tempdir().expect("a folder"));
        tree.file("proc/cpuinfo", "vendor_id : GenuineIntel\n");
        tree.file("proc/cmdline", "root=/dev/vda1\n");
        tree.file("proc/self/status", "CapEff:\t000001ffffffffff\n");
        tree.file(
            "proc/net/route",
            "Iface\tDestination\tGateway\neth9\t00000000\t0100000A\n",
        );
        tree.file("sys/bus/pci/drivers_probe", "");
        tree.file("sys/bus/pci/drivers/vfio-pci/unbind", "");
        tree
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        fs::write(path, text).expect("a file");
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        symlink(target, path).expect("a link");
    }

    fn function(&self, bdf: &str, class: &str, driver: Option<&str>, group: Option<u32>) {
        let dir = format!("sys/bus/pci/devices/{bdf}");
        for (name, text) in [
            ("vendor", "0x8086"),
            ("device", "0x10c9"),
            ("class", class),
            ("driver_override", "(null)"),
        ] {
            self.file(&format!("{dir}/{name}"), text);
        }
        self.file(&format!("{dir}/reset_method"), "flr bus\n");
        if let Some(driver) = driver {
            self.file(&format!("sys/bus/pci/drivers/{driver}/unbind"), "");
            self.link(&format!("{dir}/driver"), &format!("../../drivers/{driver}"));
        }
        if let Some(group) = group {
            self.link(
                &format!("{dir}/iommu_group"),
                &format!("../../../../kernel/iommu_groups/{group}"),
            );
            self.file(&format!("sys/kernel/iommu_groups/{group}/devices/{bdf}"), "");
        }
    }

    /// A physical function with an interface and `count` of 7 virtual functions.
    fn physical(&self, bdf: &str, interface: &str, count: u32) {
        self.function(bdf, "0x020000", Some("igb"), Some(1));
        let dir = format!("sys/bus/pci/devices/{bdf}");
        self.file(&format!("{dir}/sriov_totalvfs"), "7");
        self.file(&format!("{dir}/sriov_numvfs"), &count.to_string());
        self.file(&format!("{dir}/sriov_drivers_autoprobe"), "1");
        self.file(&format!("{dir}/net/{interface}/ifindex"), "2147483000");
        self.file(&format!("{dir}/net/{interface}/address"), "52:54:00:12:34:56");
        self.file(&format!("{dir}/net/{interface}/operstate"), "up");
        for index in 0..count {
            let vf = format!("0000:01:10.{}", index * 2);
            self.function(&vf, "0x020000", Some("igbvf"), Some(20 + index));
            self.link(&format!("{dir}/virtfn{index}"), &format!("../{vf}"));
            self.link(&format!("sys/bus/pci/devices/{vf}/physfn"), &format!("../{bdf}"));
        }
    }

    fn iommu_with_remapping(&self) {
        self.file("sys/kernel/irq/24/chip_name", "IR-PCI-MSI-0000:00:01.0\n");
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sriov"))
            .args(args)
            .arg("--root")
            .arg(self.0.path())
            .arg("--records")
            .arg(self.0.path().join("records"))
            .output()
            .expect("the program starts")
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.0.path().join(path)).expect("a file")
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The root folder's name is not part of what is compared.
fn below(root: &Path, text: &str) -> String {
    text.replace(&format!("{}/", root.display()), "/")
}

#[test]
fn lists_physical_and_virtual_functions() {
    let tree = Tree::new();
    tree.physical("0000:01:00.0", "eth0", 2);
    let shown = stdout(&tree.run(&["list"]));
    for part in ["eth0", "2/7", "eth0:0", "0000:01:10.2", "igbvf"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&tree.run(&["list", "--format", "json"]))).expect("JSON");
    assert_eq!(json[0]["sriov"]["num_vfs"], 2);
    assert_eq!(json[0]["vfs"][1]["virtual_function"]["pf"], "0000:01:00.0");
    assert_eq!(json[0]["vfs"][1]["group_members"][0], "0000:01:10.2");
}

#[test]
fn check_names_the_cure_for_a_host_without_iommu() {
    let tree = Tree::new();
    tree.function("0000:02:00.0", "0x020000", Some("e1000e"), None);
    let output = tree.run(&["check"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    assert!(text.contains("the IOMMU is off"), "{text}");
    assert!(text.contains("intel_iommu=on"), "{text}");
    assert!(text.contains("0000:02:00.0 is in no IOMMU group"), "{text}");
}

#[test]
fn check_tells_interrupt_remapping_apart() {
    let tree = Tree::new();
    tree.function("0000:02:00.0", "0x020000", Some("e1000e"), Some(3));
    let without = tree.run(&["check"]);
    assert_eq!(without.status.code(), Some(1));
    assert!(stdout(&without).contains("interrupt remapping is off"));
    tree.iommu_with_remapping();
    let with = tree.run(&["check"]);
    assert_eq!(with.status.code(), Some(0), "{}", stdout(&with));
}

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
    let printed = below(tree.0.path(), &stdout(&output));
    assert!(printed.starts_with(expected), "{printed}");
    assert_eq!(tree.read("sys/bus/pci/drivers/e1000e/unbind"), "");
    assert!(!tree.0.path().join("records").exists());
}

#[test]
fn create_goes_through_zero() {
    let tree = Tree::new();
    tree.physical("0000:01:00.0", "eth0", 2);
    let output = tree.run(&["create", "eth0", "4", "--dry-run"]);
    let printed = below(tree.0.path(), &stdout(&output));
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
fn a_wrong_name_is_answered_with_the_nearest() {
    let tree = Tree::new();
    tree.physical("0000:01:00.0", "eth0", 0);
    let output = tree.run(&["create", "eht0", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("did you mean \"eth0\"?"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn plans_a_lab() {
    let tree = Tree::new();
    tree.physical("0000:01:00.0", "eth0", 0);
    let lab = tree.0.path().join("x.lab.yaml");
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
