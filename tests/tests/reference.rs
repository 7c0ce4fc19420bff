//! The command-line reference of the book is what the programs themselves print.

use std::fmt::Write as _;
use std::process::Command;

use netyard_tests::{bin, markdown};

/// Set to anything to write the pages anew instead of comparing them.
const UPDATE: &str = "NETYARD_UPDATE_DOCS";

fn help(program: &str, words: &[String]) -> String {
    let mut command = Command::new(bin::path(program));
    command.args(words).arg("--help").env_remove("COLUMNS");
    bin::succeed(&mut command)
}

/// The subcommands that a help text lists.
fn subcommands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            let word = line.strip_prefix("  ")?;
            (!word.starts_with(' ')).then(|| word.split_whitespace().next().map(str::to_owned))?
        })
        .filter(|word| word != "help")
        .collect()
}

fn describe(page: &mut String, program: &str, words: &[String]) {
    let help = help(program, words);
    let title = [&[program.to_owned()], words].concat().join(" ");
    let level = "#".repeat(words.len() + 1);
    writeln!(page, "{level} {title}\n\n```text\n{}\n```\n", help.trim_end()).expect("a string takes all");
    for word in subcommands(&help) {
        describe(page, program, &[words, &[word]].concat());
    }
}

fn check(program: &str) {
    let mut page = String::new();
    describe(&mut page, program, &[]);
    let page = page.trim_end().to_owned() + "\n";
    let path = markdown::repository().join(format!("docs/src/reference/{program}.md"));
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, &page).expect("the page is written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == page,
        "{} is not what `{program} --help` prints: run the tests once with {UPDATE}=1 and commit the page",
        path.display()
    );
}

#[test]
fn lab() {
    check("lab");
}

#[test]
fn vswitch() {
    check("vswitch");
}

#[test]
fn vmm() {
    check("vmm");
}

#[test]
fn vhost_net_backend() {
    check("vhost-net-backend");
}

#[test]
fn sriov() {
    check("sriov");
}

/// What each program prints for a shell and for `man`, and how it is asked.
const PROGRAMS: [(&str, &[&str], &[&str]); 5] = [
    ("lab", &["completions"], &["man"]),
    ("vswitch", &["completions"], &["man"]),
    ("vmm", &["completions"], &["man"]),
    ("sriov", &["completions"], &["man"]),
    ("vhost-net-backend", &["--completions"], &["--man"]),
];

fn printed(program: &str, words: &[&str]) -> String {
    bin::succeed(Command::new(bin::path(program)).args(words))
}

#[test]
fn every_program_prints_completions_for_the_installed_shells() {
    for (program, completions, _) in PROGRAMS {
        for shell in ["bash", "zsh", "fish"] {
            let script = printed(program, &[completions, &[shell]].concat());
            assert!(script.contains(program), "{program} {shell}: {script}");
            assert!(script.contains("help"), "{program} {shell}: {script}");
        }
    }
}

#[test]
fn every_program_prints_its_manual_page() {
    for (program, _, man) in PROGRAMS {
        let page = printed(program, man).replace(r"\-", "-");
        assert!(page.contains(&format!(".TH {program} 1")), "{program}: {page}");
        assert!(page.contains(".SH SYNOPSIS"), "{program}: {page}");
    }
}
