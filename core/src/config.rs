//! Configuration from environment variables: read whole, checked whole, and all that is wrong is said at once.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arbees_proto::subject::Names;
use serde::Serialize;

/// Everything that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} error(s) in the configuration:", self.0.len())?;
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl std::error::Error for ConfigErrors {}

/// A variable that a program reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Variable {
    pub name: String,
    /// Empty: without it something is off, or it is required.
    pub default: String,
    /// What may stand in it, in words.
    pub allowed: String,
}

/// The variables that a program has read, in the order of their first reading. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Asked(Arc<Mutex<Vec<Variable>>>);

impl Asked {
    fn note(&self, name: &str, default: &str, allowed: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.iter().position(|v| v.name == name).unwrap_or_else(|| {
            all.push(Variable { name: name.to_owned(), default: String::new(), allowed: String::new() });
            all.len() - 1
        });
        let variable = &mut all[known];
        // What is read twice was first read as bare text.
        for (of, what) in [(&mut variable.default, default), (&mut variable.allowed, allowed)] {
            if of.is_empty() {
                what.clone_into(of);
            }
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Variable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reads variables and gathers what is wrong with them.
#[derive(Debug)]
pub struct Env<F> {
    lookup: F,
    errors: Vec<String>,
    asked: Asked,
}

/// How a variable is looked up.
pub type Lookup = fn(&str) -> Option<String>;

/// The environment of this process. An empty variable counts as not set.
#[must_use]
pub fn process_env() -> Env<Lookup> {
    Env::new(|name| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()))
}

/// An environment in which nothing is set.
#[must_use]
pub fn empty_env() -> Env<Lookup> {
    Env::new(|_| None)
}

impl<F: Fn(&str) -> Option<String>> Env<F> {
    /// Reads through `lookup`.
    pub fn new(lookup: F) -> Self {
        Self { lookup, errors: Vec::new(), asked: Asked::default() }
    }

    /// Where it notes what it is asked for.
    #[must_use]
    pub fn asked(&self) -> Asked {
        self.asked.clone()
    }

    /// The variable's text, if it is set.
    pub fn text(&mut self, name: &str) -> Option<String> {
        self.asked.note(name, "", "");
        (self.lookup)(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
    }

    /// The variable's text, or `default`.
    pub fn text_or(&mut self, name: &str, default: &str) -> String {
        self.asked.note(name, default, "");
        self.text(name).unwrap_or_else(|| default.to_owned())
    }

    /// The variable's text; an error when it is not set.
    pub fn required(&mut self, name: &str, what: &str) -> String {
        self.asked.note(name, "required", what);
        self.text(name).unwrap_or_else(|| {
            self.errors.push(format!("{name} is not set: {what}"));
            String::new()
        })
    }

    /// A number within `range`.
    pub fn number<T>(&mut self, name: &str, default: T, range: RangeInclusive<T>) -> T
    where
        T: FromStr + PartialOrd + Copy + fmt::Display,
    {
        let (low, high) = (*range.start(), *range.end());
        self.asked.note(name, &default.to_string(), &format!("{low} to {high}"));
        let Some(text) = self.text(name) else { return default };
        match text.parse::<T>() {
            Ok(value) if range.contains(&value) => value,
            _ => {
                self.errors.push(format!("{name}={text:?} is refused: allowed is a number from {low} to {high}"));
                default
            }
        }
    }

    /// Seconds, whole or not, within `range`.
    pub fn seconds(&mut self, name: &str, default: f64, range: RangeInclusive<f64>) -> Duration {
        Duration::from_secs_f64(self.number(name, default, range))
    }

    /// One of `allowed`.
    pub fn one_of(&mut self, name: &str, default: &'static str, allowed: &[&'static str]) -> &'static str {
        self.asked.note(name, default, &allowed.join(" "));
        let Some(text) = self.text(name) else { return default };
        allowed.iter().find(|a| **a == text.to_lowercase()).copied().unwrap_or_else(|| {
            self.errors.push(format!("{name}={text:?} is refused: allowed are {}", allowed.join(" ")));
            default
        })
    }

    /// Whether it is switched on.
    pub fn flag(&mut self, name: &str, default: bool) -> bool {
        let default = if default { "true" } else { "false" };
        matches!(self.one_of(name, default, &["true", "false", "1", "0"]), "true" | "1")
    }

    /// A URL that begins with one of `schemes`, if it is set.
    pub fn url_if_set(&mut self, name: &str, schemes: &[&str]) -> Option<String> {
        self.asked.note(name, "", &schemes.join(" "));
        self.text(name).map(|url| self.url(name, &url, schemes))
    }

    /// A URL that begins with one of `schemes`.
    pub fn url(&mut self, name: &str, default: &str, schemes: &[&str]) -> String {
        let text = self.text_or(name, default);
        self.asked.note(name, default, &schemes.join(" "));
        if !schemes.iter().any(|scheme| text.len() > scheme.len() && text.starts_with(scheme)) {
            // A URL can hold a password: it is not repeated.
            self.errors.push(format!("{name} is refused: allowed are URLs that begin with {}", schemes.join(" ")));
        }
        text
    }

    /// Notes an error that concerns several variables.
    pub fn check(&mut self, fine: bool, otherwise: &str) {
        if !fine {
            self.errors.push(otherwise.to_owned());
        }
    }

    /// Notes the error of `result`.
    pub fn take<T, E: fmt::Display>(&mut self, name: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|e| self.errors.push(format!("{name} is refused: {e}"))).ok()
    }

    /// `config`, or everything that was wrong.
    ///
    /// # Errors
    /// All errors noted since the start.
    pub fn finish<T>(self, config: T) -> Result<T, ConfigErrors> {
        if self.errors.is_empty() { Ok(config) } else { Err(ConfigErrors(self.errors)) }
    }
}

/// How to reach the log.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// `NATS_URL`: one or several, comma separated.
    pub url: String,
    /// `NATS_CREDS`: path of a credentials file.
    pub creds: Option<String>,
    /// From `STREAM_PREFIX`.
    pub names: Names,
    /// `STREAM_REPLICAS`: copies of each stream that is created here.
    pub replicas: u32,
}

impl LogConfig {
    /// Reads it.
    pub fn read<F: Fn(&str) -> Option<String>>(env: &mut Env<F>) -> Self {
        let prefix = env.text_or("STREAM_PREFIX", "");
        let plain = prefix.len() <= 32 && prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        env.check(
            plain,
            &format!("STREAM_PREFIX={prefix:?} is refused: allowed are letters, digits and '-', at most 32"),
        );
        let replicas = env.number("STREAM_REPLICAS", 1, 1..=5);
        env.check(replicas % 2 == 1, "STREAM_REPLICAS is refused: allowed are 1, 3 and 5");
        Self {
            url: env.url("NATS_URL", "nats://127.0.0.1:4222", &["nats://", "tls://"]),
            creds: env.text("NATS_CREDS"),
            names: Names::new(&prefix),
            replicas,
        }
    }
}

/// `REDIS_URL`.
pub fn redis_url<F: Fn(&str) -> Option<String>>(env: &mut Env<F>) -> String {
    let schemes = ["redis://", "rediss://", "unix://", "redis+sentinel://", "rediss+sentinel://"];
    env.url("REDIS_URL", "redis://127.0.0.1:6379", &schemes)
}

/// `DATABASE_URL`.
pub fn database_url<F: Fn(&str) -> Option<String>>(env: &mut Env<F>) -> String {
    env.url("DATABASE_URL", "postgres://127.0.0.1:5432/arbees", &["postgres://", "postgresql://"])
}

/// `HTTP_LISTEN`: where `/healthz`, `/readyz` and `/metrics` are served; loopback unless told otherwise.
pub fn http_listen<F: Fn(&str) -> Option<String>>(env: &mut Env<F>) -> std::net::SocketAddr {
    let text = env.text_or("HTTP_LISTEN", "127.0.0.1:0");
    let parsed = text.parse().map_err(|_| format!("{text:?} is no address and port, as in 127.0.0.1:8080"));
    env.take("HTTP_LISTEN", parsed).unwrap_or_else(|| std::net::SocketAddr::from(([127, 0, 0, 1], 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_wrong_is_said_at_once_with_what_is_allowed() {
        let mut env = Env::new(|name| match name {
            "MAX_GAMES" => Some("many".to_owned()),
            "POLL_INTERVAL" => Some("9".to_owned()),
            "REDIS_URL" => Some("http://user:secret@host".to_owned()),
            "STREAM_PREFIX" => Some("a.b".to_owned()),
            _ => None,
        });
        env.number("MAX_GAMES", 20u32, 1..=10_000);
        env.seconds("POLL_INTERVAL", 0.5, 0.1..=5.0);
        env.required("SHARD_ID", "a name");
        redis_url(&mut env);
        LogConfig::read(&mut env);
        let errors = env.finish(()).unwrap_err().to_string();
        for part in
            ["MAX_GAMES=\"many\"", "from 0.1 to 5", "SHARD_ID is not set", "REDIS_URL", "STREAM_PREFIX", "5 error"]
        {
            assert!(errors.contains(part), "{part} in {errors}");
        }
        assert!(!errors.contains("secret"), "{errors}");
    }
}
