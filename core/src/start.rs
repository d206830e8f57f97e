//! How every service starts: configuration and health first, then the ground it stands on, waited for when it is away and
//! refused when it is wrong.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use clap::{Arg, ArgAction};
use tokio_util::sync::CancellationToken;

use crate::config::{ConfigErrors, Env, LogConfig, Lookup, Variable, empty_env, process_env};
use crate::exit::Exit;
use crate::health::{self, Health};
use crate::log::{self, ConnectError, EnsureError, Log};
use crate::retry::{GaveUp, Policy, retry};
use crate::{metrics, shutdown, telemetry, traces, variables};

/// Reads what a service is told: its arguments, of which there are hardly any, and its configuration. Starts logging. None when
/// it was only asked about itself.
///
/// # Errors
/// [`Exit::Config`] with everything that is wrong.
pub fn configured<C>(
    program: &'static str,
    about: &'static str,
    read: impl Fn(Env<Lookup>) -> Result<C, ConfigErrors>,
) -> Result<Option<C>, Exit> {
    let whole = |mut env: Env<Lookup>| {
        let asked = env.asked();
        variables::read_common(&mut env);
        (read(env), asked)
    };
    if is_answered(program, about, || whole(empty_env()).1.all()) {
        return Ok(None);
    }
    let (config, asked) = whole(process_env());
    let config = config.map_err(Exit::Config)?;
    telemetry::start();
    variables::say_unused(&asked);
    Ok(Some(config))
}

/// Answers `--help`, `--version` and `--variables`; anything else that is not allowed ends the program.
#[allow(clippy::print_stdout)]
fn is_answered(program: &'static str, about: &'static str, variables: impl Fn() -> Vec<Variable>) -> bool {
    let json = Arg::new("variables").long("variables").action(ArgAction::SetTrue);
    let command = clap::Command::new(program)
        .about(about)
        .version(env!("CARGO_PKG_VERSION"))
        .arg(json.help("Print as JSON which environment variables it reads, and end"))
        .after_help(help(program, &variables()));
    let wants_variables = command.get_matches().get_flag("variables");
    if wants_variables {
        let known = variables().into_iter().map(|v| {
            let meaning = variables::meaning(&v.name);
            serde_json::json!({ "name": v.name, "default": v.default, "allowed": v.allowed, "meaning": meaning })
        });
        println!("{:#}", serde_json::Value::Array(known.collect()));
    }
    wants_variables
}

/// What stands below a service's options: the variables by which it is told everything.
fn help(program: &str, variables: &[Variable]) -> String {
    let wide = variables.iter().map(|v| v.name.len()).max().unwrap_or(0);
    let mut text = String::from("Environment variables:\n");
    for v in variables {
        let meaning = variables::meaning(&v.name).unwrap_or_default();
        let default = if v.default.is_empty() { String::new() } else { format!(" [{}]", v.default) };
        text.push_str(&format!("  {:wide$}  {meaning}{default}\n", v.name));
    }
    text.push_str(&format!("\nExample:\n  NATS_URL=nats://127.0.0.1:4222 HTTP_LISTEN=127.0.0.1:8080 {program}\n"));
    text.push_str("\nExit codes: 0 well, 1 failed, 2 wrong configuration, 3 wrong ground, 4 superseded.");
    text
}

/// Listens for signals, and serves health and metrics on `listen`, with `parts` not yet reached.
///
/// # Errors
/// When the address cannot be bound.
pub async fn begin(
    program: &'static str,
    listen: SocketAddr,
    parts: &[&'static str],
) -> Result<(CancellationToken, Health), Exit> {
    begin_with(program, listen, parts, Router::new()).await
}

/// The same, and serves `more` beside them.
///
/// # Errors
/// When the address cannot be bound.
pub async fn begin_with(
    program: &'static str,
    listen: SocketAddr,
    parts: &[&'static str],
    more: Router,
) -> Result<(CancellationToken, Health), Exit> {
    let stop = shutdown::on_signal().map_err(|e| Exit::Failed(format!("listening for signals: {e}")))?;
    traces::start(program).map_err(Exit::Failed)?;
    let more = more.merge(metrics::start(program, &stop).map_err(Exit::Failed)?);
    let health = Health::new(program, parts);
    let bound = health::serve(listen, health.clone(), more, stop.clone()).await;
    let address = bound.map_err(|e| Exit::Failed(format!("HTTP_LISTEN {listen}: {e}")))?;
    tracing::info!(%address, "health is served");
    Ok((stop, health))
}

/// The log, connected and with its streams as they must be; none when asked to stop before that.
///
/// # Errors
/// [`Exit::Ground`] for what waiting does not mend.
pub async fn log(
    program: &str,
    config: &LogConfig,
    health: &Health,
    stop: &CancellationToken,
) -> Result<Option<Log>, Exit> {
    let log = match log::connect(program, config, stop).await {
        Ok(log) => log,
        Err(ConnectError::Canceled) => return Ok(None),
        Err(error) => return Err(Exit::Ground(error.to_string())),
    };
    let policy = Policy::patient();
    match retry("streams", &policy, stop, EnsureError::is_retryable, || log.ensure_streams()).await {
        Ok(()) => {
            health.ok("log");
            tokio::spawn(watch_connection(log.clone(), health.clone(), stop.clone()));
            Ok(Some(log))
        }
        Err(GaveUp::Canceled) => Ok(None),
        Err(GaveUp::Permanent(error) | GaveUp::Exhausted { last: error, .. }) => {
            Err(Exit::Ground(crate::exit::whole(&error)))
        }
    }
}

/// How often readiness looks at the connection.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Keeps what readiness says of the log true for as long as the program runs.
async fn watch_connection(log: Log, health: Health, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        let is_connected = log.is_connected();
        ::metrics::gauge!("arbees_log_connected").set(f64::from(u8::from(is_connected)));
        if is_connected {
            health.ok("log");
        } else {
            health.failed("log", "not connected");
        }
    }
}
