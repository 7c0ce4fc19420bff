use super::*;

const PING: &str = "PING 10.0.0.2 (10.0.0.2): 56 data bytes\n64 bytes from 10.0.0.2: seq=0 ttl=64 time=0.412 ms\n\n\
--- 10.0.0.2 ping statistics ---\n5 packets transmitted, 5 packets received, 0% packet loss\n\
round-trip min/avg/max = 0.412/0.633/1.200 ms\n";
const TCP: &str = r#"{"start":{"test_start":{"protocol":"TCP"}},"end":{"sum_sent":{"bits_per_second":2e9,"retransmits":3},"sum_received":{"bits_per_second":1.5e9}}}"#;
const UDP: &str = r#"{"start":{"test_start":{"protocol":"UDP"}},"end":{"sum":{"bits_per_second":2e8,"lost_percent":25.0}}}"#;

/// Two nodes whose iperf3 server answers only from the second attempt on.
#[derive(Default)]
struct Nodes {
    ran: Vec<(String, String)>,
    refused: bool,
}

impl Nodes {
    fn run(&mut self, node: &str, argv: &[&str]) -> Ended {
        let command = argv.join(" ");
        self.ran.push((node.to_owned(), command.clone()));
        let said = |code, stdout: &str| Ended {
            code,
            stdout: stdout.to_owned(),
            stderr: String::new(),
        };
        match argv {
            ["ping", ..] => said(0, PING),
            ["iperf3", "-c", ..] if !std::mem::replace(&mut self.refused, true) => said(
                1,
                r#"{"error":"unable to connect to server: Connection refused"}"#,
            ),
            ["iperf3", "-c", ..] if argv.contains(&"-u") => said(0, UDP),
            ["iperf3", "-c", ..] => said(0, TCP),
            _ => said(0, ""),
        }
    }
}

const A: End<'_> = End {
    node: "a",
    address: "10.0.0.1",
};
const B: End<'_> = End {
    node: "b",
    address: "10.0.0.2",
};

#[test]
fn measures_both_directions_and_stops_the_server() {
    let mut nodes = Nodes::default();
    let report = measure(&mut |node, argv| Ok(nodes.run(node, argv)), A, B, 3).expect("a report");
    assert_eq!(report.ping.received, 5);
    assert!((report.tcp.bits_per_second - 1.5e9).abs() < 1.0);
    assert_eq!(report.tcp.retransmits, Some(3));
    assert!((report.udp_reverse.bits_per_second - 1.5e8).abs() < 1.0);
    let last = nodes.ran.last().expect("commands ran");
    assert!(last.0 == "b" && last.1.contains("kill"), "{last:?}");
    let reverse = nodes
        .ran
        .iter()
        .filter(|(_, command)| command.ends_with(" -R"))
        .count();
    assert_eq!(reverse, 2);
    let table = report.table();
    for part in [
        "a → b",
        "1.50 Gbit/s, 3 sent again",
        "150.0 Mbit/s, 25.0 % lost",
        "0.41 / 0.63 / 1.20 ms",
    ] {
        assert!(table.contains(part), "{part} is not in\n{table}");
    }
}

#[test]
fn a_failure_names_node_command_and_reason_and_stops_the_server() {
    let mut ran = Vec::new();
    let mut exec = |node: &str, argv: &[&str]| {
        ran.push(argv.join(" "));
        Ok(match argv[0] {
            "ping" => Ended {
                stdout: PING.to_owned(),
                ..Ended::default()
            },
            "iperf3" if argv[1] == "-c" => Ended {
                code: 1,
                stdout: r#"{"error":"interrupt - the client has terminated"}"#.to_owned(),
                stderr: format!("{node} says more"),
            },
            _ => Ended::default(),
        })
    };
    let error = measure(&mut exec, A, B, 3).expect_err("iperf3 fails").to_string();
    assert!(error.starts_with("a: iperf3 -c 10.0.0.2"), "{error}");
    assert!(
        error.ends_with("ended with 1: interrupt - the client has terminated"),
        "{error}"
    );
    assert!(
        ran.last().is_some_and(|command| command.contains("kill")),
        "{ran:?}"
    );
}

#[test]
fn reads_the_summary_of_iputils_too() {
    let text = "5 packets transmitted, 4 received, 20% packet loss, time 4005ms\nrtt min/avg/max/mdev = 0.041/0.052/0.070/0.010 ms\n";
    let ping = ping::parse(text).expect("a summary");
    assert_eq!((ping.sent, ping.received), (5, 4));
    assert!((ping.avg_ms - 0.052).abs() < 1e-9);
    assert_eq!(
        ping::parse("5 packets transmitted, 0 packets received, 100% packet loss\n"),
        None
    );
}
