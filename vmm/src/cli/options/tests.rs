use super::*;

#[test]
fn memory_sizes() {
    let parse = |text: &str| text.parse::<MemoryOption>().map(|m| (m.0.size, m.0.hugepages));
    assert_eq!(parse("512M"), Ok((512 << 20, false)));
    assert_eq!(parse("2G,hugepages=on"), Ok((2 << 30, true)));
    assert_eq!(parse("2GiB,hugepages=off"), Ok((2 << 30, false)));
    for wrong in [
        "",
        "512",
        "M",
        "1T",
        "-1M",
        "99999999999999999G",
        "1G,huge=on",
        "1G,hugepages=yes",
    ] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn network_cards() {
    let plain = net("socket=/a").unwrap();
    assert_eq!(
        plain,
        NetConfig {
            socket: "/a".into(),
            mac: None,
            queues: 1,
            mode: SocketMode::Client
        }
    );
    let full = net("socket=/a,mac=02:00:00:00:00:0a,queues=16,mode=server").unwrap();
    assert_eq!(full.mac, Some([2, 0, 0, 0, 0, 10]));
    assert_eq!((full.queues, full.mode), (16, SocketMode::Server));
    for wrong in [
        "",
        "mac=02:00:00:00:00:0a",
        "socket=",
        "socket",
        "socket=/a,socket=/b",
        "socket=/a,queues=0",
        "socket=/a,queues=17",
        "socket=/a,mac=01:00:00:00:00:00",
        "socket=/a,mac=00:00:00:00:00:00",
        "socket=/a,mac=02:00:00:00:00",
        "socket=/a,mac=02:00:00:00:00:00:00",
        "socket=/a,mac=+2:00:00:00:00:00",
        "socket=/a,mode=both",
        "socket=/a,vlan=3",
    ] {
        assert!(net(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn serial_ends() {
    let parse = |text: &str| text.parse::<SerialOption>();
    assert_eq!(parse("stdio").unwrap().end, SerialConfig::Stdio);
    let socket = parse("socket=/s,log=/l").unwrap();
    assert_eq!(
        socket,
        SerialOption {
            end: SerialConfig::Socket("/s".into()),
            log: Some("/l".into())
        }
    );
    for wrong in [
        "",
        "tty",
        "file",
        "file=",
        "pty=1",
        "stdio,log",
        "socket=/s,append=on",
    ] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn numa_nodes() {
    let node = numa("cpus=2-3,memory=256M,host-node=1").unwrap();
    assert_eq!(
        (node.cpus, node.ram.size, node.ram.host_node),
        (2..=3, 256 << 20, Some(1))
    );
    assert_eq!(numa("cpus=7,memory=1G").unwrap().cpus, 7..=7);
    for wrong in [
        "",
        "cpus=1",
        "memory=1G",
        "cpus=3-2,memory=1G",
        "cpus=x,memory=1G",
        "cpus=1,memory=1",
        "cpus=1,memory=1G,host-node=a",
        "cpus=1,memory=1G,distance=20",
    ] {
        assert!(numa(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn disks_channels_and_names() {
    assert!(disk("path=/d,readonly=on").unwrap().readonly);
    assert!(disk("readonly=on").is_err());
    assert_eq!(
        channel("name=org.example.0,socket=/c").unwrap().name,
        "org.example.0"
    );
    assert!(channel("name=a b,socket=/c").is_err());
    assert!(name(&"x".repeat(65)).is_err());
}
