//! The query API and what is drawn from it.

use arbees_core::log::CONTROL;
use arbees_testkit::feed::Sim;
use reqwest::{Client, Response, StatusCode};
use serde_json::Value;

use crate::plane::{PATIENCE, Plane, busiest, confirmed, games_of, is, moved};

/// A projector whose API needs this token.
pub async fn plane(name: &str, games: usize) -> (Plane, String) {
    let mut plane = Plane::new(name, Sim::all_live(60.0, games, 24 * 60)).await;
    plane.settings.insert("API_READ_TOKEN".into(), "secret".into());
    plane.settings.insert("MAX_GAMES".into(), "30".into());
    plane.all(2).await;
    plane.until("all games confirmed", |s| is(confirmed(s), games)).await;
    let port = plane.programs.all().find(|(name, ..)| *name == "projector").unwrap().1;
    let url = format!("http://127.0.0.1:{port}");
    (plane, url)
}

pub async fn get(url: &str, path: &str) -> Response {
    arbees_core::install_tls();
    Client::new().get(format!("{url}{path}")).bearer_auth("secret").send().await.unwrap()
}

async fn json(url: &str, path: &str) -> Value {
    let answer = get(url, path).await;
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    answer.json().await.unwrap()
}

/// What comes next of an answer that goes on.
async fn part(answer: &mut Response) -> String {
    let part = tokio::time::timeout(PATIENCE, answer.chunk()).await.unwrap().unwrap().unwrap();
    String::from_utf8_lossy(&part).into_owned()
}

/// Status, and what the problem says.
async fn problem(url: &str, path: &str) -> (u16, String) {
    let answer = get(url, path).await;
    let status = answer.status().as_u16();
    assert_eq!(answer.headers()["content-type"], "application/problem+json", "{path}");
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["status"], status);
    (status, body["detail"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn the_api_answers_what_is_and_was_so_in_pages_with_tags_and_clear_refusals() {
    let (mut plane, url) = plane("api", 25).await;
    let (_, end) = plane.log.bounds(CONTROL).await.unwrap();
    // Read your writes: the answer waits for what the log holds now.
    let first = get(&url, &format!("/v1/games?limit=10&min_sequence={end}")).await;
    let at: u64 = first.headers()["x-arbees-sequence"].to_str().unwrap().parse().unwrap();
    assert!(at >= end);
    let mut page: Value = first.json().await.unwrap();
    // What is answered is what the document says.
    let document = json(&url, "/v1/openapi.json").await;
    let schema = |name: &str| document["components"]["schemas"][name]["properties"].as_object().unwrap().clone();
    let told = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(told(&page["games"][0]), schema("GameLine").keys().cloned().collect::<Vec<_>>());
    let shards = json(&url, "/v1/shards").await;
    assert_eq!(told(&shards["services"][0]), schema("ServiceLine").keys().cloned().collect::<Vec<_>>());
    assert_eq!(shards["services"][0]["breaker"], "closed");
    let explained = json(&url, &format!("/v1/explain/game/{}", page["games"][0]["game"].as_str().unwrap())).await;
    assert_eq!(told(&explained), schema("Explanation").keys().cloned().collect::<Vec<_>>());
    let manual = get(&url, "/runbook/shard_lost").await.text().await.unwrap();
    assert!(
        manual.starts_with("shard_lost\n\nA shard fell silent") && !manual.contains("duplicate_instance"),
        "{manual}"
    );
    assert_eq!(problem(&url, "/runbook/shard").await.0, 404);
    let mut ids = Vec::new();
    loop {
        ids.extend(page["games"].as_array().unwrap().iter().map(|g| g["game"].as_str().unwrap().to_owned()));
        let Some(next) = page["next_after"].as_str().map(ToOwned::to_owned) else { break };
        page = json(&url, &format!("/v1/games?limit=10&after={next}")).await;
    }
    let expected: Vec<String> = {
        let mut all: Vec<String> = plane.state().await.games.keys().map(ToString::to_string).collect();
        all.sort();
        all
    };
    ids.sort();
    assert_eq!(ids, expected, "pages hold each game once");
    let own = json(&url, "/v1/games?shard=shard_01&limit=1000").await;
    assert_eq!(own["games"].as_array().unwrap().len(), games_of(&plane.state().await, "shard_01").len());
    assert_eq!(json(&url, "/v1/assignments?limit=1000").await["assignments"].as_array().unwrap().len(), 25);
    assert_eq!(json(&url, "/v1/shards").await["services"].as_array().unwrap().len(), 2);
    assert_eq!(json(&url, "/v1/status").await["fleet"]["live"], 25);

    // Who has it already is told just that.
    let tagged = get(&url, "/v1/assignments").await;
    let tag = tagged.headers()["etag"].clone();
    let again = Client::new().get(format!("{url}/v1/assignments")).bearer_auth("secret").header("if-none-match", tag);
    let again = again.send().await.unwrap();
    assert_eq!((again.status(), again.bytes().await.unwrap().len()), (StatusCode::NOT_MODIFIED, 0));

    for (path, status, part) in [
        ("/v1/games?limit=0", 400, "allowed are 1 to 1000"),
        ("/v1/games?limit=x", 400, "limit"),
        ("/v1/events?from=x", 400, "from"),
        ("/v1/state?at=now&at=now", 400, "at"),
        ("/v1/sla?from=soon", 400, "allowed are now, a sequence"),
        ("/v1/nothing", 404, "there is nothing at /v1/nothing"),
        ("/v1/history/cat/x", 404, "allowed are game, shard, alert"),
        ("/v1/explain/game/nfl-1", 404, "no event of CONTROL is about it"),
        ("/v1/explain/game/no", 400, "no"),
        ("/v1/state?at=yesterday", 400, "allowed are now, a sequence"),
        ("/v1/state?at=99999999", 400, "CONTROL ends at"),
    ] {
        let (found, detail) = problem(&url, path).await;
        assert!(found == status && detail.contains(part), "{path}: {found} {detail}");
    }
    let stranger = Client::new().get(format!("{url}/v1/status")).send().await.unwrap();
    assert_eq!(stranger.status(), StatusCode::UNAUTHORIZED);
    let hash = arbees_proto::envelope::hex(&plane.state().await.hash());
    assert_eq!(json(&url, "/v1/state").await["state_hash"], hash.as_str());

    // Listeners hear of a move, and go on where they were cut off.
    let mut live = get(&url, "/v1/events").await;
    let shard = busiest(&plane.state().await);
    let games = games_of(&plane.state().await, &shard);
    crate::plane::leader_may_judge().await;
    plane.programs.process(&shard).unwrap().kill().await;
    plane.until("the games to be elsewhere", |s| moved(s, &games, &shard)).await;
    let mut heard = String::new();
    while !heard.contains("event: GameReassigned") {
        heard += &part(&mut live).await;
    }
    let last: u64 = heard.lines().filter_map(|l| l.strip_prefix("id: ")).next_back().unwrap().parse().unwrap();
    let resumed = Client::new().get(format!("{url}/v1/events")).bearer_auth("secret");
    let mut resumed = resumed.header("last-event-id", (last - 1).to_string()).send().await.unwrap();
    let mut again = String::new();
    while !again.contains("id: ") {
        again += &part(&mut resumed).await;
    }
    let next = again.lines().find_map(|l| l.strip_prefix("id: ")).unwrap();
    assert_eq!(next, last.to_string(), "without gap or repeat");
    let moved = games.iter().next().unwrap();
    let explained = json(&url, &format!("/v1/explain/game/{moved}")).await;
    assert_eq!(explained["stints"][0]["before"], shard.as_str());
    assert!(json(&url, "/v1/sla").await["recovery"]["worst_us"].as_i64().unwrap() < 9_000_000);
    assert!(json(&url, "/v1/history/shard/shard_01").await["events"].as_array().unwrap().len() > 10);

    // Without the database, what the tables hold is not to be had, and since when; the past is.
    plane.postgres.kill().await;
    let (status, detail) = problem(&url, "/v1/games").await;
    assert!(status == 503 && detail.contains("the database is away since 20"), "{detail}");
    assert_eq!(get(&url, &format!("/v1/explain/game/{moved}")).await.status(), StatusCode::OK);
    plane.postgres.start_again().await.unwrap();
    let back = || async {
        let status = get(&url, "/v1/games").await.status();
        if status == StatusCode::OK { Ok(()) } else { Err(status.to_string()) }
    };
    arbees_testkit::wait::until("the tables to be back", PATIENCE, back).await.unwrap();
    plane.stop(&["ALERT", "shard_lost", "nats", "projection interrupted", "database", "acquired connection"]).await;
}
