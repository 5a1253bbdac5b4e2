//! The pages of the diagnostics port.

use http::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use serde_json::json;

use crate::server::diag::readiness::Readiness;
use crate::server::metrics::{Format, Metrics};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// The path of the health.
pub(super) const HEALTH: &str = "/healthz";

/// The page at `/`, and of every other path that has no page.
const PAGES: &str = "\
/healthz  200 if all threads respond, else 503 and the thread that is stuck
/readyz   200 if the tracker takes calls, else 503; JSON with the reason
/metrics  metrics for Prometheus
";

/// Responds to a request. `stuck` is the number of a worker that does not respond. `metrics` is `None` until the
/// certificates are loaded.
pub(super) fn respond<B>(
    request: &Request<B>,
    readiness: &Readiness,
    stuck: Option<usize>,
    metrics: Option<&Metrics>,
) -> Response<String> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let method = request.method();
        let text = format!("{method} is not allowed here, only GET and HEAD\n");
        let mut response = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        HEALTH => match stuck {
            None => page(StatusCode::OK, TEXT, "ok\n".to_owned()),
            Some(worker) => {
                let text = format!("worker-{worker} is stuck\n");
                page(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
            }
        },
        "/readyz" => ready(readiness),
        "/metrics" => match metrics {
            Some(metrics) => {
                let format = format_for(request);
                page(StatusCode::OK, format.content_type(), metrics.encode(format))
            }
            None => page(
                StatusCode::SERVICE_UNAVAILABLE,
                TEXT,
                "the server is starting\n".to_owned(),
            ),
        },
        "/" => page(StatusCode::OK, TEXT, PAGES.to_owned()),
        _ => page(
            StatusCode::NOT_FOUND,
            TEXT,
            format!("there is no such page, only these:\n{PAGES}"),
        ),
    }
}

fn ready(readiness: &Readiness) -> Response<String> {
    let (status, body) = match readiness.check() {
        Ok(()) => (StatusCode::OK, json!({ "ready": true })),
        Err(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            json!({ "ready": false, "reason": reason }),
        ),
    };
    page(status, JSON, format!("{body}\n"))
}

/// Returns OpenMetrics if the client accepts it, or else the format that every version of Prometheus reads.
fn format_for<B>(request: &Request<B>) -> Format {
    let mut accepted = request.headers().get_all(ACCEPT).iter();
    let is_open_metrics = |value: &HeaderValue| {
        let value = value.to_str().unwrap_or_default();
        value.contains("application/openmetrics-text")
    };
    if accepted.any(is_open_metrics) {
        Format::OpenMetrics
    } else {
        Format::Prometheus
    }
}

fn page(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_worker_fails_the_health_and_no_other_page() {
        let get = |path: &str, stuck| {
            let request = Request::get(path).body(()).unwrap();
            respond(&request, &Readiness::default(), stuck, None)
        };
        let stuck = get(HEALTH, Some(3));
        assert_eq!(
            (stuck.status(), stuck.body().as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "worker-3 is stuck\n")
        );
        assert_eq!(get(HEALTH, None).status(), StatusCode::OK);
        assert_eq!(get("/", Some(3)).status(), StatusCode::OK);
    }
}
