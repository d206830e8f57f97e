//! Somebody who takes alerts over HTTP: Slack, PagerDuty, Twilio or a webhook of one's own, as a test wants it; or traces.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio_util::sync::{CancellationToken, DropGuard};

/// One request that came in.
#[derive(Clone, Debug)]
pub struct Received {
    pub at: Instant,
    pub path: String,
    pub headers: HeaderMap,
    pub bytes: Bytes,
    /// As text.
    pub body: String,
}

/// How it answers.
#[derive(Clone, Copy, Debug, Default)]
pub enum Mood {
    /// 200 at once.
    #[default]
    Well,
    /// 200, so late.
    Slow(Duration),
    /// This status; 429 with so many seconds of `Retry-After`.
    Status(u16, u64),
}

#[derive(Clone, Debug, Default)]
struct Book {
    received: Arc<Mutex<Vec<Received>>>,
    mood: Arc<Mutex<Mood>>,
}

/// A running receiver. Ends when dropped.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    book: Book,
    _stop: DropGuard,
}

impl Receiver {
    /// Listens on a port of its own.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start() -> Result<Self> {
        let book = Book::default();
        let app = Router::new().fallback(take).with_state(book.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(async move { axum::serve(listener, app).with_graceful_shutdown(stopped).await });
        Ok(Self { address, book, _stop: stop.drop_guard() })
    }

    /// Its base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on it answers like this.
    pub fn set_mood(&self, mood: Mood) {
        *self.book.mood.lock().unwrap_or_else(PoisonError::into_inner) = mood;
    }

    /// All that came in below `path`, in order; what it refused, too.
    #[must_use]
    pub fn received(&self, path: &str) -> Vec<Received> {
        let all = self.book.received.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|r| r.path.starts_with(path)).cloned().collect()
    }
}

async fn take(State(book): State<Book>, uri: Uri, headers: HeaderMap, bytes: Bytes) -> Response {
    let body = String::from_utf8_lossy(&bytes).into_owned();
    let received = Received { at: Instant::now(), path: uri.path().to_owned(), headers, bytes, body };
    book.received.lock().unwrap_or_else(PoisonError::into_inner).push(received);
    let mood = *book.mood.lock().unwrap_or_else(PoisonError::into_inner);
    match mood {
        Mood::Well => StatusCode::OK.into_response(),
        Mood::Slow(late) => {
            tokio::time::sleep(late).await;
            StatusCode::OK.into_response()
        }
        Mood::Status(status, after) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (status, [(header::RETRY_AFTER, after.to_string())]).into_response()
        }
    }
}
