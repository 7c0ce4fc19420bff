//! Each target over its corpus and a fixed number of mutations of it.
//!
//! `NETYARD_FUZZ_EXECUTIONS` sets another number, and `NETYARD_FUZZ_SEED` other mutations.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::Instant;

use netyard_fuzz::TARGETS;
use netyard_fuzz::mutate::Mutator;

/// Mutations of each target unless told otherwise: a second or so of the slowest.
const EXECUTIONS: u64 = 20_000;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .map_or(default, |text| text.parse().expect("a number"))
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).expect("a readable file"))
        .collect()
}

/// Says, when a target panics, what it was run with.
struct Running<'a>(&'a str, &'a [u8]);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("target {} failed with {:02x?}", self.0, self.1);
        }
    }
}

fn run(name: &str) {
    let (_, target) = TARGETS
        .into_iter()
        .find(|(other, _)| *other == name)
        .expect("a target");
    let corpus = corpus(name);
    assert!(!corpus.is_empty(), "{name} has no corpus");
    for input in &corpus {
        let _running = Running(name, input);
        target(input);
    }
    let mut mutator = Mutator::new(number("NETYARD_FUZZ_SEED", 1));
    let executions = number("NETYARD_FUZZ_EXECUTIONS", EXECUTIONS);
    let begin = Instant::now();
    for _ in 0..executions {
        let input = mutator.next(&corpus);
        let _running = Running(name, &input);
        target(&input);
    }
    let rate = u128::from(executions) * 1_000_000 / begin.elapsed().as_micros().max(1);
    println!("{name}: {executions} executions, {rate} a second");
}

macro_rules! bounded {
    ($($test:ident: $name:literal,)*) => {
        $(#[test]
        fn $test() {
            run($name);
        })*

        #[test]
        fn every_target_is_run() {
            assert_eq!(TARGETS.map(|(name, _)| name), [$($name),*]);
        }
    };
}

bounded! {
    split_device: "split-device",
    split_driver: "split-driver",
    packed_device: "packed-device",
    packed_driver: "packed-driver",
    messages: "messages",
    frame: "frame",
    checksum: "checksum",
    segmentation: "segmentation",
    vswitch_config: "vswitch-config",
    lab_file: "lab-file",
    sriov_file: "sriov-file",
    vmm_options: "vmm-options",
}
