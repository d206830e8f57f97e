//! Exit codes, the same for every program.

use std::fmt;
use std::process::ExitCode;

/// Why a program ends other than well.
#[derive(Debug)]
pub enum Exit {
    /// 2: the configuration is wrong; nothing was connected to.
    Config(crate::config::ConfigErrors),
    /// 3: what it stands on is wrong: a server too old, a stream or schema that differs.
    Ground(String),
    /// 4: another process took over this one's part.
    Superseded(String),
    /// 1: anything else.
    Failed(String),
}

impl Exit {
    /// The code that the process ends with.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Config(_) => 2,
            Self::Ground(_) => 3,
            Self::Superseded(_) => 4,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(errors) => errors.fmt(f),
            Self::Ground(why) | Self::Superseded(why) | Self::Failed(why) => f.write_str(why),
        }
    }
}

/// Prints why a program ends, and turns it into its exit code.
#[must_use]
#[allow(clippy::print_stderr)]
pub fn report(program: &str, result: Result<(), Exit>) -> ExitCode {
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            eprintln!("{program}: {exit}");
            ExitCode::from(exit.code())
        }
    };
    crate::traces::stop();
    code
}

/// An error with all its sources, in one line.
#[must_use]
pub fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
