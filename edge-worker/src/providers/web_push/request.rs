//! One push as a request (RFC 8030, section 5).

use std::time::Duration;

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE},
};
use reqwest::{Method, Request, Url};
use shared::{content::push::Push, provider::web_push};

static TTL: HeaderName = HeaderName::from_static("ttl");
static URGENCY: HeaderName = HeaderName::from_static("urgency");
static TOPIC: HeaderName = HeaderName::from_static("topic");

/// The request that posts `body`, encrypted, to a subscription. `left` is what is left of the push's life.
pub(super) fn request(
    endpoint: Url,
    authorization: HeaderValue,
    push: &Push,
    left: Duration,
    body: Vec<u8>,
) -> Option<Request> {
    let mut request = Request::new(Method::POST, endpoint);
    *request.headers_mut() = headers(authorization, push, left)?;
    *request.body_mut() = Some(body.into());
    Some(request)
}

fn headers(authorization: HeaderValue, push: &Push, left: Duration) -> Option<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(AUTHORIZATION, authorization);
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("aes128gcm"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    // The push service counts from the arrival of the push, so a late attempt states what is left.
    let seconds = u32::try_from(left.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
    headers.insert(TTL.clone(), seconds.into());
    headers.insert(
        URGENCY.clone(),
        HeaderValue::from_static(web_push::urgency(push).as_str()),
    );
    // Only for a collapse key: services keep a few topics per browser and drop pushes of others.
    if let Some(key) = &push.collapse_key {
        headers.insert(TOPIC.clone(), HeaderValue::try_from(&*web_push::topic(key)).ok()?);
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sent(push: serde_json::Value, left_ms: u64) -> Vec<(String, String)> {
        let push: Push = serde_json::from_value(push).unwrap();
        let endpoint = "https://push.example.net/push/a".parse().unwrap();
        let mut token = HeaderValue::from_static("vapid t=a.b.c, k=d");
        token.set_sensitive(true);
        let request = request(endpoint, token, &push, Duration::from_millis(left_ms), vec![1, 2]).unwrap();
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.body().and_then(|body| body.as_bytes()), Some(&[1, 2][..]));
        assert!(request.headers()[AUTHORIZATION].is_sensitive());
        let mut headers: Vec<_> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        headers.sort();
        headers
    }

    fn expected(rest: &[(&str, &str)]) -> Vec<(String, String)> {
        let always = [
            ("authorization", "vapid t=a.b.c, k=d"),
            ("content-encoding", "aes128gcm"),
            ("content-type", "application/octet-stream"),
        ];
        let mut headers: Vec<_> = always
            .iter()
            .chain(rest)
            .map(|(n, v)| ((*n).into(), (*v).into()))
            .collect();
        headers.sort();
        headers
    }

    #[test]
    fn a_request_has_every_header_that_the_rfcs_ask_for() {
        assert_eq!(
            sent(json!({ "title": "x" }), 2_419_199_001),
            expected(&[("ttl", "2419200"), ("urgency", "high")])
        );
        let chosen = json!({ "title": "x", "collapse_key": "score", "web_push": { "urgency": "very-low" } });
        assert_eq!(
            sent(chosen, 0),
            expected(&[("ttl", "0"), ("urgency", "very-low"), ("topic", "score")])
        );
        let topic = &sent(json!({ "title": "x", "collapse_key": "two words" }), 90_000)[3];
        assert_eq!((topic.0.as_str(), topic.1.len()), ("topic", 32));
    }
}
