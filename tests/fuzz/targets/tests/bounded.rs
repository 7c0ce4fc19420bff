//! Each target over its corpus and a fixed number of mutations of it.
//!
//! `NETYARD_FUZZ_EXECUTIONS` sets another number, and `NETYARD_FUZZ_SEED` other mutations.
#![forbid(unsafe_code)]

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use cpio::NewcReader;
use netyard_fuzz_targets::TARGETS;
use netyard_fuzz_targets::mutate::Mutator;

/// Mutations of each target unless told otherwise: a few seconds of the slowest.
const EXECUTIONS: u64 = 20_000;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .map_or(default, |text| text.parse().expect("a number"))
}

/// Targets and corpora are what `cargo fuzz` sees.
#[test]
fn cargo_fuzz_has_every_target() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).expect("a manifest");
    let names = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .skip(1);
    assert_eq!(names.collect::<Vec<_>>(), TARGETS.map(|(name, ..)| name));
    for (name, function, _) in TARGETS {
        let file = folder
            .join("fuzz_targets")
            .join(format!("{}.rs", name.replace('-', "_")));
        let text =
            std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let called = format!("netyard_fuzz_targets::{function}(data)");
        assert!(text.contains(&called), "{name}");
    }
}

/// The inputs in a target's archive, in their order there.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../corpus/{name}.cpio"));
    let archive = std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut rest = &archive[..];
    let mut inputs = Vec::new();
    loop {
        let mut entry = NewcReader::new(rest).expect("an entry of an archive");
        if entry.entry().is_trailer() {
            return inputs;
        }
        let mut input = Vec::new();
        entry.read_to_end(&mut input).expect("a whole entry");
        inputs.push(input);
        rest = entry.finish().expect("a whole entry");
    }
}

/// How long this thread has run, whatever else ran on its processor.
fn worked() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split_whitespace().next().and_then(|word| word.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
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
    let target = |input: &[u8]| netyard_fuzz_targets::run(name, input);
    let corpus = corpus(name);
    assert!(!corpus.is_empty(), "{name} has no corpus");
    for input in &corpus {
        let _running = Running(name, input);
        target(input);
    }
    let mut mutator = Mutator::new(number("NETYARD_FUZZ_SEED", 1));
    let executions = number("NETYARD_FUZZ_EXECUTIONS", EXECUTIONS);
    let begin = worked();
    for _ in 0..executions {
        let input = mutator.next(&corpus);
        let _running = Running(name, &input);
        target(&input);
    }
    let rate = u128::from(executions) * 1_000_000 / worked().saturating_sub(begin).as_micros().max(1);
    println!("{name}: {executions} executions, {rate} in a second of processor time");
}

macro_rules! bounded {
    ($($test:ident: $name:literal,)*) => {
        $(#[test]
        fn $test() {
            run($name);
        })*

        #[test]
        fn every_target_is_run() {
            assert_eq!(TARGETS.map(|(name, ..)| name), [$($name),*]);
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
