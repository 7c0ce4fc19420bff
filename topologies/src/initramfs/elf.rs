//! Just enough of ELF to find the libraries a program needs.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};

use super::BuildError;

/// Where Debian keeps libraries, in the order of the dynamic linker.
const FOLDERS: [&str; 4] = [
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu",
    "lib",
    "usr/lib",
];

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

/// Why a file is not a program this can read.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not a 64-bit little-endian ELF file; the package is for another machine")]
pub struct ElfError(PathBuf);

/// What a program asks of the dynamic linker.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    interpreter: Option<String>,
    libraries: Vec<String>,
}

/// Does the program run without any library?
pub fn is_static(bytes: &[u8]) -> bool {
    needs(bytes).is_some_and(|needs| needs == Needs::default())
}

/// The libraries that `programs` need, directly or not, found under `root`; as (path in the image, contents).
pub fn libraries(
    root: &Path,
    programs: Vec<(PathBuf, Vec<u8>)>,
) -> Result<BTreeMap<String, Vec<u8>>, BuildError> {
    let mut found = BTreeMap::new();
    let mut to_read = programs;
    while let Some((path, bytes)) = to_read.pop() {
        let needs = needs(&bytes).ok_or(ElfError(path))?;
        let interpreter = needs.interpreter.map(|path| {
            let source = root.join(path.trim_start_matches('/'));
            (usr(path.trim_start_matches('/')), source)
        });
        let mut wanted: Vec<(String, PathBuf)> = interpreter.into_iter().collect();
        for library in needs.libraries {
            let (folder, source) = FOLDERS
                .iter()
                .map(|folder| (folder, root.join(folder).join(&library)))
                .find(|(_, source)| source.exists())
                .ok_or_else(|| BuildError::NoLibrary(library.clone()))?;
            wanted.push((usr(&format!("{folder}/{library}")), source));
        }
        for (place, source) in wanted {
            if let Entry::Vacant(vacant) = found.entry(place) {
                let bytes = fs::read(&source).map_err(super::failed("read", &source))?;
                vacant.insert(bytes.clone());
                to_read.push((source, bytes));
            }
        }
    }
    Ok(found)
}

/// In the image everything is below `usr`, as on an installed system.
fn usr(path: &str) -> String {
    if path.starts_with("usr/") {
        path.to_owned()
    } else {
        format!("usr/{path}")
    }
}

fn needs(bytes: &[u8]) -> Option<Needs> {
    let file = File(bytes);
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = file.u64(32)?;
    let entry_size = u64::from(file.u16(54)?);
    let entries = u64::from(file.u16(56)?);
    let headers: Vec<Segment> = (0..entries)
        .map(|i| file.segment(table.checked_add(i.checked_mul(entry_size)?)?))
        .collect::<Option<_>>()?;
    let of_kind = |kind: u32| headers.iter().find(move |segment| segment.kind == kind);

    let mut needs = Needs::default();
    if let Some(interp) = of_kind(PT_INTERP) {
        needs.interpreter = Some(file.string(interp.offset)?);
    }
    let Some(dynamic) = of_kind(PT_DYNAMIC) else {
        return Some(needs);
    };
    let mut names = Vec::new();
    let mut strings = None;
    for at in (0..dynamic.file_size / 16).map(|i| dynamic.offset + i * 16) {
        match file.u64(at)? {
            DT_NEEDED => names.push(file.u64(at + 8)?),
            DT_STRTAB => strings = Some(file.u64(at + 8)?),
            _ => {}
        }
    }
    if names.is_empty() {
        return Some(needs);
    }
    let strings = strings?;
    let load = headers.iter().find(|segment| {
        segment.kind == PT_LOAD
            && strings
                .checked_sub(segment.address)
                .is_some_and(|at| at < segment.file_size)
    })?;
    let base = strings - load.address + load.offset;
    for name in names {
        needs.libraries.push(file.string(base.checked_add(name)?)?);
    }
    Some(needs)
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_size: u64,
}

/// Reads of little-endian numbers that cannot leave the file.
struct File<'a>(&'a [u8]);

impl File<'_> {
    fn array<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        let at = usize::try_from(at).ok()?;
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn u16(&self, at: u64) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u64(&self, at: u64) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }

    fn string(&self, at: u64) -> Option<String> {
        let rest = self.0.get(usize::try_from(at).ok()?..)?;
        let end = rest.iter().position(|&byte| byte == 0)?;
        Some(String::from_utf8_lossy(&rest[..end]).into_owned())
    }

    fn segment(&self, at: u64) -> Option<Segment> {
        let word = |offset| self.u64(at.checked_add(offset)?);
        Some(Segment {
            kind: self.array(at).map(u32::from_le_bytes)?,
            offset: word(8)?,
            address: word(16)?,
            file_size: word(32)?.min(u64::try_from(self.0.len()).ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_program_needs_the_c_library_and_its_linker() {
        let bytes = fs::read(std::env::current_exe().unwrap()).unwrap();
        let needs = needs(&bytes).unwrap();
        assert!(
            needs.libraries.iter().any(|name| name == "libc.so.6"),
            "{needs:?}"
        );
        assert_eq!(needs.interpreter.as_deref(), Some("/lib64/ld-linux-x86-64.so.2"));
        assert!(!is_static(&bytes));
    }

    #[test]
    fn libraries_of_libraries_are_found_on_this_system() {
        let program = PathBuf::from("/usr/bin/tail");
        let bytes = fs::read(&program).unwrap();
        let found = libraries(Path::new("/"), vec![(program, bytes)]).unwrap();
        assert!(
            found.keys().any(|path| path.ends_with("/libc.so.6")),
            "{:?}",
            found.keys()
        );
        assert!(found.contains_key("usr/lib64/ld-linux-x86-64.so.2"));
    }

    #[test]
    fn what_is_no_program_is_refused_wherever_it_is_cut() {
        let bytes = fs::read(std::env::current_exe().unwrap()).unwrap();
        for len in (0..4096).chain([bytes.len() / 2]) {
            // Whatever it says about half a file, it must not panic.
            let _ = needs(&bytes[..len]);
        }
        assert_eq!(needs(b"#!/bin/sh\n"), None);
    }
}
