//! Reads the metrics of a tracker from its diagnostics port, over HTTP/1.1.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use http::header::{ACCEPT, HOST};
use http::{Request, StatusCode};
use http_body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::cli::client::Target;
use crate::cli::commands::top::open_metrics::Page;
use crate::cli::print::visible;
use crate::config::duration;

/// How long the tracker may take for a page. The diagnostics port needs milliseconds.
const PAGE_TIME: Duration = Duration::from_secs(5);

/// The most bytes of a page. A tracker's page has some 60 KB.
const MAX_PAGE_SIZE: usize = 4 << 20;

/// The most characters of another server's page in an error.
const MAX_QUOTE: usize = 80;

/// A metric of every tracker, with its version.
pub(super) const BUILD_INFO: &str = "nodetracker_build_info";

/// The address of a diagnostics port: `HOST:PORT`, `:PORT` of this machine, or a URL of the port.
#[derive(Debug, Clone)]
pub(super) struct DiagAddr(Target);

impl FromStr for DiagAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let addr = text.strip_suffix("/metrics").unwrap_or(text);
        let target: Target = addr.parse()?;
        match target.tls {
            true => Err("the diagnostics port has no TLS: use http://".to_owned()),
            false => Ok(Self(target)),
        }
    }
}

impl fmt::Display for DiagAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a page could not be read, in one line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum ScrapeError {
    /// Nothing answers at the address.
    #[error("{0}")]
    NoAnswer(String),
    /// The answer is no page of a tracker.
    #[error("{0}")]
    WrongAnswer(String),
}

impl ScrapeError {
    /// Returns what the user may have to change.
    pub(super) fn hint(&self, addr: impl fmt::Display) -> String {
        match self {
            Self::NoAnswer(_) => {
                format!("`nodetracker serve --diag-addr {addr}` (the key diag_addr) enables the port")
            }
            Self::WrongAnswer(_) => "top reads the port of the key diag_addr, not that of listen_addr".to_owned(),
        }
    }
}

/// What a tracker reported at one time.
#[derive(Debug, Clone)]
pub(super) struct Scrape {
    pub(super) at: Instant,
    /// The time of this machine, for ages.
    pub(super) time: SystemTime,
    pub(super) page: Page,
    /// Why the tracker takes no calls. `None` if the tracker is ready.
    pub(super) not_ready: Option<String>,
}

impl DiagAddr {
    /// Reads the metrics, and the reason if the tracker is not ready.
    ///
    /// # Errors
    ///
    /// The tracker does not answer within five seconds, or the page is no page of a tracker.
    pub(super) async fn scrape(&self) -> Result<Scrape, ScrapeError> {
        let late = |_| {
            let reason = format!("no answer within {}", duration::format(PAGE_TIME));
            Err(ScrapeError::NoAnswer(reason))
        };
        timeout(PAGE_TIME, self.read()).await.unwrap_or_else(late)
    }

    async fn read(&self) -> Result<Scrape, ScrapeError> {
        let (status, text) = self.get("/metrics").await?;
        if status != StatusCode::OK {
            return Err(ScrapeError::WrongAnswer(format!("{status}: {}", quote(&text))));
        }
        let page = Page::parse(&text).map_err(|error| ScrapeError::WrongAnswer(error.to_string()))?;
        let ready = page.value("nodetracker_ready");
        if page.series(BUILD_INFO).next().is_none() {
            let reason = format!("not the diagnostics port of a tracker: there is no {BUILD_INFO}");
            return Err(ScrapeError::WrongAnswer(reason));
        }
        Ok(Scrape {
            at: Instant::now(),
            time: SystemTime::now(),
            page,
            not_ready: match ready {
                Some(1.0) => None,
                _ => Some(self.reason().await?),
            },
        })
    }

    /// Returns why the tracker takes no calls.
    async fn reason(&self) -> Result<String, ScrapeError> {
        let (_, text) = self.get("/readyz").await?;
        let page: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let reason = page["reason"].as_str().unwrap_or("the tracker takes no calls");
        Ok(quote(reason))
    }

    /// Requests a page on a connection of its own: the port closes each connection after one page.
    async fn get(&self, path: &str) -> Result<(StatusCode, String), ScrapeError> {
        let stream = TcpStream::connect(self.to_string())
            .await
            .map_err(|error| ScrapeError::NoAnswer(format!("cannot connect: {error}")))?;
        let broken = |error: hyper::Error| ScrapeError::WrongAnswer(format!("no HTTP/1.1: {error}"));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let request = Request::get(path)
            .header(HOST, self.to_string())
            .header(ACCEPT, "application/openmetrics-text; version=1.0.0")
            .body(String::new())
            .map_err(|error| ScrapeError::WrongAnswer(error.to_string()))?;
        // The connection's errors reach the request.
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let mut body = pin!(response.into_body());
        let mut bytes = Vec::new();
        while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            let frame = frame.map_err(broken)?;
            bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            if bytes.len() > MAX_PAGE_SIZE {
                let reason = format!("the page has more than {MAX_PAGE_SIZE} bytes");
                return Err(ScrapeError::WrongAnswer(reason));
            }
        }
        let not_utf8 = |_| ScrapeError::WrongAnswer("the page is not UTF-8".to_owned());
        let text = String::from_utf8(bytes).map_err(not_utf8)?;
        Ok((status, text))
    }
}

/// Returns the beginning of a text that a server has sent, in one line.
fn quote(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    visible(&line.chars().take(MAX_QUOTE).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_configuration_and_urls() {
        for (text, addr) in [
            ("127.0.0.1:3030", "127.0.0.1:3030"),
            (":3030", "localhost:3030"),
            ("[::1]:3030", "[::1]:3030"),
            ("http://tracker:3030", "tracker:3030"),
            ("http://tracker:3030/", "tracker:3030"),
            ("http://tracker:3030/metrics", "tracker:3030"),
        ] {
            let parsed: DiagAddr = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(parsed.to_string(), addr);
        }
        for text in [
            "",
            ":",
            "tracker",
            "https://tracker:3030",
            "ftp://tracker:1",
            "tracker:3030/readyz",
        ] {
            text.parse::<DiagAddr>().expect_err(text);
        }
    }
}
