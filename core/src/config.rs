//! Configuration from environment variables: read whole, checked whole, and all that is wrong is said at once.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use arbees_proto::subject::Names;

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

/// Reads variables and gathers what is wrong with them.
#[derive(Debug)]
pub struct Env<F> {
    lookup: F,
    errors: Vec<String>,
}

/// The environment of this process. An empty variable counts as not set.
pub fn process_env() -> Env<impl Fn(&str) -> Option<String>> {
    Env::new(|name| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()))
}

impl<F: Fn(&str) -> Option<String>> Env<F> {
    /// Reads through `lookup`.
    pub const fn new(lookup: F) -> Self {
        Self { lookup, errors: Vec::new() }
    }

    /// The variable's text, if it is set.
    pub fn text(&mut self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
    }

    /// The variable's text; an error when it is not set.
    pub fn required(&mut self, name: &str, what: &str) -> String {
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
        let Some(text) = self.text(name) else { return default };
        match text.parse::<T>() {
            Ok(value) if range.contains(&value) => value,
            _ => {
                let (low, high) = range.into_inner();
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
        let Some(text) = self.text(name) else { return default };
        allowed.iter().find(|a| **a == text.to_lowercase()).copied().unwrap_or_else(|| {
            self.errors.push(format!("{name}={text:?} is refused: allowed are {}", allowed.join(" ")));
            default
        })
    }

    /// A URL that begins with one of `schemes`.
    pub fn url(&mut self, name: &str, default: &str, schemes: &[&str]) -> String {
        let text = self.text(name).unwrap_or_else(|| default.to_owned());
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
        let prefix = env.text("STREAM_PREFIX").unwrap_or_default();
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
    env.url("REDIS_URL", "redis://127.0.0.1:6379", &["redis://", "rediss://", "unix://"])
}

/// `DATABASE_URL`.
pub fn database_url<F: Fn(&str) -> Option<String>>(env: &mut Env<F>) -> String {
    env.url("DATABASE_URL", "postgres://127.0.0.1:5432/arbees", &["postgres://", "postgresql://"])
}

/// `HTTP_LISTEN`: where `/healthz` and `/readyz` are served; loopback unless told otherwise.
pub fn http_listen<F: Fn(&str) -> Option<String>>(env: &mut Env<F>) -> std::net::SocketAddr {
    let text = env.text("HTTP_LISTEN").unwrap_or_else(|| "127.0.0.1:0".to_owned());
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
