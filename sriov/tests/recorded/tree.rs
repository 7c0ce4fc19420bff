//! A machine's sysfs and procfs, and the program run on them.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Output};

use tempfile::TempDir;

/// A machine's sysfs and procfs, as far as the program reads them.
pub(crate) struct Tree(TempDir);

impl Tree {
    pub(crate) fn new() -> Self {
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

    pub(crate) fn file(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        fs::write(path, text).expect("a file");
    }

    pub(crate) fn link(&self, path: &str, target: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        symlink(target, path).expect("a link");
    }

    pub(crate) fn function(&self, bdf: &str, class: &str, driver: Option<&str>, group: Option<u32>) {
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
    pub(crate) fn physical(&self, bdf: &str, interface: &str, count: u32) {
        self.function(bdf, "0x020000", Some("igb"), Some(1));
        let dir = format!("sys/bus/pci/devices/{bdf}");
        self.file(&format!("{dir}/sriov_totalvfs"), "7");
        self.file(&format!("{dir}/sriov_numvfs"), &count.to_string());
        self.file(&format!("{dir}/sriov_drivers_autoprobe"), "1");
        self.file(&format!("{dir}/net/{interface}/ifindex"), "2147483000");
        self.file(&format!("{dir}/net/{interface}/address"), "52:54:00:12:34:56");
        self.file(&format!("{dir}/net/{interface}/operstate"), "up");
        self.file(&format!("{dir}/net/{interface}/flags"), "0x1003");
        for index in 0..count {
            let vf = format!("0000:01:10.{}", index * 2);
            self.function(&vf, "0x020000", Some("igbvf"), Some(20 + index));
            self.link(&format!("{dir}/virtfn{index}"), &format!("../{vf}"));
            self.link(&format!("sys/bus/pci/devices/{vf}/physfn"), &format!("../{bdf}"));
        }
    }

    pub(crate) fn iommu_with_remapping(&self) {
        self.file("sys/kernel/irq/24/chip_name", "IR-PCI-MSI-0000:00:01.0\n");
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sriov"))
            .args(args)
            .arg("--root")
            .arg(self.0.path())
            .arg("--records")
            .arg(self.0.path().join("records"))
            .output()
            .expect("the program starts")
    }

    pub(crate) fn path(&self, path: &str) -> std::path::PathBuf {
        self.0.path().join(path)
    }

    /// Writes little-endian double words into a function's configuration space.
    pub(crate) fn config(&self, bdf: &str, words: &[(usize, u32)]) {
        let mut config = vec![0; 4096];
        for (offset, word) in words {
            config[*offset..*offset + 4].copy_from_slice(&word.to_le_bytes());
        }
        let path = format!("sys/bus/pci/devices/{bdf}/config");
        self.file(&path, "");
        fs::write(self.path(&path), config).expect("a file");
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.0.path().join(path)).expect("a file")
    }
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The root folder's name is not part of what is compared.
pub(crate) fn below(tree: &Tree, text: &str) -> String {
    text.replace(&format!("{}/", tree.0.path().display()), "/")
}
