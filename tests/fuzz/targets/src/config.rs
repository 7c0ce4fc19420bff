//! What people and former lives of our programs wrote.

use std::path::Path;
use std::sync::LazyLock;

use sriov::declared::Declared;
use topologies::paths::RunDir;
use vswitch::config::BridgeConfig;

static RUN: LazyLock<RunDir> = LazyLock::new(|| RunDir::new("/run/fuzz"));

/// `config.json` of a bridge: what is read is written and read again the same.
///
/// # Panics
/// When something is wrong with what comes of it.
pub fn vswitch(data: &[u8]) {
    let Ok(config) = serde_json::from_slice::<BridgeConfig>(data) else {
        return;
    };
    let text = serde_json::to_vec(&config).expect("a configuration is JSON");
    assert_eq!(
        serde_json::from_slice::<BridgeConfig>(&text).expect("what was written is read"),
        config
    );
}

/// A lab file: every refusal names the file.
///
/// # Panics
/// When something is wrong with what comes of it.
pub fn lab(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Err(refused) = topologies::check::check(Path::new("fuzz.lab.yaml"), &text, &RUN) {
        assert!(refused.to_string().contains("fuzz.lab.yaml"), "{refused}");
    }
}

/// What `sriov apply` reads.
///
/// # Panics
/// When something is wrong with what comes of it.
pub fn sriov(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match Declared::parse("fuzz.yaml", &text) {
        Ok(declared) => {
            let text = serde_json::to_string(&declared).expect("a declaration is JSON");
            assert_eq!(
                Declared::parse("fuzz.yaml", &text).expect("JSON is YAML"),
                declared
            );
        }
        Err(refused) => assert!(refused.to_string().contains("fuzz.yaml"), "{refused}"),
    }
}

/// The values of `vmm`'s options: whatever they are, there is an answer.
///
/// # Panics
/// When something is wrong with what comes of it.
pub fn vmm(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (_, _, _) = (
        vmm::cli::options::net(&text),
        vmm::cli::options::disk(&text),
        vmm::cli::options::channel(&text),
    );
    if let Ok(name) = vmm::cli::options::name(&text) {
        assert!((1..=64).contains(&name.len()));
    }
}
