//! `arbees drain`, `move`, `pin` and their kin: asked of the leader, which answers with the plan it has carried out.

use anyhow::{Context as _, Result, bail};
use arbees_fleet::decide::operator::{Ask, Plan, Verb};
use clap::Args;
use serde::Deserialize;
use serde_json::json;

use crate::{Look, addresses, table};

/// What goes with every operator verb.
#[derive(Args, Debug)]
pub struct Operate {
    /// Print the plan and its load before and after, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do it only if the log still ends where this plan was made
    #[arg(long, value_name = "SEQUENCE")]
    basis: Option<u64>,
    /// Whose name is written down; the login name if none is given
    #[arg(long, value_name = "NAME")]
    operator: Option<String>,
    #[command(flatten)]
    look: Look,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default, flatten)]
    plan: Option<Plan>,
    error: Option<String>,
    applied: bool,
}

/// The name that is written down.
pub fn operator(given: Option<&str>) -> String {
    given.map(ToOwned::to_owned).or_else(|| addresses::variable("USER")).unwrap_or_else(|| "operator".to_owned())
}

/// Sends `request` to the leader, with the token; its answer, as it came.
pub async fn ask(look: &Look, mut request: serde_json::Value) -> Result<Vec<u8>> {
    let addresses = addresses::find(look)?;
    let log = addresses::log(&addresses).await?;
    let token = addresses::variable("OPERATOR_TOKEN").or(addresses.operator_token);
    let token = token.context("OPERATOR_TOKEN is not set: it must be the orchestrator's")?;
    request["token"] = json!(token);
    Ok(log.ask_leader(request.to_string().into_bytes()).await?.to_vec())
}

/// Asks the leader for `verb` and prints what came of it.
pub async fn run(verb: Verb, args: &Operate) -> Result<()> {
    let operator = operator(args.operator.as_deref());
    let wanted = Ask { verb, operator, dry_run: args.dry_run, basis: args.basis };
    let payload = ask(&args.look, serde_json::to_value(&wanted)?).await?;
    if args.look.json {
        println!("{}", String::from_utf8_lossy(&payload));
    }
    let answer: Answer = serde_json::from_slice(&payload).context("an answer that cannot be read")?;
    if let Some(error) = answer.error {
        bail!("{error}");
    }
    if !args.look.json {
        print(&answer.plan.unwrap_or_default(), answer.applied);
    }
    Ok(())
}

fn print(plan: &Plan, applied: bool) {
    if !plan.moves.is_empty() {
        let row = |m: &arbees_fleet::decide::operator::PlannedMove| {
            let from = m.from.as_ref().map_or("nobody".to_owned(), ToString::to_string);
            vec![m.game.to_string(), from, m.to.to_string()]
        };
        table::print(&["GAME", "FROM", "TO"], &plan.moves.iter().map(row).collect::<Vec<_>>());
        println!();
    }
    if !plan.loads.is_empty() {
        let row = |l: &arbees_fleet::decide::operator::PlannedLoad| {
            vec![l.shard.to_string(), l.before.to_string(), l.after.to_string(), l.max_games.to_string()]
        };
        table::print(&["SHARD", "BEFORE", "AFTER", "MAX"], &plan.loads.iter().map(row).collect::<Vec<_>>());
        println!();
    }
    if !plan.stay.is_empty() {
        let stay: Vec<String> = plan.stay.iter().map(ToString::to_string).collect();
        println!("no other shard has room for: {}", stay.join(" "));
    }
    let moves = plan.moves.len();
    if applied {
        println!("done: {moves} game(s) moved");
    } else {
        println!("nothing was done: {moves} game(s) would move; to do exactly this: --basis {}", plan.basis);
    }
}
