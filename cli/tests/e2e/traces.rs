//! Traces, as a collector gets them: from a heartbeat through the decision to the shard and the tables.

use std::time::Duration;

use arbees_testkit::feed::Sim;
use arbees_testkit::receiver::{Mood, Receiver};
use arbees_testkit::wait;
use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;

use crate::plane::{PATIENCE, Plane, busiest, confirmed, games_of, is, moved};

/// A span as it came in.
#[derive(Clone, Debug)]
struct Span {
    service: String,
    name: String,
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    took_ns: u64,
    attributes: Vec<(String, String)>,
}

fn text(value: Option<&opentelemetry_proto::tonic::common::v1::AnyValue>) -> String {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    match value.and_then(|v| v.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        other => format!("{other:?}"),
    }
}

fn spans(collector: &Receiver) -> Vec<Span> {
    let mut all = Vec::new();
    for received in collector.received("/v1/traces") {
        let request = ExportTraceServiceRequest::decode(received.bytes).unwrap();
        for of in request.resource_spans {
            let attributes = of.resource.unwrap().attributes;
            let service = text(attributes.iter().find(|a| a.key == "service.name").unwrap().value.as_ref());
            for span in of.scope_spans.into_iter().flat_map(|s| s.spans) {
                all.push(Span {
                    service: service.clone(),
                    name: span.name,
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                    took_ns: span.end_time_unix_nano - span.start_time_unix_nano,
                    attributes: span.attributes.iter().map(|a| (a.key.clone(), text(a.value.as_ref()))).collect(),
                });
            }
        }
    }
    all
}

fn of<'a>(span: &'a Span, name: &str) -> Option<&'a str> {
    span.attributes.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
}

/// Which shard or orchestrator it is of.
fn instance(span: &Span) -> Option<&str> {
    of(span, "service.instance.id")
}

/// The span that follows from `parent` in `service` under this name.
fn next<'a>(all: &'a [Span], parent: &Span, service: &str, name: &str) -> Option<&'a Span> {
    all.iter().find(|s| s.parent == parent.id && s.trace == parent.trace && s.service == service && s.name == name)
}

#[tokio::test]
async fn a_trace_leads_from_a_shards_word_to_the_move_the_new_owner_and_the_tables() {
    let collector = Receiver::start().await.unwrap();
    let mut plane = Plane::new("traces", Sim::all_live(60.0, 6, 24 * 60)).await;
    plane.settings.insert("OTEL_EXPORTER_OTLP_ENDPOINT".into(), collector.url());
    plane.settings.insert("OTEL_BSP_SCHEDULE_DELAY".into(), "200".into());
    plane.all(2).await;
    plane.until("6 games confirmed", |s| is(confirmed(s), 6)).await;
    // It says that it stops, and hands its games over.
    let stopping = busiest(&plane.state().await);
    let games = games_of(&plane.state().await, &stopping);
    plane.programs.process(&stopping).unwrap().signal(Signal::SIGTERM);
    plane.until("its games to be watched elsewhere", |s| moved(s, &games, &stopping)).await;
    let whole = || async {
        let all = spans(&collector);
        let said = all.iter().filter(|s| s.service == "arbees-shard" && s.name == "say Heartbeat");
        let chain = |said: &Span| {
            let status = next(&all, said, "arbees-orchestrator", "decide ServiceStatusChanged")?;
            let moved = next(&all, status, "arbees-orchestrator", "decide GameReassigned")?;
            // The old owner hears of it, too, and lets go.
            let of_new = |s: &&Span| s.name == "watch GameReassigned" && instance(s).is_none_or(|i| i != stopping);
            let watched = all.iter().filter(|s| s.parent == moved.id && s.trace == moved.trace).find(of_new)?;
            let told = next(&all, moved, "arbees-projector", "project GameReassigned")?;
            Some([said, status, moved, watched, told].map(Clone::clone))
        };
        said.filter_map(chain).next().ok_or_else(|| format!("{} spans, none such", all.len()))
    };
    let (chain, _) = wait::until("the whole trace", PATIENCE, whole).await.unwrap();
    for span in &chain {
        let took = Duration::from_nanos(span.took_ns);
        println!("{:<22} {:<30} {took:>9.1?}  {:?}", span.service, span.name, span.attributes);
        assert!(took < Duration::from_secs(5), "{span:?}");
    }
    assert_eq!(instance(&chain[0]), Some(stopping.as_str()));
    assert_eq!(of(&chain[2], "arbees.cause"), Some("its shard stops"));
    assert_eq!(chain[3].service, "arbees-shard");
    assert!(chain[0].parent.is_empty(), "a heartbeat begins its trace");
    // The message says the same to whoever reads it.
    let (sequence, trace) = (of(&chain[3], "messaging.message.id").unwrap(), &chain[0].trace);
    let stored = plane.log.get("CONTROL", sequence.parse().unwrap()).await.unwrap();
    let trace: String = trace.iter().map(|b| format!("{b:02x}")).collect();
    assert!(stored.header("traceparent").starts_with(&format!("00-{trace}-")), "{}", stored.header("traceparent"));
    // A collector that never answers delays nobody: neither decisions nor the end.
    collector.set_mood(Mood::Slow(Duration::from_secs(60)));
    plane.shard("shard_03").await;
    plane.until("another shard to be well", |s| is(crate::plane::well(s, "shard_03"), true)).await;
    plane.stop(&["poll failed", "traces are not taken"]).await;
}
