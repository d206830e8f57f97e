//! What `up` shows: one line for each thing, and on a terminal one line of figures that is rewritten.

use std::cell::Cell;
use std::io::{IsTerminal as _, Write as _};

/// Standard output, as a terminal or as a log.
#[derive(Debug)]
pub struct Screen {
    rewrites: bool,
    is_dirty: Cell<bool>,
}

impl Screen {
    /// A screen; `plain` never rewrites.
    pub fn new(plain: bool) -> Self {
        Self { rewrites: !plain && std::io::stdout().is_terminal(), is_dirty: Cell::new(false) }
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        if self.is_dirty.take() {
            println!();
        }
        println!("{text}");
    }

    /// A thing that has started.
    pub fn started(&self, name: &str, detail: &str) {
        self.line(&format!("  {name:<14} {detail}"));
    }

    /// Figures, in place of the last ones.
    pub fn status(&self, text: &str) {
        let now = chrono::Local::now().format("%H:%M:%S");
        if self.rewrites {
            print!("\r\x1b[2K{now} {text}");
            self.is_dirty.set(true);
        } else {
            println!("{now} {text}");
        }
        // A terminal that is gone is noticed at the next signal.
        let _ = std::io::stdout().flush();
    }
}
