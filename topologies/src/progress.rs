//! Tells the user what is being done: live on a terminal, a line for each step elsewhere. Always on standard error, so
//! that standard output holds results alone.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Width of the column that says what a step is about.
const LABEL: usize = 14;

/// Shows steps, several at a time.
#[derive(Debug, Clone)]
pub struct Progress {
    bars: Option<MultiProgress>,
}

/// One step that is under way. Dropped unfinished, it leaves nothing on a terminal.
#[derive(Debug)]
pub struct Step {
    label: String,
    start: Instant,
    bar: Option<ProgressBar>,
    all: Progress,
}

impl Progress {
    /// Shows steps on standard error.
    pub fn new() -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self { bars }
    }

    /// One line that stays.
    pub fn line(&self, text: &str) {
        match &self.bars {
            // Printed above the steps that are under way. A terminal that is gone hears nothing.
            Some(bars) => drop(bars.println(text)),
            None => eprintln!("{text}"),
        }
    }

    /// Starts a step about `label`.
    pub fn step(&self, label: impl Into<String>, doing: &str) -> Step {
        let label = label.into();
        let bar = self.bars.as_ref().map(|bars| {
            let style = ProgressStyle::with_template("{spinner} {prefix} {msg} {elapsed}");
            let bar = bars.add(ProgressBar::new_spinner());
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar.set_prefix(format!("{label:LABEL$}"));
            bar.set_message(doing.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Step {
            label,
            start: Instant::now(),
            bar,
            all: self.clone(),
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Step {
    /// The step has come this far.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => self.all.line(&format!("  {:LABEL$} {text}", self.label)),
        }
    }

    /// The step is done.
    pub fn done(self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.start.elapsed().as_secs_f64();
        self.all
            .line(&format!("✓ {:LABEL$} {text} ({seconds:.1} s)", self.label));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar
            && !bar.is_finished()
        {
            bar.finish_and_clear();
        }
    }
}
