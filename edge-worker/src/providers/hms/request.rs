//! One push as a request of Huawei's.

use http::{
    HeaderValue,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use shared::{
    content::push::Push,
    provider::hms::{Generation, MAX_LIFE_S, MAX_MESSAGE, Target, push_type, render},
};

use crate::providers::Outcome;

/// The header of v3 that names the kind of message.
const PUSH_TYPE: &str = "push-type";

/// The request, which begins with `post`. `left_s` is the time to live that remains in seconds.
///
/// # Errors
/// If the rendered message is larger than Huawei takes.
pub(super) fn request(
    post: RequestBuilder,
    authorization: HeaderValue,
    target: &Target,
    push: &Push,
    collapse_id: &str,
    left_s: u64,
) -> Result<RequestBuilder, Outcome> {
    // Huawei takes no life of 0 seconds.
    let ttl_s = left_s.clamp(1, MAX_LIFE_S);
    let message = Value::Object(render(push, target.generation, collapse_id, ttl_s));
    if message.to_string().len() > MAX_MESSAGE {
        return Err(Outcome::rejected("too_large"));
    }
    let token = target.token.reveal();
    let (post, body) = match target.generation {
        Generation::Third => (
            post.header(PUSH_TYPE, push_type(push).to_string()),
            json!({ "payload": message, "target": { "token": [token] }, "pushOptions": { "ttl": ttl_s } }),
        ),
        Generation::First => {
            let mut message = message;
            message["token"] = json!([token]);
            (post, json!({ "validate_only": false, "message": message }))
        }
    };
    Ok(post
        .header(AUTHORIZATION, authorization)
        .header(CONTENT_TYPE, "application/json")
        .body(body.to_string()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::providers::transport::https;

    fn of(push: Value, generation: Generation, left_s: u64) -> Result<(Option<String>, Value), Outcome> {
        let push: Push = serde_json::from_value(push).unwrap();
        let target = Target::new("t1".into(), generation).unwrap();
        let post = https::client(None, Duration::from_secs(1))
            .unwrap()
            .post("https://push-api.cloud.huawei.com/");
        let request = request(
            post,
            HeaderValue::from_static("Bearer x"),
            &target,
            &push,
            "job",
            left_s,
        )?;
        let request = request.build().unwrap();
        let kind = request
            .headers()
            .get(PUSH_TYPE)
            .map(|kind| kind.to_str().unwrap().to_owned());
        let body = serde_json::from_slice(request.body().unwrap().as_bytes().unwrap()).unwrap();
        Ok((kind, body))
    }

    #[test]
    fn each_generation_has_its_target_life_and_type() {
        let (kind, body) = of(json!({ "title": "x" }), Generation::Third, 90).unwrap();
        assert_eq!(kind.as_deref(), Some("0"));
        assert_eq!(body["target"], json!({ "token": ["t1"] }));
        assert_eq!(body["pushOptions"], json!({ "ttl": 90 }));
        let (kind, _) = of(json!({ "silent": true }), Generation::Third, 90).unwrap();
        assert_eq!(kind.as_deref(), Some("6"));
        let (kind, body) = of(json!({ "title": "x" }), Generation::First, 2_419_200).unwrap();
        assert_eq!(kind, None);
        assert_eq!(body["message"]["token"], json!(["t1"]));
        assert_eq!(body["message"]["android"]["ttl"], "1296000s");
        let (_, body) = of(json!({ "title": "x" }), Generation::Third, 0).unwrap();
        assert_eq!(body["pushOptions"], json!({ "ttl": 1 }));
    }

    #[test]
    fn a_push_that_huawei_would_refuse_for_its_size_is_not_sent() {
        let push = json!({ "body": "x".repeat(4090) });
        for generation in [Generation::First, Generation::Third] {
            assert_eq!(
                of(push.clone(), generation, 1).unwrap_err(),
                Outcome::rejected("too_large")
            );
        }
    }
}
