//! `arbees-feed`: an ESPN of our own, for trying things out.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Result, bail};
use arbees_testkit::feed::{Feed, Playback, Sim, Source};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// Serves scoreboards as ESPN does: made-up games, or recorded ones played back.
///
/// Example: arbees-feed --feed sim --speed 60 --listen 127.0.0.1:8099
#[derive(Parser, Debug)]
#[command(version)]
struct Args {
    /// sim, or dir:PATH with recordings
    #[arg(long, default_value = "sim")]
    feed: Source,
    /// How many times faster than it was
    #[arg(long, default_value_t = 60.0)]
    speed: f64,
    /// So many games that are all in play from the start, in place of a rolling schedule
    #[arg(long)]
    games: Option<usize>,
    /// Where to serve
    #[arg(long, default_value = "127.0.0.1:8099")]
    listen: SocketAddr,
}

/// Minutes of feed time that games last when they are all in play from the start.
const ALL_LIVE_MINUTES: i64 = 24 * 60;

async fn run(args: Args) -> Result<()> {
    if !(args.speed.is_finite() && args.speed > 0.0) {
        bail!("--speed {} is refused: allowed are numbers above 0", args.speed);
    }
    let feed = match (&args.feed, args.games) {
        (Source::Sim, None) => Feed::serve(args.listen, Sim::rolling(args.speed)).await?,
        (Source::Sim, Some(count)) => {
            Feed::serve(args.listen, Sim::all_live(args.speed, count, ALL_LIVE_MINUTES)).await?
        }
        (Source::Folder(path), _) => Feed::serve(args.listen, Playback::read(path, args.speed)?).await?,
        (Source::Live, _) => bail!("--feed live is ESPN itself: nothing to serve"),
    };
    println!("serving on {}", feed.url());
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

#[tokio::main]
#[allow(clippy::print_stderr)]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("arbees-feed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
