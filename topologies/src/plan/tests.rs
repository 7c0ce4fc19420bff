use std::path::Path;

use super::*;
use crate::engine::{Engine, EngineKind, Engines, Qemu, Vmm};

fn commands(plan: &Plan, engine: impl Engine + 'static) -> Vec<String> {
    plan.commands(&Engines::new(Box::new(engine)))
}

fn plan(text: &str) -> Plan {
    let run = RunDir::new("/run/netyard");
    let lab = crate::check::check(Path::new("x.lab.yaml"), text, &run).expect("a lab without faults");
    Plan::new(&lab, &run, &[], |_| BootFiles {
        kernel: "/i/vmlinuz".into(),
        initrd: Some("/i/initrd.cpio".into()),
    })
}

const LAB: &str = "
name: t
switches:
  lan: {ageing: 60, fdb_size: 1024, on_full: evict-lru, workers: 2}
  dmz: {mtu: 9000}
nodes:
  a:
    image: base
    cpus: 2
    cmdline: quiet
    nics:
      - {switch: lan, ip: 10.0.0.1/24, queues: 2, control_queue: true, mac: \"02:00:00:00:00:01\"}
      - {switch: dmz, isolate: true, spoof: false, mac: \"02:00:00:00:00:02\"}
    disks: [{path: /dev/null, readonly: true}]
";

#[test]
fn switches_come_first_then_the_processes_between_then_machines() {
    let plan = plan(LAB);
    let commands = commands(&plan, Vmm::new("vmm"));
    let dir = "/run/netyard/labs/t/nodes/a";
    let channels = (0..8)
        .map(|n| format!("--channel name=netyard.agent.{n},socket={dir}/agent.{n}.sock"))
        .collect::<Vec<_>>()
        .join(" ");
    let expected = [
        "vswitch up t.lan --ageing 60 --fdb-size 1024 --on-full evict-lru --workers 2".to_owned(),
        "vswitch port add t.lan a-0 --queues 2 --mac 02:00:00:00:00:01 --mtu 1500 --control-queue".to_owned(),
        "vswitch up t.dmz".to_owned(),
        "vswitch port add t.dmz a-1 --queues 1 --mac 02:00:00:00:00:02 --mtu 9000 --anti-spoof".to_owned(),
        "vhost-net-backend --socket /run/netyard/labs/t/nodes/a/isolate.1.sock \
         --connect /run/netyard/vswitch/t.dmz/ports/a-1.sock --queues 1 --mac 02:00:00:00:00:02 --mtu 9000"
            .to_owned(),
        format!(
            "vmm run --name t.a --kernel /i/vmlinuz --initrd /i/initrd.cpio \
             --cmdline 'console=ttyS0 panic=1 netyard.hostname=a \
             netyard.nic=02:00:00:00:00:01,10.0.0.1/24,1500 netyard.nic=02:00:00:00:00:02,,9000 quiet' \
             --cpus 2 --memory 512M \
             --net socket=/run/netyard/vswitch/t.lan/ports/a-0.sock,mac=02:00:00:00:00:01,queues=2 \
             --net socket=/run/netyard/labs/t/nodes/a/isolate.1.sock,mac=02:00:00:00:00:02,queues=1 \
             --disk path=/dev/null,readonly=on {channels} \
             --serial socket=/run/netyard/labs/t/nodes/a/serial.sock,log=/run/netyard/labs/t/nodes/a/serial.log \
             --api-socket /run/netyard/labs/t/nodes/a/api.sock"
        ),
    ];
    assert_eq!(commands, expected);
    let held: Vec<bool> = plan
        .switches
        .iter()
        .map(|switch| switch.ports[0].request(&Vmm::new("vmm")).anti_spoof)
        .collect();
    assert_eq!(held, [false, true]);
}

#[test]
fn qemu_gets_shared_memory_and_one_vhost_user_device_for_each_nic() {
    let plan = plan(LAB);
    let line = commands(&plan, Qemu::new("qemu", (10, 0), false)).pop().unwrap();
    for part in [
        "qemu -name t.a -nodefaults ",
        "-machine q35,memory-backend=ram -accel tcg,thread=multi -cpu max -smp 2 -m 512M \
         -object memory-backend-memfd,id=ram,size=512M,share=on ",
        "-chardev socket,id=port0,path=/run/netyard/vswitch/t.lan/ports/a-0.sock,reconnect-ms=200 \
         -netdev vhost-user,id=net0,chardev=port0,queues=2 \
         -device virtio-net-pci,netdev=net0,mac=02:00:00:00:00:01,mq=on,packed=on,vectors=6,romfile= ",
        "path=/run/netyard/labs/t/nodes/a/isolate.1.sock,reconnect-ms=200 \
         -netdev vhost-user,id=net1,chardev=port1,queues=1 \
         -device virtio-net-pci,netdev=net1,mac=02:00:00:00:00:02,mq=off,packed=on,vectors=4,romfile= ",
        "-device virtserialport,bus=agents.0,nr=8,chardev=agent7,name=netyard.agent.7 ",
        "-drive if=none,id=disk0,format=raw,readonly=on,file=/dev/null -device virtio-blk-pci,drive=disk0",
    ] {
        assert!(line.contains(part), "no `{part}` in {line}");
    }
    assert!(!line.contains("-netdev user"), "no user networking: {line}");
    let hardware = commands(&plan, Qemu::new("qemu", (10, 0), true)).pop().unwrap();
    assert!(hardware.contains("-accel kvm -cpu host "));
}

#[test]
fn each_node_runs_under_the_engine_that_it_names() {
    let plan = plan(
        "name: t\nswitches: {lan: }\nnodes:\n\
         \x20 a: {nics: [{switch: lan, control_queue: true}]}\n\
         \x20 b: {engine: qemu, nics: [{switch: lan, control_queue: true}]}\n\
         \x20 c: {engine: vmm, nics: [{switch: lan, control_queue: true}]}\n",
    );
    let mut engines = Engines::new(Box::new(Vmm::new("vmm")));
    engines.add(Box::new(Qemu::new("qemu", (10, 0), true)));
    assert_eq!(engines.usual().kind(), EngineKind::Vmm);
    let all = plan.commands(&engines);
    let programs: Vec<&str> = all[4..]
        .iter()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(programs, ["vmm", "qemu", "vmm"]);
    // Only one of them forwards the control queue.
    let served: Vec<bool> = all[1..4]
        .iter()
        .map(|line| line.ends_with(" --control-queue"))
        .collect();
    assert_eq!(served, [true, false, true]);
}

#[test]
fn a_kernel_without_our_init_gets_none_of_its_words() {
    let plan =
        plan("name: t\nswitches: {lan: }\nnodes:\n  a: {kernel: /proc/self/exe, nics: [{switch: lan}]}\n");
    assert_eq!(plan.nodes[0].cmdline, "console=ttyS0 panic=1");
}

#[test]
fn commands_can_be_typed() {
    assert_eq!(
        command_line(Path::new("a b"), &["it's".into(), "".into(), "x=1".into()]),
        r"'a b' 'it'\''s' '' x=1"
    );
}

#[test]
fn devices_of_the_host_go_to_both_engines_beside_the_switch_nics() {
    let run = RunDir::new("/run/netyard");
    let text = "name: t\nswitches: {lan: }\nnodes:\n  a: {nics: [{vf: eth0, ip: 10.0.0.1/24, mac: \"02:00:00:00:00:01\"}, {switch: lan}, \
                {pci: \"0000:02:00.0\", ip: 10.0.1.1/24}]}\n";
    let lab = crate::check::check(Path::new("x.lab.yaml"), text, &run).expect("a lab without faults");
    let device = |nic, bdf: &str, mac: Option<&str>| Device {
        node: "a".into(),
        nic,
        bdf: bdf.parse().unwrap(),
        mac: mac.map(|mac| mac.parse().unwrap()),
        vf: None,
    };
    let devices = [
        device(0, "0000:01:10.0", None),
        device(2, "0000:02:00.0", Some("52:54:00:00:00:07")),
    ];
    let plan = Plan::new(&lab, &run, &devices, |_| BootFiles::default());
    let vmm = commands(&plan, Vmm::new("vmm")).pop().unwrap();
    let qemu = commands(&plan, Qemu::new("qemu", (10, 0), true)).pop().unwrap();
    assert!(
        vmm.contains(" --device 0000:01:10.0 --device 0000:02:00.0 "),
        "{vmm}"
    );
    assert!(vmm.contains("/ports/a-1.sock"), "{vmm}");
    let part = " -device vfio-pci,host=0000:01:10.0 -device vfio-pci,host=0000:02:00.0";
    assert!(qemu.contains(part), "{qemu}");
    for part in [
        "netyard.nic=02:00:00:00:00:01,10.0.0.1/24,1500 ",
        "netyard.nic=52:54:00:00:00:07,10.0.1.1/24,1500",
    ] {
        assert!(vmm.contains(part), "no `{part}` in {vmm}");
    }
    // Before `lab up` has made them, they go by their names in the file.
    let early = Plan::new(&lab, &run, &[], |_| BootFiles::default());
    assert_eq!(early.nodes[0].devices, ["vf eth0", "pci 0000:02:00.0"]);
    assert_eq!(early.switches[0].ports.len(), 1);
}
