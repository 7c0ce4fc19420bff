//! The book's page of hostile cases names what there is, and all of it.

use std::collections::BTreeSet;
use std::fs;

use netyard_tests::markdown::repository;

const PAGE: &str = "docs/src/hostile-cases.md";
/// Where files are that the page names without a path.
const SUITE: &str = "tests/tests/hostile";
/// What a function takes that plays a case, or a kind of rewriting.
const TAKES: [&str; 2] = [
    "(arena: &mut Arena) {",
    "(map: &MemoryMap, target: &Target, random: &mut Random) {",
];

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every `file::function` that the page names, by the path of the file.
fn named() -> BTreeSet<(String, String)> {
    let page = read(PAGE);
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let names = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    names
        .filter_map(|name| name.split_once("::"))
        .map(|(file, function)| {
            let path = if file.contains('/') {
                file.to_owned()
            } else {
                format!("{SUITE}/{file}")
            };
            (path, function.to_owned())
        })
        .collect()
}

#[test]
fn every_test_on_the_page_exists() {
    let named = named();
    assert!(!named.is_empty(), "{PAGE} names no test");
    for (path, function) in named {
        let wanted = format!("fn {function}(");
        assert!(
            read(&path).lines().any(|line| line.contains(&wanted)),
            "{PAGE} names {function}, which is not in {path}"
        );
    }
}

#[test]
fn every_case_is_on_the_page() {
    let named = named();
    for file in fs::read_dir(repository().join(SUITE)).expect("the suite") {
        let name = file.expect("a file").file_name();
        let path = format!("{SUITE}/{}", name.to_string_lossy());
        for line in read(&path).lines() {
            let line = line.strip_prefix("pub(crate) ").unwrap_or(line);
            let function = TAKES
                .iter()
                .find_map(|takes| line.strip_prefix("fn ")?.strip_suffix(takes));
            if let Some(function) = function {
                let case = (path.clone(), function.to_owned());
                assert!(named.contains(&case), "{PAGE} does not name {case:?}");
            }
        }
    }
}

#[test]
fn cases_are_numbered_in_order() {
    let page = read(PAGE);
    let rows = page.lines().filter(|line| line.contains(".rs::"));
    for (number, row) in (1..).zip(rows) {
        assert!(
            row.starts_with(&format!("| {number} | ")),
            "{row} is number {number}"
        );
    }
}
