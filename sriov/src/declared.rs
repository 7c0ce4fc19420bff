//! The file that says which virtual functions there shall be.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::settings::Settings;

/// A declared state: physical functions and what each shall have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    /// By interface or PCI address.
    pub pfs: BTreeMap<String, DeclaredPf>,
}

/// What one physical function shall have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredPf {
    /// How many virtual functions.
    pub vfs: u32,
    /// Settings of single ones, by index.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vf: BTreeMap<u32, DeclaredVf>,
}

/// What one virtual function shall be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredVf {
    /// Its attributes.
    #[serde(default)]
    pub set: Settings,
    /// Whether it is given to vfio-pci.
    #[serde(default)]
    pub vfio: bool,
}

/// A file that declares no state.
#[derive(Debug, thiserror::Error)]
pub enum DeclaredError {
    /// It cannot be read.
    #[error("{path}: cannot be read: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It says something that means nothing.
    #[error("{path}: {text}")]
    Parse {
        /// The file.
        path: String,
        /// Line, key and the keys that there are.
        text: String,
    },
    /// A virtual function beyond the count.
    #[error("{path}: {pf} has settings for VF {index}, but only {count} virtual functions; raise `vfs`")]
    Beyond {
        /// The file.
        path: String,
        /// The PF.
        pf: String,
        /// The VF.
        index: u32,
        /// How many there shall be.
        count: u32,
    },
}

impl Declared {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, DeclaredError> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| DeclaredError::Read {
            path: shown.clone(),
            source,
        })?;
        Self::parse(&shown, &text)
    }

    /// Reads a file's text; `path` is for messages.
    pub fn parse(path: &str, text: &str) -> Result<Self, DeclaredError> {
        let declared: Self = from_yaml(path, text)?;
        for (pf, wanted) in &declared.pfs {
            if let Some((index, _)) = wanted.vf.range(wanted.vfs..).next() {
                return Err(DeclaredError::Beyond {
                    path: path.to_owned(),
                    pf: pf.clone(),
                    index: *index,
                    count: wanted.vfs,
                });
            }
        }
        Ok(declared)
    }
}

/// What the text of the file at `path` says.
pub(crate) fn from_yaml<T: DeserializeOwned>(path: &str, text: &str) -> Result<T, DeclaredError> {
    // Of an error one line is shown; the snippet that would go with it costs more than the reading.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| DeclaredError::Parse {
        path: path.to_owned(),
        text: error.to_string().lines().next().unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let text = "pfs:\n  eth0:\n    vfs: 2\n    vf:\n      1: {set: {mac: '02:00:00:00:00:01', vlan: 100, trust: true, state: enable}, vfio: true}\n";
        let declared = Declared::parse("x.yaml", text).expect("valid");
        assert_eq!(declared.pfs["eth0"].vf[&1].set.vlan, Some(100));
        let json = serde_json::to_string(&declared).expect("JSON");
        assert_eq!(Declared::parse("x.yaml", &json).expect("JSON is YAML"), declared);
    }

    #[test]
    fn refuses_unknown_keys_with_their_line() {
        let error = Declared::parse("x.yaml", "pfs:\n  eth0:\n    vsf: 2\n").expect_err("no such key");
        let text = error.to_string();
        assert!(text.contains("vsf") && text.contains('3'), "{text}");
    }

    #[test]
    fn refuses_settings_of_a_function_that_shall_not_be() {
        let error =
            Declared::parse("x.yaml", "pfs: {eth0: {vfs: 1, vf: {1: {vfio: true}}}}").expect_err("VF 1 of 1");
        assert!(error.to_string().contains("VF 1"), "{error}");
    }
}
