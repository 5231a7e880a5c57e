//! Progress on standard error: a bar where somebody watches, nothing where nobody does or `--quiet` was given.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over `length` units; hidden when quiet. Standard error that is no terminal shows none either.
pub fn bar(quiet: bool, length: u64, what: &str) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg:24} [{bar:32}] {pos}/{len} {eta}").expect("the template is fixed");
    ProgressBar::new(length).with_style(style.progress_chars("=> ")).with_message(what.to_string())
}

/// A spinner for work of unknown length.
pub fn spinner(quiet: bool, what: &str) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message(what.to_string());
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}
