//! Labs whose nodes own functions of NICs.

use netyard_tests::deadline::wait_for;
use netyard_tests::lab::{Lab, Place, Yard};
use netyard_tests::{bin, markdown};
use serde_json::Value;

use crate::{NIC, PAIR, PF, VFS};

/// The host's address on the NICs' wire.
const HOST: &str = "10.1.0.254";

/// A node with NICs of every kind, and one to talk to on the switch.
const WHOLE: &str = "\
name: whole
switches: {lan: }
nodes:
  a:
    memory: 256M
    nics:
      - {pci: '0000:02:00.0', ip: 10.1.0.3/24}
      - {switch: lan, ip: 10.0.0.1/24}
      - {vf: '0000:01:00.0', promisc: true, spoof: true, ip: 10.2.0.1/24}
      - {pci: '0000:04:00.0'}
      - {pci: '0000:04:00.1'}
  b: {memory: 192M, nics: [{switch: lan, ip: 10.0.0.2/24}]}
";

/// Ping and iperf3, both ways, between `node` and this address.
fn carries(lab: &Lab<'_>, node: &str, address: &str) {
    lab.run_until(node, &["ping", "-c", "2", "-W", "5", address]);
    for way in [None, Some("-R")] {
        let mut argv = vec!["iperf3", "-c", address, "-t", "2", "-J"];
        argv.extend(way);
        // A server may still be at the end of another client's run.
        wait_for(&argv.join(" "), Place::Emulated.patience(), || {
            let output = bin::finish(&mut lab.exec(node, &argv));
            let report: Value = serde_json::from_slice(&output.stdout).ok()?;
            let rate = report["end"]["sum_received"]["bits_per_second"].as_f64()?;
            (rate > 0.0).then_some(())
        });
    }
}

/// A shell's output on the emulated host.
fn on_host(yard: &Yard, script: &str) -> String {
    bin::succeed(yard.command().args(["host", "exec", "--", "sh", "-c", script]))
}

fn driver(yard: &Yard, bdf: &str) -> String {
    let script = format!("basename $(readlink /sys/bus/pci/devices/{bdf}/driver || echo none)");
    on_host(yard, &script).trim().to_owned()
}

/// Puts the host on the NICs' wire, with a server for iperf3.
fn host_answers(yard: &Yard) {
    let nic = format!("$(ls /sys/bus/pci/devices/{PF}/net)");
    on_host(
        yard,
        &format!("ip address replace {HOST}/24 dev {nic}; pidof iperf3 || iperf3 -s -D"),
    );
}

/// Nothing of a lab's virtual functions stays.
fn is_as_before(yard: &Yard) {
    let look = format!(
        "cat /sys/bus/pci/devices/{PF}/sriov_numvfs; ls /run/netyard/sriov; \
         ip -br link show dev $(ls /sys/bus/pci/devices/{PF}/net)"
    );
    let after = on_host(yard, &look);
    assert!(
        after.starts_with("0\n"),
        "its virtual functions are gone: {after}"
    );
    assert!(!after.contains(".json"), "no record stays: {after}");
    assert!(after.contains("DOWN"), "it is down as it was: {after}");
}

#[test]
fn e2e_sriov_labs_use_functions_beside_the_switch() {
    let yard = Yard::new(Place::Emulated);
    virtual_functions_beside_the_switch(&yard);
    on_host(&yard, "modprobe e1000e");
    a_group_of_which_a_lab_has_a_part(&yard);
    nics_of_every_kind(&yard);
    a_lab_that_is_killed(&yard);
}

fn virtual_functions_beside_the_switch(yard: &Yard) {
    let lab = yard.up(&markdown::repository().join("topologies/labs/sriov.lab.yaml"));
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
    carries(&lab, "a", "10.1.0.2");
    carries(&lab, "a", "10.0.0.2");
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
    host_answers(yard);
    carries(&lab, "b", HOST);
    lab.down();
    is_as_before(yard);
}

/// A device is not taken from under a driver that the host goes on with, and that driver is left alone.
fn a_group_of_which_a_lab_has_a_part(yard: &Yard) {
    let file = yard.dir().join("part.lab.yaml");
    let text = format!(
        "switches: {{}}\nnodes: {{a: {{nics: [{{pci: '{}'}}]}}}}\n",
        PAIR[0]
    );
    std::fs::write(&file, text).expect("a file");
    let interfaces = || {
        on_host(
            yard,
            &format!("cat /sys/bus/pci/devices/{}/net/*/ifindex", PAIR[0]),
        )
    };
    let before = interfaces();
    let mut up = yard.command();
    up.args(["up", "--host", "emulated", "--engine", "vmm"])
        .arg(&file);
    let output = bin::finish(&mut up);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    let part = format!("is not viable: {} (e1000e) is in it too", PAIR[1]);
    assert!(text.contains(&part), "{text}");
    assert_eq!(interfaces(), before, "the interface was not made anew");
}

fn nics_of_every_kind(yard: &Yard) {
    let file = yard.dir().join("whole.lab.yaml");
    std::fs::write(&file, WHOLE).expect("a file");
    let mac = on_host(yard, &format!("cat /sys/bus/pci/devices/{NIC}/net/*/address"));
    let mut up = yard.command();
    up.args(["up", "--host", "emulated", "--engine", "vmm"])
        .arg(&file);
    let output = bin::finish(&mut up);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let lab = yard.adopt("whole");
    assert!(output.status.success(), "{told}");
    for part in [
        "warning: NIC a-2: 0000:01:00.0 filters by address",
        "warning: NIC a-2: frames from other addresses go out, but 0000:01:00.0 delivers answers to the VF's own address alone",
    ] {
        assert!(told.contains(part), "no `{part}` in {told}");
    }
    let pf = on_host(
        yard,
        &format!("ip -j link show dev $(ls /sys/bus/pci/devices/{PF}/net)"),
    );
    let pf: Value = serde_json::from_str(&pf).unwrap_or_else(|error| panic!("{error} in {pf}"));
    let vf = &pf[0]["vfinfo_list"][0];
    assert_eq!(
        (&vf["trust"], &vf["spoofchk"]),
        (&Value::Bool(true), &Value::Bool(false))
    );

    let nic = lab.node("a")["nics"][0].clone();
    assert_eq!(nic["device"], format!("pci {NIC}"), "{nic}");
    assert_eq!(nic["pci"], NIC, "{nic}");
    assert_eq!(nic["mac"], mac.trim(), "{nic}");
    assert_eq!(nic["link"], "up", "{nic}");
    let shown = bin::succeed(yard.command().args(["status", "--lab", "whole"]));
    assert!(shown.contains(&format!("pci {NIC}")), "{shown}");
    host_answers(yard);
    // No TCP: the gateway on the NICs' wire resets connections to every address, this one too.
    lab.run_until("a", &["ping", "-c", "5", "-s", "1400", "-W", "5", HOST]);
    lab.run("b", &["iperf3", "-s", "-D"]);
    carries(&lab, "a", "10.0.0.2");
    // Functions of one device come in one slot.
    let slots = lab.run("a", &["sh", "-c", "cd /sys/bus/pci/drivers/e1000e; echo 0*"]);
    let slots: Vec<&str> = slots.split_whitespace().collect();
    assert_eq!(slots.len(), 3, "{slots:?}");
    assert_eq!(
        (slots[1].strip_suffix(".0"), slots[1].len()),
        (slots[2].strip_suffix(".1"), 12),
        "{slots:?}"
    );
    lab.down();
    for bdf in [NIC, PAIR[0], PAIR[1]] {
        assert_eq!(driver(yard, bdf), "e1000e", "{bdf}");
    }
    let again = on_host(yard, &format!("cat /sys/bus/pci/devices/{NIC}/net/*/address"));
    assert_eq!(again, mac);
    is_as_before(yard);
}

/// `lab up` is killed as soon as its machine runs. `lab down` gives the device back to the driver that it had, and one that was
/// bound to vfio-pci by hand before stays so. Of the latter nobody knew the MAC, and so the interface that has its IP address.
fn a_lab_that_is_killed(yard: &Yard) {
    let lab = bin::path("lab").display().to_string();
    let sriov = bin::path("sriov").display().to_string();
    let file =
        format!("switches: {{}}\nnodes: {{a: {{memory: 192M, nics: [{{pci: '{NIC}', ip: 10.1.0.9/24}}]}}}}");
    for (before, prepare, told) in [
        ("e1000e", String::new(), "!"),
        ("vfio-pci", format!("{sriov} bind {NIC};"), ""),
    ] {
        on_host(
            yard,
            &format!(
                "cd /tmp; echo \"{file}\" > killed.lab.yaml; {prepare}
                 {lab} up killed.lab.yaml --engine vmm > up.log 2>&1 & up=$!
                 until pidof vmm > /dev/null; do kill -0 $up || {{ cat up.log; exit 1; }}; sleep 0.1; done
                 kill -9 $up; wait $up
                 {told} grep 'NIC a-0 has no driver on this host, so its MAC is not known' up.log || exit 1
                 [ $(basename $(readlink /sys/bus/pci/devices/{NIC}/driver)) = vfio-pci ] || exit 1
                 {lab} down --now --lab killed"
            ),
        );
        assert_eq!(driver(yard, NIC), before);
    }
    on_host(yard, &format!("{sriov} release {NIC}"));
    assert_eq!(driver(yard, NIC), "e1000e");
}

#[test]
fn e2e_sriov_lab_under_qemu() {
    let yard = Yard::new(Place::Emulated);
    let file = yard.dir().join("q.lab.yaml");
    let text = format!(
        "switches: {{lan: }}\nnodes: {{a: {{memory: 192M, nics: [{{vf: '{PF}', ip: 10.1.0.1/24}}, {{switch: lan}}]}}}}\n"
    );
    std::fs::write(&file, text).expect("a file");
    let mut up = yard.command();
    up.args(["up", "--host", "emulated", "--engine", "qemu"])
        .arg(&file);
    bin::succeed(&mut up);
    let lab = yard.adopt("q");
    assert_eq!(lab.node("a")["engine"], "qemu");
    host_answers(&yard);
    carries(&lab, "a", HOST);
    lab.down();
    is_as_before(&yard);
}
