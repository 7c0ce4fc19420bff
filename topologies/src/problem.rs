//! What is wrong with a lab file, and where.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_saphyr::Location;

/// One thing that is wrong with a lab file: what was refused, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, from 1; 0 when the whole file is meant.
    pub line: u64,
    /// Column in that line, from 1.
    pub column: u64,
    /// The text for the reader.
    pub text: String,
}

impl Problem {
    pub(crate) fn at(location: Location, text: impl Into<String>) -> Self {
        // The parser's unknown location has a line of zero, which is our "whole file" too.
        Self {
            line: location.line(),
            column: location.column(),
            text: text.into(),
        }
    }
}

/// A lab file that was refused, with every problem found in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The file as the user named it.
    pub file: PathBuf,
    /// At least one problem, in the order of the file.
    pub problems: Vec<Problem>,
}

impl Refused {
    pub(crate) fn new(file: &Path, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        Self {
            file: file.to_path_buf(),
            problems,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.file.display())?;
            if problem.line > 0 {
                write!(f, ":{}:{}", problem.line, problem.column)?;
            }
            write!(f, ": {}", problem.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

/// The known word nearest to `word`, if one is near enough to be what was meant.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    known
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&word, &candidate.to_lowercase()),
                candidate,
            )
        })
        // A third of the letters may be wrong, but never so many that any short word fits.
        .filter(|(distance, candidate)| {
            let longer = candidate.len().max(word.len());
            (*distance <= (longer / 3).max(1) && *distance < longer) || candidate.starts_with(&word)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// ``; did you mean `word`?``, or nothing when no known word is near.
pub(crate) fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
}
