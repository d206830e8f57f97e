//! Where the recorded ESPN data lies. The only place that knows.

use std::io::Write as _;
use std::path::PathBuf;

/// Names the folder of the recordings.
pub const VARIABLE: &str = "ARBEES_RECORDINGS";
/// Where they lie beside a checkout.
const DEFAULT: &str = "../shared/data";

/// The folder of the recordings; none when there are none. Relative to the working folder, or to the one above it: tests run
/// inside a crate's folder.
#[must_use]
pub fn folder() -> Option<PathBuf> {
    let named = std::env::var_os(VARIABLE).map(PathBuf::from);
    let candidates = named.map_or_else(|| vec![PathBuf::from(DEFAULT), PathBuf::from("..").join(DEFAULT)], |p| vec![p]);
    candidates.into_iter().find(|p| p.join("index.tsv").is_file())
}

/// The folder of the recordings for a test; says loudly when there is none, so that nobody takes silence for success.
#[must_use]
pub fn folder_for_test(test: &str) -> Option<PathBuf> {
    let found = folder();
    if found.is_none() {
        // Not by eprintln: the test harness would keep it to itself.
        let _ = writeln!(
            std::io::stderr(),
            "NOT TESTED: {test} needs the recorded data; set {VARIABLE} (default {DEFAULT})"
        );
    }
    found
}
