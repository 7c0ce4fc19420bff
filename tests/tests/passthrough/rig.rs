//! A guest with the API that devices come and go by, the host around it, and the machine around that.

use std::process::{Command, Output};
use std::time::Duration;

use netyard_tests::bin;
use netyard_tests::deadline::wait_for;
use netyard_tests::lab::{Lab, Yard};
use serde_json::Value;

use crate::kernel;
use crate::{E1000E, GUEST, HOST, NIC, VF, VF_MAC};

pub(crate) const PATIENCE: Duration = Duration::from_mins(4);

/// What the monitor calls a device that a test pushes into the NIC's slot.
const PUSHED: &str = "pushed";

/// A lab with one node, and the host that it is in.
pub(crate) struct Rig<'a> {
    pub(crate) lab: Lab<'a>,
}

impl<'a> Rig<'a> {
    /// Brings up the lab: one guest, one of whose two CPUs is off until it is needed, so that it boots sooner.
    pub(crate) fn new(yard: &'a Yard) -> Self {
        let path = yard.dir().join("pass.lab.yaml");
        let (kernel, initrd) = kernel::unpacked(yard);
        let text = format!(
            "name: pass\nswitches: {{lan: }}\nnodes:\n  a: {{kernel: {}, initrd: {}, agent: true, cmdline: maxcpus=1 quiet, \
             cpus: 2, memory: 384M, nics: [{{switch: lan, ip: 10.0.0.1/24}}]}}\n",
            kernel.display(),
            initrd.display()
        );
        std::fs::write(&path, text).unwrap();
        Self { lab: yard.up(&path) }
    }

    /// A command in a shell on the host, whatever comes of it.
    pub(crate) fn try_host(&self, script: &str) -> Output {
        bin::finish(&mut self.lab.on_host(&["sh", "-c", script]))
    }

    pub(crate) fn host(&self, script: &str) -> String {
        bin::succeed(&mut self.lab.on_host(&["sh", "-c", script]))
    }

    pub(crate) fn host_until(&self, script: &str) {
        wait_for(script, PATIENCE, || {
            self.try_host(script).status.success().then_some(())
        });
    }

    pub(crate) fn guest(&self, script: &str) -> String {
        self.lab.run("a", &["sh", "-c", script])
    }

    pub(crate) fn guest_until(&self, script: &str) -> String {
        self.lab.run_until("a", &["sh", "-c", script])
    }

    pub(crate) fn api(&self) -> String {
        format!("/run/netyard/labs/{}/nodes/a/api.sock", self.lab.name())
    }

    pub(crate) fn device(&self, words: &[&str]) -> Command {
        let api = self.api();
        let argv = [&["vmm", "device", "--api-socket", &api], words].concat();
        self.lab.on_host(&argv)
    }

    pub(crate) fn plug(&self, device: &str) {
        self.plug_together(&[device]);
    }

    pub(crate) fn plug_together(&self, devices: &[&str]) {
        bin::succeed(&mut self.device(&[&["add"], devices].concat()));
    }

    pub(crate) fn unplug(&self, device: &str) {
        bin::succeed(&mut self.device(&["del", device]));
    }

    pub(crate) fn devices(&self) -> String {
        bin::succeed(&mut self.device(&["list"]))
    }

    /// Runs `vmm ctl`.
    pub(crate) fn ctl(&self, action: &str) -> String {
        bin::succeed(
            &mut self
                .lab
                .on_host(&["vmm", "ctl", "--api-socket", &self.api(), action]),
        )
    }

    /// What the API tells of a device.
    fn told(&self, device: &str, what: &str) -> String {
        let info: Value = serde_json::from_str(&self.ctl("info")).expect("JSON");
        let devices = info["devices"].as_array().cloned().unwrap_or_default();
        let found = devices.iter().find(|entry| entry["device"] == device);
        let text = found.and_then(|entry| entry[what].as_str());
        text.unwrap_or_else(|| panic!("no {device} in {info}")).to_owned()
    }

    pub(crate) fn state(&self, device: &str) -> String {
        self.told(device, "state")
    }

    /// Its address in the guest.
    pub(crate) fn place(&self, device: &str) -> String {
        self.told(device, "guest_address")
    }

    pub(crate) fn state_becomes(&self, device: &str, state: &str) {
        wait_for(&format!("{device} is {state}"), PATIENCE, || {
            (self.state(device) == state).then_some(())
        });
    }

    /// A reset of the guest, until it is up again.
    pub(crate) fn restart_guest(&self) {
        let id = "cat /proc/sys/kernel/random/boot_id";
        let before = self.guest(id);
        self.ctl("reset");
        self.guest_until(&format!("[ $({id}) != {} ]", before.trim()));
    }

    /// Switches the guest's second CPU on.
    pub(crate) fn second_cpu(&self) {
        self.guest("echo 1 > /sys/devices/system/cpu/cpu1/online");
    }

    /// Puts a device of this kind into the slot of the NIC without virtual functions, which is empty.
    pub(crate) fn push(&self, model: &str) {
        self.tell(&format!("device_add {model},id={PUSHED},bus=rp2"), "");
        self.host_until(&format!("[ -e /sys/bus/pci/devices/{E1000E} ]"));
    }

    /// Plugs another one into what was pushed.
    pub(crate) fn push_onto(&self, model: &str) {
        self.tell(&format!("device_add {model},bus={PUSHED}.0"), "");
    }

    /// Empties the slot again.
    pub(crate) fn pull(&self) {
        self.tell(&format!("device_del {PUSHED}"), "");
        self.host_until(&format!("[ ! -e /sys/bus/pci/devices/{E1000E} ]"));
    }

    /// Has what was pushed report an error.
    pub(crate) fn report_error(&self, error: &str) {
        self.tell(&format!("pcie_aer_inject_error {PUSHED} {error}"), "OK");
    }

    fn tell(&self, line: &str, answer: &str) {
        let said = self.lab.yard().monitor().run(line);
        assert!(
            said.starts_with(answer) && said.is_empty() == answer.is_empty(),
            "{line}: {said}"
        );
    }

    /// Gives a device to vfio-pci.
    pub(crate) fn bind(&self, device: &str) {
        self.host(&format!(
            "modprobe vfio-pci; cd /sys/bus/pci/devices/{device}; echo vfio-pci > driver_override; \
             [ ! -e driver ] || echo {device} > driver/unbind; echo {device} > /sys/bus/pci/drivers_probe"
        ));
    }

    /// Gives a device back to the host's own driver.
    pub(crate) fn release(&self, device: &str) {
        self.host(&format!(
            "cd /sys/bus/pci/devices/{device}; echo > driver_override; [ ! -e driver ] || echo {device} > driver/unbind; \
             echo {device} > /sys/bus/pci/drivers_probe; [ -e driver ]"
        ));
    }

    /// Kibibytes that the VMM's devices keep in place.
    pub(crate) fn pinned(&self) -> u64 {
        let text = self.host("sed -n 's/^VmLck:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$(pidof vmm)/status");
        text.trim().parse().expect("a number of kibibytes")
    }

    /// The guest's driver has a NIC with this driver, and it reaches `peer`.
    pub(crate) fn guest_pings(&self, load: &str, driver: &str, address: &str, peer: &str) {
        self.guest(load);
        let nic = format!(
            "nic=$(for n in /sys/class/net/*; do [ $(basename $(readlink $n/device/driver)) = {driver} ] && basename $n; done \
             2>/dev/null | head -1)"
        );
        self.guest_until(&format!(
            "{nic}; ip link set $nic up && ip address replace {address} dev $nic && ping -c 2 -W 5 {peer}"
        ));
    }

    /// How many interrupts of a kind each CPU of the guest has had from NICs and drives of a name.
    pub(crate) fn interrupts(&self, kind: &str, name: &str) -> Vec<Vec<u64>> {
        let text = self.guest(&format!("grep -i '{kind}.*{name}' /proc/interrupts"));
        let counts = |line: &str| {
            let words = line.split_whitespace().skip(1);
            words.map_while(|word| word.parse().ok()).collect()
        };
        text.lines().map(counts).collect()
    }

    pub(crate) fn virtual_function(&self) {
        self.host(&format!(
            "modprobe igb; cd /sys/bus/pci/devices/{NIC}; nic=$(ls net); ip link set $nic up; \
             ip address replace {HOST}/24 dev $nic; echo 1 > sriov_numvfs; ip link set $nic vf 0 mac {VF_MAC}"
        ));
        self.bind(VF);
    }

    pub(crate) fn vf_works(&self) {
        self.guest_pings("modprobe igbvf", "igbvf", GUEST, HOST);
    }
}
