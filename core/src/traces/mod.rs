//! Traces: which message led to which, from a heartbeat through the decision to the shard and the tables.
//!
//! Every heartbeat and every decision carries `traceparent` (W3C Trace Context, <https://www.w3.org/TR/trace-context/>), made
//! of ids that are there anyway: a heartbeat begins the trace of its own id, a decision goes on in that of the event that
//! caused it, and the end of an event's id is its span's. Where spans go, `OTEL_EXPORTER_OTLP_ENDPOINT` says; without it, or
//! without the feature `otel`, nothing but the header is made.

#[cfg(feature = "otel")]
mod export;

use std::collections::{HashMap, VecDeque};

use arbees_proto::envelope::hex;
use arbees_proto::{EventId, Payload, Sealed, subject, v1};

use crate::log::Stored;
use crate::time::now_us;

/// The header of W3C Trace Context.
pub const HEADER: &str = "traceparent";
/// Where spans are sent: the base URL of a collector that speaks OTLP over HTTP.
pub const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// Events whose places are remembered.
const REMEMBERED: usize = 10_000;

/// What is taken up later than this, in microseconds, makes no span: whoever catches up would flood the collector.
const LATE: i64 = 60_000_000;

/// A span in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    trace: [u8; 16],
    span: [u8; 8],
}

impl Place {
    /// The beginning of a trace: an event that no message caused.
    #[must_use]
    pub fn beginning(id: EventId) -> Self {
        Self { trace: id.0, span: end_of(id) }
    }

    /// The event `id`, which follows from this one.
    #[must_use]
    pub fn before(self, id: EventId) -> Self {
        Self { trace: self.trace, span: end_of(id) }
    }

    /// What `by` does about the message of this place.
    #[must_use]
    pub fn done_by(self, by: &str) -> Self {
        Self { trace: self.trace, span: end_of(EventId::derive(0, &[&self.span, by.as_bytes()])) }
    }

    /// As the header spells it, sampled.
    #[must_use]
    pub fn to_header(self) -> String {
        format!("00-{}-{}-01", hex(&self.trace), hex(&self.span))
    }

    /// Reads the header; none for what is no valid one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
        if version.len() != 2 || version == "ff" || trace.len() != 32 || span.len() != 16 {
            return None;
        }
        let place = Self {
            trace: u128::from_str_radix(trace, 16).ok()?.to_be_bytes(),
            span: u64::from_str_radix(span, 16).ok()?.to_be_bytes(),
        };
        (place.trace != [0; 16] && place.span != [0; 8]).then_some(place)
    }
}

/// The last eight bytes, which are those of a hash.
fn end_of(id: EventId) -> [u8; 8] {
    let mut end = [0; 8];
    end.copy_from_slice(&id.0[8..]);
    end
}

/// The places of the events that were appended last: what follows from them goes on in their traces.
#[derive(Debug, Default)]
pub struct Recent {
    places: HashMap<EventId, Place>,
    order: VecDeque<EventId>,
}

impl Recent {
    /// Where a decision stands: after its cause, if it has one. A cause that is not remembered is taken for a heartbeat, which
    /// begins its trace; one that is merely old is then told of as the beginning of another.
    pub fn place(&mut self, event: &Sealed) -> Place {
        let place = self.parent(event).map_or_else(|| Place::beginning(event.id), |parent| parent.before(event.id));
        self.remember(event.id, place);
        place
    }

    /// Notes where an event stands, as another leader's message says.
    pub fn remember(&mut self, id: EventId, place: Place) {
        if self.places.insert(id, place).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.places.remove(&oldest);
        }
    }

    /// Where its cause stands.
    #[must_use]
    pub fn parent(&self, event: &Sealed) -> Option<Place> {
        let cause = EventId::from_bytes(&event.event.causation_id)?;
        Some(self.places.get(&cause).copied().unwrap_or_else(|| Place::beginning(cause)))
    }
}

/// Where a message that is published by itself stands: heartbeats begin traces, nothing else has one.
#[must_use]
pub fn place_of(event: &v1::Event) -> Option<Place> {
    let is_beat = matches!(event.payload, Some(Payload::Heartbeat(_)));
    EventId::from_bytes(&event.id).filter(|_| is_beat).map(Place::beginning)
}

/// A finished piece of work.
#[derive(Debug)]
pub struct Span {
    pub name: String,
    pub place: Place,
    pub parent: Option<Place>,
    /// Whether it sends a message; else it takes one.
    pub sends: bool,
    /// Microseconds since the Unix epoch.
    pub start_us: i64,
    pub end_us: i64,
    pub attributes: Vec<(&'static str, String)>,
}

/// Exports the span of a message that was stored just now.
pub fn sent(event: &v1::Event, place: Place, parent: Option<Place>) {
    if !is_on() {
        return;
    }
    let producer = event.producer.clone().unwrap_or_default();
    let mut attributes = vec![("service.instance.id", producer.instance)];
    if let Some(reason) = &event.reason {
        attributes.push(("arbees.cause", reason.cause.clone()));
        attributes.push(("arbees.rule", reason.rule.clone()));
    }
    let event_type = event.payload.as_ref().map_or("", subject::type_name);
    let what = if matches!(event.payload, Some(Payload::Heartbeat(_))) { "say" } else { "decide" };
    let (start_us, end_us) = (event.occurred_at_us, now_us());
    export(Span { name: format!("{what} {event_type}"), place, parent, sends: true, start_us, end_us, attributes });
}

/// Exports the span of `instance` having done `what` about a message that it took from a stream.
pub fn took(what: &str, stored: &Stored, instance: &str) {
    let is_late = now_us() - stored.stored_at_ns / 1_000 > LATE;
    let Some(parent) = (is_on() && !is_late).then(|| Place::parse(stored.header(HEADER))).flatten() else { return };
    let name = format!("{what} {}", stored.header(arbees_proto::envelope::HEADER_TYPE));
    let attributes = vec![
        ("service.instance.id", instance.to_owned()),
        ("messaging.destination.name", stored.subject.clone()),
        ("messaging.message.id", stored.sequence.to_string()),
    ];
    let (start_us, end_us) = (stored.stored_at_ns / 1_000, now_us());
    let place = parent.done_by(&format!("{what} {instance}"));
    export(Span { name, place, parent: Some(parent), sends: false, start_us, end_us, attributes });
}

/// Begins to export, if the environment says where to.
///
/// # Errors
/// When it does, and that is not possible.
pub fn start(program: &'static str) -> Result<(), String> {
    match std::env::var(ENDPOINT) {
        Ok(endpoint) if !endpoint.trim().is_empty() => begin(program),
        _ => Ok(()),
    }
}

#[cfg(feature = "otel")]
pub use export::{begin, export, is_on, stop};

#[cfg(not(feature = "otel"))]
mod without {
    //! What is left without the feature.

    /// # Errors
    /// Always: somebody wants what is not there.
    pub fn begin(_: &'static str) -> Result<(), String> {
        Err(format!("{} is set, and this program was built without the feature otel", super::ENDPOINT))
    }

    pub fn export(_: super::Span) {}

    #[must_use]
    pub const fn is_on() -> bool {
        false
    }

    pub const fn stop() {}
}

#[cfg(not(feature = "otel"))]
pub use without::{begin, export, is_on, stop};

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(n: u8, cause: Option<EventId>) -> Sealed {
        let event = v1::Event {
            id: id(n).0.to_vec(),
            causation_id: cause.map(|c| c.0.to_vec()).unwrap_or_default(),
            payload: Some(Payload::LeaderElected(v1::LeaderElected::default())),
            ..v1::Event::default()
        };
        Sealed::new("s".to_owned(), event, None).unwrap()
    }

    fn id(n: u8) -> EventId {
        EventId::derive(1_700_000_000_000_000, &[&[n]])
    }

    #[test]
    fn the_header_is_that_of_the_standard() {
        let place = Place::beginning(id(1));
        let header = place.to_header();
        assert_eq!((header.len(), &header[..3], &header[52..]), (55, "00-", "-01"));
        assert_eq!(Place::parse(&header), Some(place));
        assert_eq!(Place::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap().span[1], 0xf0);
        for bad in ["", "00-1-2-01", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", &"0".repeat(55)] {
            assert_eq!(Place::parse(bad), None, "{bad}");
        }
        let nothing = format!("00-{}-{}-01", "0".repeat(32), "0".repeat(16));
        assert_eq!(Place::parse(&nothing), None);
    }

    #[test]
    fn what_follows_from_a_heartbeat_is_in_its_trace_however_long_the_chain() {
        let (mut recent, beat) = (Recent::default(), id(0));
        let status = recent.place(&sealed(1, Some(beat)));
        let moved = recent.place(&sealed(2, Some(id(1))));
        assert_eq!([status.trace, moved.trace], [beat.0; 2]);
        assert_eq!(recent.parent(&sealed(2, Some(id(1)))), Some(status));
        assert_eq!(recent.parent(&sealed(1, Some(beat))), Some(Place::beginning(beat)));
        let alone = recent.place(&sealed(3, None));
        assert_eq!((alone.trace, recent.parent(&sealed(3, None))), (id(3).0, None));
    }
}
