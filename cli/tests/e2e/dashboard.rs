//! The dashboard, in a real browser.

use std::time::{Duration, Instant};

use arbees_testkit::history::History;
use base64::Engine as _;
use reqwest::{Client, StatusCode};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::api::{get, plane};
use crate::plane::{PATIENCE, Plane, busiest, games_of, moved};

/// A browser driven over WebDriver (W3C), where this machine has one.
struct Browser {
    driver: tokio::process::Child,
    session: String,
}

impl Browser {
    async fn start(folder: &std::path::Path) -> Option<Self> {
        arbees_core::install_tls();
        let port = arbees_testkit::servers::PortLease::take().unwrap();
        let mut command = tokio::process::Command::new("chromedriver");
        // A group of its own, for the browser that it starts outlives it.
        command.arg(format!("--port={}", port.port())).kill_on_drop(true).process_group(0);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let Ok(driver) = command.spawn() else {
            println!("NO BROWSER on this machine (chromium, chromium-driver): the dashboard was not drawn");
            return None;
        };
        let url = format!("http://127.0.0.1:{}", port.port());
        let ready = || async { Client::new().get(format!("{url}/status")).send().await.map_err(|e| e.to_string()) };
        arbees_testkit::wait::until("the driver", PATIENCE, ready).await.unwrap();
        let mut args: Vec<String> = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"]
            .into_iter()
            .chain(["disable-background-networking", "disable-component-update", "disable-sync"])
            .map(|flag| format!("--{flag}"))
            .collect();
        args.push("--window-size=1400,1000".to_owned());
        args.push(format!("--user-data-dir={}", folder.display()));
        let wanted = serde_json::json!({
            "capabilities": { "alwaysMatch": { "goog:chromeOptions": { "args": args } } }
        });
        let begun = Client::new().post(format!("{url}/session")).json(&wanted).send().await.unwrap();
        let begun: Value = begun.json().await.unwrap();
        let id = begun["value"]["sessionId"].as_str().unwrap_or_else(|| panic!("{begun}"));
        Some(Self { driver, session: format!("{url}/session/{id}") })
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let answer = Client::new().post(format!("{}{path}", self.session)).json(&body).send().await.unwrap();
        answer.json::<Value>().await.unwrap()["value"].clone()
    }

    async fn open(&self, url: &str) {
        self.post("/url", serde_json::json!({ "url": url })).await;
    }

    /// What the script returns.
    async fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", serde_json::json!({ "script": script, "args": [] })).await
    }

    /// Waits until the page says so.
    async fn shows(&self, what: &str, text: &str) {
        let probe = || async {
            let page = self.run("return document.body.innerText").await;
            if page.as_str().is_some_and(|p| p.contains(text)) { Ok(()) } else { Err(page.to_string()) }
        };
        arbees_testkit::wait::until(what, PATIENCE, probe).await.unwrap();
    }

    /// What the page looks like now, as a PNG into the folder that `ARBEES_SCREENSHOTS` names, for people to look at.
    async fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("ARBEES_SCREENSHOTS").map(std::path::PathBuf::from) else { return };
        let answer = Client::new().get(format!("{}/screenshot", self.session)).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        let png = base64::engine::general_purpose::STANDARD.decode(answer["value"].as_str().unwrap()).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), png).unwrap();
    }

    async fn close(mut self) {
        Client::new().delete(&self.session).send().await.unwrap();
        self.driver.kill().await.unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(group) = self.driver.id().and_then(|id| i32::try_from(id).ok()) {
            // After a test that failed; one that is over has waited for its driver.
            let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

#[tokio::test]
async fn the_dashboard_shows_what_is_what_happens_why_and_what_was() {
    let (mut plane, url) = plane("dashboard", 12).await;
    let Some(browser) = Browser::start(&plane.scratch.path().join("browser")).await else {
        return plane.stop(&[]).await;
    };
    browser.open(&format!("{url}/?token=secret")).await;
    let state = plane.state().await;
    let lost = busiest(&state);
    let game = games_of(&state, &lost).into_iter().next().unwrap();
    browser.shows("the services", &format!("shard/{lost}")).await;
    browser.shows("a game", &game).await;
    browser.shows("live events", "live").await;
    crate::plane::leader_may_judge().await;
    let before_us = arbees_core::time::now_us();
    let its = games_of(&state, &lost);
    plane.programs.process(&lost).unwrap().kill().await;
    plane.until("the games to be elsewhere", |s| moved(s, &its, &lost)).await;
    browser.shows("the move as it happens", &format!("{game} moves from {lost}")).await;
    browser.shows("the alert", &format!("shard_lost:{lost}")).await;
    browser.picture("a shard is lost").await;
    let why = format!("[...document.querySelectorAll('#games button')].find(b => b.textContent === '{game}').click()");
    browser.run(&why).await;
    browser.shows("the reason", "because").await;
    browser.shows("the reason", &format!("moved from {lost}")).await;
    // The past: the shard is well again there.
    browser.run(&format!("showPast({before_us})")).await;
    browser.shows("that it is the past", "What was so at").await;
    let status = "return [...document.querySelectorAll('#services tbody tr')].map(r => r.innerText).join('|')";
    let was = browser.run(status).await;
    let was = was.as_str().unwrap();
    browser.picture("the past").await;
    assert!(was.contains(&lost) && was.contains("healthy") && !was.contains("dead"), "{was}");
    browser.run("document.getElementById('now').click()").await;
    browser.shows("now again", "dead").await;
    // The page outlives the server that it is served by.
    let port = url.rsplit(':').next().unwrap().to_owned();
    plane.programs.process("projector").unwrap().kill().await;
    let mut again = tokio::process::Command::new(crate::plane::programs_folder().join("arbees-projector"));
    again.envs(&plane.settings).env("HTTP_LISTEN", format!("127.0.0.1:{port}")).kill_on_drop(true);
    let _again = again.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let fault = "return document.getElementById('fault').className + document.getElementById('link').textContent";
    let back = || async {
        let page = browser.run(fault).await;
        if page == "live" && get(&url, "/v1/status").await.status() == StatusCode::OK {
            Ok(())
        } else {
            Err(page.to_string())
        }
    };
    arbees_testkit::wait::until("the page to go on", PATIENCE, back).await.unwrap();
    browser.close().await;
    plane.stop(&["ALERT", "shard_lost", "nats"]).await;
}

/// As many games as a whole country plays on a Saturday, many times over.
const MANY: usize = 10_000;
/// Nothing that is asked of the page takes longer. On an idle machine it is below two seconds; this is for one that is busy.
const QUICK: Duration = Duration::from_secs(15);

#[tokio::test]
async fn the_dashboard_is_usable_with_ten_thousand_games() {
    let mut plane = Plane::new("dashboard-many", arbees_testkit::feed::Sim::all_live(60.0, 0, 0)).await;
    let mut history = History::new(20, 1_000);
    let never = CancellationToken::new();
    for (expected, events) in history.place(MANY) {
        plane.log.append(expected, &events, &never).await.unwrap();
    }
    let before = history.state().head.sequence;
    plane.projector().await;
    plane.verified().await;
    let Some(browser) = Browser::start(&plane.scratch.path().join("browser")).await else {
        return plane.stop(&[]).await;
    };
    let port = plane.programs.all().find(|(name, ..)| *name == "projector").unwrap().1;
    let asked = Instant::now();
    browser.open(&format!("http://127.0.0.1:{port}/")).await;
    browser.shows("the first page", "page 1").await;
    browser.shows("how many there are", "live games").await;
    let opened = asked.elapsed();
    let ids = "return [...document.querySelectorAll('#games button')].map(b => b.textContent)";
    let first: Vec<String> = serde_json::from_value(browser.run(ids).await).unwrap();
    assert_eq!(first.len(), 100, "a page at a time");
    let asked = Instant::now();
    browser.run("document.getElementById('more').click()").await;
    browser.shows("the next page", "page 2").await;
    let turned = asked.elapsed();
    let second: Vec<String> = serde_json::from_value(browser.run(ids).await).unwrap();
    assert!(second.len() == 100 && second[0] > first[99], "{second:?} after {first:?}");
    // By keyboard: what is typed is found.
    let known = history.state().games.keys().next_back().unwrap().to_string();
    let typed = format!(
        "const f = document.getElementById('find'); f.focus(); f.value = '{known}'; f.dispatchEvent(new Event('input'))"
    );
    let asked = Instant::now();
    browser.run(&typed).await;
    browser.shows("the game", &known).await;
    let found = asked.elapsed();
    browser.run("const f = document.getElementById('find'); f.value = ''; f.dispatchEvent(new Event('input'))").await;
    // Events flow in batches of hundreds while somebody looks.
    for _ in 0..20 {
        let (expected, events) = history.turn();
        plane.log.append(expected, &events, &never).await.unwrap();
    }
    browser.shows("the page to be of now", &format!("CONTROL up to {}", history.state().head.sequence)).await;
    browser.picture("ten thousand games").await;
    let shown = browser.run("return document.getElementById('events').childElementCount").await;
    assert!(shown.as_u64().is_some_and(|n| (1..=200).contains(&n)), "{shown}");
    // The past holds them all, and shows a page of them.
    let at_us = plane.log.get("CONTROL", before).await.unwrap().event().unwrap().occurred_at_us;
    let asked = Instant::now();
    // Dates are whole milliseconds.
    browser.run(&format!("showPast({})", at_us + 1_000)).await;
    browser.shows("the past", &format!("page 1 of {}", MANY / 100)).await;
    let past = asked.elapsed();
    let size = browser.run("return document.querySelectorAll('*').length").await;
    browser.picture("ten thousand games, the past").await;
    println!(
        "{MANY} games: opened in {opened:.1?}, next page {turned:.1?}, found {found:.1?}, past {past:.1?}, {size} elements"
    );
    assert!(size.as_u64().is_some_and(|n| n < 5_000), "{size} elements");
    for (what, took) in [("opened", opened), ("next page", turned), ("found", found), ("past", past)] {
        assert!(took < QUICK, "{what}: {took:?}");
    }
    browser.close().await;
    plane.stop(&["ALERT"]).await;
}
