//! Spans to a collector: OTLP over HTTP, in batches, from a thread of the library's own. What a collector does not take after the
//! library's few tries is dropped: nobody waits for it.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor as _};

use super::{Place, Span};

/// A request that is not answered within this has failed.
const DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 64 << 10;
/// How long a program that ends waits for its last spans to be taken.
const LAST_WORDS: Duration = Duration::from_secs(2);

static PROCESSOR: OnceLock<BatchSpanProcessor> = OnceLock::new();

/// Begins to export as `program`.
///
/// # Errors
/// When the exporter cannot be made of what the environment says.
pub fn begin(program: &'static str) -> Result<(), String> {
    crate::install_tls();
    // A redirect could carry a secret elsewhere.
    let http = reqwest::Client::builder().timeout(DEADLINE).redirect(reqwest::redirect::Policy::none()).build();
    let http = http.map_err(|e| crate::exit::whole(&e))?;
    let client = Client { http, runtime: tokio::runtime::Handle::current(), is_away: Arc::default() };
    let exporter = SpanExporter::builder().with_http().with_http_client(client).build();
    // What the library says repeats the URL, which can hold a password.
    let exporter = exporter.map_err(|_| format!("{} and what else OTEL_* says make no exporter", super::ENDPOINT))?;
    let mut processor = BatchSpanProcessor::builder(exporter).build();
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    processor.set_resource(&Resource::builder().with_service_name(program).with_attribute(version).build());
    // A second start in one process changes nothing.
    let _ = PROCESSOR.set(processor);
    Ok(())
}

/// Whether spans go anywhere.
#[must_use]
pub fn is_on() -> bool {
    PROCESSOR.get().is_some()
}

/// Hands `span` over. It is dropped when too many wait.
pub fn export(span: Span) {
    let Some(processor) = PROCESSOR.get() else { return };
    let attributes = span.attributes.into_iter().map(|(name, value)| KeyValue::new(name, value)).collect();
    processor.on_end(SpanData {
        span_context: context(span.place),
        parent_span_id: span.parent.map_or(SpanId::INVALID, |p| SpanId::from_bytes(p.span)),
        parent_span_is_remote: !span.sends,
        span_kind: if span.sends { SpanKind::Producer } else { SpanKind::Consumer },
        name: Cow::Owned(span.name),
        start_time: time(span.start_us),
        end_time: time(span.end_us.max(span.start_us)),
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("arbees").build(),
    });
}

/// Sends what is left, for no longer than two seconds.
pub fn stop() {
    if let Some(processor) = PROCESSOR.get()
        && let Err(error) = processor.shutdown_with_timeout(LAST_WORDS)
    {
        tracing::info!(%error, "the last spans were not taken");
    }
}

fn context(place: Place) -> SpanContext {
    let (trace, span) = (TraceId::from_bytes(place.trace), SpanId::from_bytes(place.span));
    SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::default())
}

fn time(at_us: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(at_us).unwrap_or(0))
}

/// What went wrong, without the URL.
fn story(error: &reqwest::Error) -> String {
    std::error::Error::source(error).map_or_else(|| "it cannot be sent".to_owned(), crate::exit::whole)
}

/// The library's thread knows no runtime: requests run on this one.
#[derive(Debug)]
struct Client {
    http: reqwest::Client,
    runtime: tokio::runtime::Handle,
    is_away: Arc<AtomicBool>,
}

impl Client {
    /// Says once that spans are not taken, and once that they are again.
    fn note(&self, failed: Option<String>) {
        match failed {
            Some(why) if !self.is_away.swap(true, Ordering::Relaxed) => tracing::warn!(why, "traces are not taken"),
            None if self.is_away.swap(false, Ordering::Relaxed) => tracing::info!("traces are taken again"),
            _ => {}
        }
    }
}

impl HttpClient for Client {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let http = self.http.clone();
        let sending = self.runtime.spawn(async move {
            let mut answer = http.execute(request.try_into()?).await?;
            let mut body = Vec::new();
            while let Some(part) = answer.chunk().await?
                && body.len() + part.len() <= MAX_ANSWER
            {
                body.extend_from_slice(&part);
            }
            Ok::<_, reqwest::Error>((answer.status(), answer.headers().clone(), body))
        });
        Box::pin(async move {
            let (status, headers, body) = sending.await?.inspect_err(|e| self.note(Some(story(e))))?;
            self.note((!status.is_success()).then(|| status.to_string()));
            let mut response = Response::new(Bytes::from(body));
            (*response.status_mut(), *response.headers_mut()) = (status, headers);
            Ok(response)
        })
    }
}
