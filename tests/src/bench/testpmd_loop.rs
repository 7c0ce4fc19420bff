//! Frames that circulate between two `net_virtio_user` ports of `testpmd`, through our switch and through `testpmd` with two
//! `net_vhost` ports in `io` mode, which switches nothing at all.
//!
//! One processor for what is measured, one for the generator.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::cpus;
use super::median::median;
use super::testpmd_io::TestpmdIo;
use crate::switch::Switch;
use crate::testpmd::Testpmd;

const LIMIT: Duration = Duration::from_secs(30);
/// How long frames circulate before they are counted, and for how long they are counted.
const SETTLE: Duration = Duration::from_millis(500);
const WINDOW: Duration = Duration::from_secs(3);

/// What stands between the two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Middle {
    /// `vswitch` with one worker.
    Switch,
    /// `testpmd` in `io` mode: two copies and no look at any frame.
    TestpmdIo,
}

/// One row of the table.
#[derive(Debug, Clone)]
pub struct Row {
    /// Frame size in octets, without the frame check sequence.
    pub size: u32,
    /// Frames a second through the switch, both ways together, median of the pairs.
    pub switch: f64,
    /// The same through `testpmd`.
    pub testpmd: f64,
    /// The ratio of the two, median of the pairs.
    pub ratio: f64,
}

/// Measures both, `pairs` times in turn, for each frame size.
pub fn measure(sizes: &[u32], pairs: usize) -> Vec<Row> {
    sizes.iter().map(|size| row(*size, pairs)).collect()
}

fn row(size: u32, pairs: usize) -> Row {
    let runs: Vec<(f64, f64)> = (0..pairs)
        .map(|_| {
            (
                frames_per_second(Middle::Switch, size),
                frames_per_second(Middle::TestpmdIo, size),
            )
        })
        .collect();
    let column = |of: fn(&(f64, f64)) -> f64| median(&runs.iter().map(of).collect::<Vec<_>>());
    Row {
        size,
        switch: column(|run| run.0),
        testpmd: column(|run| run.1),
        ratio: column(|run| run.0 / run.1),
    }
}

/// The rows as a Markdown table.
pub fn table(rows: &[Row]) -> String {
    let head = "| frame | `vswitch`, frames/s | `testpmd` `io`, frames/s | ratio |\n|---|---|---|---|\n";
    let row = |row: &Row| {
        let [switch, testpmd] = [row.switch, row.testpmd].map(|value| format!("{:.2} M", value / 1e6));
        format!("| {} B | {switch} | {testpmd} | {:.2} |\n", row.size, row.ratio)
    };
    head.to_owned() + &rows.iter().map(row).collect::<String>()
}

/// Frames a second that both ports of the generator receive through `middle`.
///
/// # Panics
/// When one of the programs fails.
pub fn frames_per_second(middle: Middle, size: u32) -> f64 {
    match middle {
        Middle::Switch => {
            let switch = Switch::up("bench", &["--cpus", &cpus::measured().to_string()]);
            let sockets = [switch.add_port("p0", 1), switch.add_port("p1", 1)];
            circulate(switch.run_dir(), &sockets, size)
        }
        Middle::TestpmdIo => {
            let dir = tempfile::Builder::new()
                .prefix("ny-")
                .tempdir()
                .expect("a folder");
            let sockets = ["a", "b"].map(|name| dir.path().join(format!("{name}.sock")));
            let _peer = TestpmdIo::start(dir.path(), &sockets, &["--no-huge"], false);
            circulate(dir.path(), &sockets, size)
        }
    }
}

fn circulate(dir: &Path, sockets: &[PathBuf; 2], size: u32) -> f64 {
    let mut generator = Testpmd::start(
        dir,
        sockets,
        ",queues=1,queue_size=1024",
        &["--forward-mode=mac", "--no-flush-rx"],
    );
    generator.enter(&format!("set txpkts {size}"));
    // Frames that a switch drops while it learns are missing from the loop, so it is filled more than once.
    for _ in 0..3 {
        generator.enter("start tx_first 6");
        generator.expect("nb forwarding cores", LIMIT);
        generator.enter("stop");
        generator.expect("Done.", LIMIT);
    }
    generator.enter("start");
    generator.expect("nb forwarding cores", LIMIT);
    std::thread::sleep(SETTLE);
    let received = |generator: &mut Testpmd| {
        let stats = generator.stats(2);
        (
            Instant::now(),
            stats.iter().map(|port| port.rx_packets).sum::<u64>(),
        )
    };
    let (start, before) = received(&mut generator);
    std::thread::sleep(WINDOW);
    let (end, after) = received(&mut generator);
    generator.enter("stop");
    generator.expect("Done.", LIMIT);
    generator.quit();
    assert!(
        after > before,
        "no frame circulates, so there is nothing to measure"
    );
    let frames = u32::try_from(after - before).map_or(f64::MAX, f64::from);
    frames / (end - start).as_secs_f64()
}
