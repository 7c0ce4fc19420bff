//! A lab file as it is written: the YAML schema, read with the position of every value.

use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_saphyr::{Location, Spanned};
use vswitch::fdb::OnFull;

use crate::engine::EngineKind;
use crate::problem::{Problem, Refused, did_you_mean};

/// Upper bound of a lab file's size; a file beyond it is not one that a person wrote.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 20;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawLab {
    pub(crate) name: Option<Spanned<String>>,
    pub(crate) switches: Ordered<Option<RawSwitch>>,
    pub(crate) nodes: Ordered<RawNode>,
}

/// One entry of `switches:`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawSwitch {
    pub(crate) mtu: Option<Spanned<u64>>,
    pub(crate) ageing: Option<Spanned<u64>>,
    pub(crate) fdb_size: Option<Spanned<u64>>,
    pub(crate) on_full: Option<OnFull>,
    pub(crate) workers: Option<Spanned<u64>>,
}

/// One entry of `nodes:`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawNode {
    pub(crate) image: Option<Spanned<String>>,
    pub(crate) kernel: Option<Spanned<String>>,
    pub(crate) initrd: Option<Spanned<String>>,
    pub(crate) cmdline: Option<Spanned<String>>,
    pub(crate) agent: Option<Spanned<bool>>,
    pub(crate) engine: Option<EngineKind>,
    pub(crate) cpus: Option<Spanned<u64>>,
    pub(crate) memory: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) nics: Vec<Spanned<RawNic>>,
    #[serde(default)]
    pub(crate) disks: Vec<RawDisk>,
}

/// One entry of a node's `nics:`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawNic {
    pub(crate) switch: Option<Spanned<String>>,
    pub(crate) vf: Option<Spanned<String>>,
    pub(crate) pci: Option<Spanned<String>>,
    pub(crate) mac: Option<Spanned<String>>,
    pub(crate) ip: Option<Spanned<String>>,
    pub(crate) queues: Option<Spanned<u64>>,
    pub(crate) isolate: Option<Spanned<bool>>,
    pub(crate) mtu: Option<Spanned<u64>>,
    pub(crate) vlan: Option<Spanned<u64>>,
    pub(crate) promisc: Option<Spanned<bool>>,
    pub(crate) spoof: Option<Spanned<bool>>,
    pub(crate) control_queue: Option<Spanned<bool>>,
}

/// One entry of a node's `disks:`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawDisk {
    pub(crate) path: Spanned<String>,
    pub(crate) readonly: Option<bool>,
}

/// A mapping from names to `T` that keeps the order of the file and the position of each name.
#[derive(Debug)]
pub(crate) struct Ordered<T>(pub(crate) Vec<(Spanned<String>, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Ordered<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }

        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// Reads the text of a lab file.
pub(crate) fn parse(file: &Path, text: &str) -> Result<RawLab, Refused> {
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| Refused::new(file, vec![explain(error.without_snippet())]))
}

/// The `name:` of a lab file whose other contents may be anything, so that a lab that runs can be found by a file that
/// has been edited since.
pub(crate) fn parse_name(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct OnlyName {
        name: Option<String>,
    }
    serde_saphyr::from_str::<OnlyName>(text)
        .ok()
        .and_then(|only| only.name)
}

fn explain(error: &serde_saphyr::Error) -> Problem {
    use serde_saphyr::Error;
    let location = error.location().unwrap_or(Location::UNKNOWN);
    let text = match error {
        Error::SerdeUnknownField { field, expected, .. } => format!(
            "unknown key `{field}`{} (keys known here: {})",
            did_you_mean(field, expected.iter().copied()),
            expected.join(", ")
        ),
        Error::SerdeUnknownVariant {
            variant, expected, ..
        } => format!(
            "unknown value `{variant}`{} (values known here: {})",
            did_you_mean(variant, expected.iter().copied()),
            expected.join(", ")
        ),
        Error::SerdeMissingField { field, .. } => format!("the key `{field}` is missing; add it"),
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("`{key}` is given twice; rename or remove one of them")
        }
        Error::SerdeInvalidType {
            unexpected, expected, ..
        } => {
            format!("found {unexpected} where {expected} is needed")
        }
        Error::InvalidScalar { ty, .. } => match *ty {
            "bool" | "boolean" => "not a truth value; write true or false".to_owned(),
            _ => "not a whole number of at least 0; write digits only".to_owned(),
        },
        Error::InvalidBooleanStrict { .. } => "not a truth value; write true or false".to_owned(),
        other => {
            let mut text = other.to_string();
            // The position is printed in front, as compilers do.
            if let Some(cut) = text.rfind(" at line ") {
                text.truncate(cut);
            }
            format!("not understood: {}", text.replace('\n', " "))
        }
    };
    Problem::at(location, text)
}
