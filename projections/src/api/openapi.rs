//! What can be asked and what is answered, as an OpenAPI document: schemas are made from the types that are sent.

use axum::Json;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use crate::audit::explain::Explanation;
use crate::audit::sla::Sla;
use crate::audit::story::Line;
use crate::queries::{AlertLine, GameLine, ServiceLine, Summary};

/// A question: its path, what it is, what it takes, what is answered.
type Route = (&'static str, &'static str, &'static [&'static str], fn(&mut SchemaGenerator) -> Value);

const ROUTES: [Route; 12] = [
    ("/v1/status", "The fleet in a few numbers, and how far the tables are behind the log.", &["min_sequence"], |g| {
        object(&[("fleet", one::<Summary>(g)), ("log", json!({ "type": "object" }))])
    }),
    (
        "/v1/games",
        "A page of games, in the order of their ids.",
        &["limit", "after", "phase", "league", "shard", "prefix", "all", "min_sequence"],
        |g| object(&[("games", many::<GameLine>(g)), ("next_after", json!({ "type": ["string", "null"] }))]),
    ),
    ("/v1/assignments", "A page of games that a shard has.", &["limit", "after", "shard", "min_sequence"], |_| {
        let list = json!({ "type": "array", "items": { "type": "object" } });
        object(&[("assignments", list), ("next_after", json!({ "type": ["string", "null"] }))])
    }),
    ("/v1/shards", "Shards, with their load and last heartbeat.", &["min_sequence"], |g| {
        object(&[("services", many::<ServiceLine>(g))])
    }),
    ("/v1/services", "All services, shards among them.", &["min_sequence"], |g| {
        object(&[("services", many::<ServiceLine>(g))])
    }),
    ("/v1/alerts", "Incidents that last; with all the newest thousand.", &["all", "min_sequence"], |g| {
        object(&[("alerts", many::<AlertLine>(g))])
    }),
    ("/v1/history/{of}/{id}", "All that happened to a game, a shard or an alert.", &[], |g| {
        object(&[("events", many::<Line>(g)), ("left_out", json!({ "type": "integer" }))])
    }),
    ("/v1/explain/game/{id}", "Who has a game, since when, why, and who was told.", &["at"], |g| one::<Explanation>(g)),
    ("/v1/state", "The whole folded state at a moment, with its hash.", &["at"], |_| {
        object(&[("state", json!({ "type": "object" })), ("state_hash", json!({ "type": "string" }))])
    }),
    ("/v1/sla", "Seconds that games were watched by nobody or by two, beside the targets.", &["from", "to"], |g| {
        one::<Sla>(g)
    }),
    ("/v1/events", "Events of CONTROL as they come: server-sent events.", &["from"], |g| one::<Line>(g)),
    ("/v1/openapi.json", "This document.", &[], |_| json!({ "type": "object" })),
];

/// What each parameter is; `{of}` and `{id}` stand in paths.
const PARAMETERS: [(&str, &str, &str); 14] = [
    ("after", "string", "only what comes after this id: the next_after of the page before"),
    ("all", "boolean", "what is over, too"),
    ("at", "string", "a moment: a sequence, RFC 3339, or a while ago as in 5m"),
    ("from", "string", "a moment from which on; of events a sequence"),
    ("id", "string", "a game as nfl-401547417, a shard, or an incident"),
    ("league", "string", "only of this league"),
    ("limit", "integer", "lines at most, 1 to 1000"),
    ("min_sequence", "integer", "waits up to 5 s until CONTROL is in the tables up to here"),
    ("of", "string", "game, shard or alert"),
    ("phase", "string", "only in this phase"),
    ("prefix", "string", "only ids that begin so"),
    ("shard", "string", "only of this shard"),
    ("to", "string", "a moment up to which"),
    ("token", "string", "the token, for those who can send no header"),
];

fn one<T: schemars::JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

fn many<T: schemars::JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    json!({ "type": "array", "items": one::<T>(generator) })
}

fn object(fields: &[(&str, Value)]) -> Value {
    let properties: Map<String, Value> =
        fields.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    let required: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    json!({ "type": "object", "properties": properties, "required": required })
}

fn parameter(name: &str, place: &str) -> Value {
    let (kind, what) = PARAMETERS.iter().find(|p| p.0 == name).map_or(("string", ""), |p| (p.1, p.2));
    json!({ "name": name, "in": place, "required": place == "path", "description": what, "schema": { "type": kind } })
}

fn operation(generator: &mut SchemaGenerator, route: &Route) -> Value {
    let (path, summary, query, answer) = route;
    let in_path = path.split(['{', '}']).skip(1).step_by(2);
    let mut parameters: Vec<Value> = in_path.map(|name| parameter(name, "path")).collect();
    parameters.extend(query.iter().map(|name| parameter(name, "query")));
    let kind = if *path == "/v1/events" { "text/event-stream" } else { "application/json" };
    let problem = json!({ "description": "what is wrong, as RFC 9457 has it", "content": { "application/problem+json": {
        "schema": { "type": "object" } } } });
    let mut get = json!({ "summary": summary, "parameters": parameters, "responses": {
        "200": { "description": "the answer", "content": {} },
        "default": problem,
    } });
    get["responses"]["200"]["content"][kind] = json!({ "schema": answer(generator) });
    json!({ "get": get })
}

fn whole() -> Value {
    let mut generator =
        SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into()).into_generator();
    let paths: Map<String, Value> =
        ROUTES.iter().map(|route| (route.0.to_owned(), operation(&mut generator, route))).collect();
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Arbees", "version": env!("CARGO_PKG_VERSION"),
            "description": "What is so, from the tables; what was so and why, from the log. Read only. X-Arbees-Sequence says how far CONTROL is in an answer from the tables." },
        "paths": paths,
        "components": { "schemas": schemas, "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } } },
        "security": [{ "token": [] }, {}],
    })
}

pub async fn document() -> Json<Value> {
    Json(whole())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_in_the_document_and_every_reference_leads_somewhere() {
        let routed: BTreeSet<&str> = include_str!("mod.rs")
            .split(".route(\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .filter(|path| path.starts_with("/v1/") && !path.contains('*'))
            .collect();
        let document = whole();
        let told: BTreeSet<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(told, routed);
        let text = document.to_string();
        let references: BTreeSet<&str> =
            text.split("\"$ref\":\"#/components/schemas/").skip(1).filter_map(|r| r.split('"').next()).collect();
        assert!(references.len() >= 6, "{references:?}");
        for name in references {
            assert!(document["components"]["schemas"][name]["properties"].is_object(), "{name}");
        }
        for route in ROUTES {
            for name in route.2 {
                assert!(PARAMETERS.iter().any(|p| p.0 == *name), "{name} is not explained");
            }
        }
    }
}
