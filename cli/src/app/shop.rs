//! What each application of the sample answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alcazar_service::Shutdown;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, Method, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::call::{Answer, Callers};

/// How often the nightly report is made; nights are short here.
const NIGHT: Duration = Duration::from_secs(20);

/// The shop window: asks the catalog and the reviews, and shows both.
pub(super) fn frontend(callers: Callers) -> Router {
    async fn page(State(callers): State<Callers>, headers: HeaderMap) -> impl IntoResponse {
        let catalog = callers.call(Method::GET, "http://catalog.shop/items");
        let reviews = callers.call(Method::GET, "http://reviews.shop/ratings");
        let (catalog, reviews) = tokio::join!(catalog, reviews);
        reply(&headers, json!({ "service": "frontend", "catalog": catalog.json(), "reviews": reviews.json() }))
    }
    Router::new().route("/", get(page)).with_state(callers)
}

/// What is for sale.
pub(super) fn catalog() -> Router {
    async fn items(headers: HeaderMap) -> impl IntoResponse {
        reply(&headers, json!({ "service": "catalog", "items": ["azulejo tile", "brass astrolabe", "orange tree"] }))
    }
    Router::new().route("/items", get(items))
}

/// What customers think; a POST adds five stars.
pub(super) fn reviews() -> Router {
    type Ratings = Arc<Mutex<Vec<u8>>>;
    async fn list(State(ratings): State<Ratings>, headers: HeaderMap) -> impl IntoResponse {
        let ratings = ratings.lock().unwrap_or_else(PoisonError::into_inner).clone();
        reply(&headers, json!({ "service": "reviews", "ratings": ratings }))
    }
    async fn add(State(ratings): State<Ratings>, headers: HeaderMap) -> impl IntoResponse {
        let mut ratings = ratings.lock().unwrap_or_else(PoisonError::into_inner);
        // The sample stays small however often it is asked.
        if ratings.len() < 100 {
            ratings.push(5);
        }
        reply(&headers, json!({ "service": "reviews", "count": ratings.len() }))
    }
    async fn summary(State(ratings): State<Ratings>, headers: HeaderMap) -> impl IntoResponse {
        let ratings = ratings.lock().unwrap_or_else(PoisonError::into_inner);
        let sum: u32 = ratings.iter().map(|stars| u32::from(*stars)).sum();
        let average = f64::from(sum) / ratings.len().max(1) as f64;
        reply(&headers, json!({ "service": "reviews", "count": ratings.len(), "average": average }))
    }
    Router::new()
        .route("/ratings", get(list).post(add))
        .route("/ratings/summary", get(summary))
        .with_state(Ratings::new(Mutex::new(vec![5, 4, 5])))
}

/// Where the money goes.
pub(super) fn payments() -> Router {
    async fn charge(headers: HeaderMap) -> impl IntoResponse {
        reply(&headers, json!({ "service": "payments", "charged": "12 reales" }))
    }
    async fn ledger(headers: HeaderMap) -> impl IntoResponse {
        reply(&headers, json!({ "service": "payments", "ledger": ["12 reales", "8 reales"] }))
    }
    Router::new().route("/charge", post(charge)).route("/ledger", get(ledger))
}

/// A report that calls one thing it may, and one it may not, again and again.
pub(super) fn nightly(callers: Callers, shutdown: &Shutdown) -> Router {
    type Report = Arc<Mutex<Value>>;
    async fn last(State(report): State<Report>, headers: HeaderMap) -> impl IntoResponse {
        let report = report.lock().unwrap_or_else(PoisonError::into_inner).clone();
        reply(&headers, report)
    }
    let report = Report::new(Mutex::new(json!({ "service": "nightly", "report": "not made yet" })));
    let (writes, ends) = (report.clone(), shutdown.clone());
    shutdown.spawn("nightly report", async move {
        loop {
            tokio::select! {
                () = ends.cancelled() => return,
                () = tokio::time::sleep(NIGHT) => {}
            }
            let totals: Answer = callers.call(Method::GET, "http://reviews.shop/ratings/summary").await;
            let ratings: Answer = callers.call(Method::GET, "http://reviews.shop/ratings").await;
            let made = json!({ "service": "nightly", "totals": totals.json(), "ratings": ratings.json() });
            *writes.lock().unwrap_or_else(PoisonError::into_inner) = made;
        }
    });
    Router::new().route("/report", get(last)).with_state(report)
}

/// A line of JSON that says whom the proxy has authenticated.
fn reply(headers: &HeaderMap, mut body: Value) -> impl IntoResponse + use<> {
    if let Some(body) = body.as_object_mut() {
        body.insert("caller".to_owned(), caller(headers).map_or(Value::Null, Value::from));
    }
    ([(header::CONTENT_TYPE, "application/json")], format!("{body}\n"))
}

/// The `URI=` of the nearest hop in `x-forwarded-client-cert`.
fn caller(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get_all("x-forwarded-client-cert").iter().next_back()?.to_str().ok()?;
    let nearest = value.rsplit(',').next()?;
    nearest.split(';').find_map(|part| part.trim().strip_prefix("URI="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_is_the_nearest_hop() {
        for (value, expected) in [
            ("By=spiffe://a/b;Hash=1;URI=spiffe://td/ns/shop/sa/frontend", Some("spiffe://td/ns/shop/sa/frontend")),
            ("URI=spiffe://td/far,By=x;URI=spiffe://td/near", Some("spiffe://td/near")),
            ("Hash=1", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-client-cert", value.parse().unwrap());
            assert_eq!(caller(&headers), expected, "{value:?}");
        }
        assert_eq!(caller(&HeaderMap::new()), None);
    }
}
