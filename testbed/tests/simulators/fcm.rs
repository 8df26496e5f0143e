//! FCM: messages, access tokens and errors.

use std::time::Duration;

use serde_json::{Value, json};
use testbed::providers::{Answer, Fcm, FcmConfig, RetryAfter, Rule, ServiceAccount, now_s};

struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
}

fn http_client(fcm: &Fcm, http1: bool) -> reqwest::Client {
    let ca = reqwest::Certificate::from_pem(fcm.ca_pem().as_bytes()).unwrap();
    let builder = reqwest::Client::builder()
        .tls_certs_only([ca])
        .timeout(Duration::from_secs(5));
    let builder = if http1 { builder.http1_only() } else { builder };
    builder.build().unwrap()
}

async fn exchange_assertion(http: &reqwest::Client, fcm: &Fcm, assertion: &str) -> (u16, Value) {
    let form = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
        ("assertion", assertion),
    ];
    let response = http.post(fcm.token_uri()).form(&form).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

impl Client {
    async fn connect(fcm: &Fcm, http1: bool) -> Self {
        let http = http_client(fcm, http1);
        let assertion = fcm.account().assertion(&fcm.token_uri(), now_s()).unwrap();
        let (status, token) = exchange_assertion(&http, fcm, &assertion).await;
        assert_eq!(
            (status, &token["expires_in"], &token["token_type"]),
            (200, &json!(3599), &json!("Bearer"))
        );
        Self {
            http,
            base: format!("https://localhost:{}", fcm.addr().port()),
            token: token["access_token"].as_str().unwrap().to_owned(),
        }
    }

    async fn post(&self, project: &str, body: impl Into<reqwest::Body>) -> reqwest::Response {
        self.http
            .post(format!("{}/v1/projects/{project}/messages:send", self.base))
            .bearer_auth(&self.token)
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await
            .unwrap()
    }

    async fn send(&self, request: &Value) -> (u16, Value) {
        let response = self.post("peal-test", request.to_string()).await;
        (response.status().as_u16(), response.json().await.unwrap())
    }
}

fn message_to(token: &str) -> Value {
    json!({"message": {"token": token, "notification": {"title": "ding"}}})
}

/// The `errorCode` of an error of FCM, or nothing.
fn error_code(body: &Value) -> &str {
    let details = body["error"]["details"].as_array().map_or(&[][..], Vec::as_slice);
    details
        .iter()
        .find_map(|detail| detail["errorCode"].as_str())
        .unwrap_or("")
}

/// The first field that an error of FCM names as invalid, or "-".
fn invalid_field(body: &Value) -> &str {
    let details = body["error"]["details"].as_array().map_or(&[][..], Vec::as_slice);
    details
        .iter()
        .find_map(|detail| detail["fieldViolations"][0]["field"].as_str())
        .unwrap_or("-")
}

#[tokio::test]
async fn fcm_accepts_over_both_versions_of_http() {
    let fcm = Fcm::start(FcmConfig::default()).await.unwrap();
    for (http1, version) in [(false, http::Version::HTTP_2), (true, http::Version::HTTP_11)] {
        let client = Client::connect(&fcm, http1).await;
        let response = client.post("peal-test", message_to("phone").to_string()).await;
        assert_eq!((response.status().as_u16(), response.version()), (200, version));
        let name = response.json::<Value>().await.unwrap()["name"].clone();
        assert!(name.as_str().unwrap().starts_with("projects/peal-test/messages/"));
        assert_eq!(fcm.log().delivered().last().unwrap().id, name.as_str().unwrap());
    }
    let rich = json!({"message": {
        "token": "phone", "data": {"k": "v"},
        "android": {"collapse_key": "c", "priority": "high", "ttl": "3.5s", "notification": {"channel_id": "x"}},
        "apns": {"headers": {"apns-priority": "10"}, "payload": {"aps": {"badge": 1}}},
        "webpush": {"notification": {"any": ["thing"]}},
    }});
    let client = Client::connect(&fcm, false).await;
    assert_eq!(client.send(&rich).await.0, 200);
    let push = fcm.log().delivered().pop().unwrap();
    assert_eq!(push.collapse_id.as_deref(), Some("c"));
    assert_eq!(push.expiration.as_deref(), Some("3.5s"));
    let stats = fcm.stats();
    assert_eq!((stats.delivered, stats.duplicates, stats.access_tokens), (3, 1, 3));
}

#[tokio::test]
async fn fcm_names_the_invalid_field() {
    let fcm = Fcm::start(FcmConfig::default()).await.unwrap();
    let client = Client::connect(&fcm, false).await;
    let message = |more: Value| {
        let mut message = json!({"token": "phone"});
        message
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!({ "message": message })
    };
    let big = "x".repeat(4097);
    let cases = [
        (json!({}), "message"),
        (json!({"message": {}}), "message"),
        (json!({"message": {"token": "a", "topic": "b"}}), "message"),
        (json!({"message": {"token": ""}}), "message.token"),
        (json!({"message": {"topic": "a b"}}), "message.topic"),
        (json!({"message": {"condition": "a"}}), "message.condition"),
        (json!({"massage": {}}), ""),
        (message(json!({"notificatoin": {}})), "message"),
        (message(json!({"data": {"n": 1}})), "message.data[0].value"),
        (message(json!({"data": {"from": "me"}})), "message.data"),
        (message(json!({"data": {"google.x": "me"}})), "message.data"),
        (message(json!({"data": {"k": big}})), "message"),
        (
            message(json!({"notification": {"title": 1}})),
            "message.notification.title",
        ),
        (message(json!({"android": {"ttl": "60"}})), "message.android.ttl"),
        (message(json!({"android": {"ttl": 60}})), "message.android.ttl"),
        (message(json!({"android": {"ttl": "2419201s"}})), "message.android.ttl"),
        (
            message(json!({"android": {"priority": "urgent"}})),
            "message.android.priority",
        ),
        (message(json!({"android": {}, "androidV2": {}})), "message"),
        (message(json!({"apns": {"payload": {"k": big}}})), "message"),
    ];
    for (request, field) in cases {
        let (status, body) = client.send(&request).await;
        assert_eq!((status, invalid_field(&body)), (400, field), "{request} {body}");
        assert_eq!(body["error"]["status"], "INVALID_ARGUMENT");
    }
    assert_eq!(client.post("peal-test", "{").await.status(), 400);
    let dry = json!({"validate_only": true, "message": {"token": "phone"}});
    assert_eq!(
        client.send(&dry).await,
        (200, json!({"name": "projects/peal-test/messages/fake_message_id"}))
    );
    assert_eq!(fcm.log().delivered_count(), 0);
}

#[tokio::test]
async fn fcm_requires_an_access_token_for_the_project() {
    let fcm = Fcm::start(FcmConfig::default()).await.unwrap();
    let mut client = Client::connect(&fcm, false).await;
    let other = client.post("other", message_to("a").to_string()).await;
    assert_eq!(
        other.json::<Value>().await.unwrap()["error"]["status"],
        "PERMISSION_DENIED"
    );
    assert_eq!(client.send(&message_to("a")).await.0, 200);
    fcm.revoke_access_tokens();
    let (status, body) = client.send(&message_to("a")).await;
    assert_eq!((status, error_code(&body)), (401, ""));
    assert_eq!(body["error"]["status"], "UNAUTHENTICATED");
    client.token = String::new();
    assert_eq!(client.send(&message_to("a")).await.0, 401);
    let unknown = client
        .http
        .get(format!("{}/v1/projects", client.base))
        .send()
        .await
        .unwrap();
    assert_eq!(unknown.status(), 404);

    let short = Fcm::start(FcmConfig {
        token_life: Duration::from_secs(0),
        ..FcmConfig::default()
    })
    .await
    .unwrap();
    let http = http_client(&short, false);
    let assertion = short.account().assertion(&short.token_uri(), now_s()).unwrap();
    let (_, token) = exchange_assertion(&http, &short, &assertion).await;
    let expired = Client {
        http,
        base: format!("https://localhost:{}", short.addr().port()),
        token: token["access_token"].as_str().unwrap().to_owned(),
    };
    assert_eq!(expired.send(&message_to("a")).await.0, 401);
}

#[tokio::test]
async fn assertions_are_verified() {
    let fcm = Fcm::start(FcmConfig::default()).await.unwrap();
    let http = http_client(&fcm, false);
    let (account, own, now) = (fcm.account(), fcm.token_uri(), now_s());
    let google = "https://oauth2.googleapis.com/token";
    assert_eq!(
        exchange_assertion(&http, &fcm, &account.assertion(google, now).unwrap())
            .await
            .0,
        200
    );

    let mut forger = ServiceAccount::generate("peal-test").unwrap();
    forger.private_key_id.clone_from(&account.private_key_id);
    let mut stranger = forger.clone();
    stranger.client_email = "stranger@example.com".into();
    for (assertion, why) in [
        (
            account.assertion("https://elsewhere.example/token", now).unwrap(),
            "audience",
        ),
        (account.assertion(&own, now - 4000).unwrap(), "Signature"),
        (forger.assertion(&own, now).unwrap(), "Signature"),
        (stranger.assertion(&own, now).unwrap(), "account not found"),
        ("x.y.z".into(), "parse"),
    ] {
        let (status, body) = exchange_assertion(&http, &fcm, &assertion).await;
        assert_eq!((status, &body["error"]), (400, &json!("invalid_grant")), "{body}");
        assert!(body["error_description"].as_str().unwrap().contains(why), "{body}");
    }
    let form = [("grant_type", "password")];
    let response = http.post(own).form(&form).send().await.unwrap();
    assert_eq!(
        response.json::<Value>().await.unwrap()["error"],
        "unsupported_grant_type"
    );
}

#[tokio::test]
async fn fcm_errors_have_the_shape_of_googles() {
    let rules = [
        ("INVALID_ARGUMENT", 400, "INVALID_ARGUMENT"),
        ("THIRD_PARTY_AUTH_ERROR", 401, "UNAUTHENTICATED"),
        ("SENDER_ID_MISMATCH", 403, "PERMISSION_DENIED"),
        ("UNREGISTERED", 404, "NOT_FOUND"),
        ("QUOTA_EXCEEDED", 429, "RESOURCE_EXHAUSTED"),
        ("INTERNAL", 500, "INTERNAL"),
        ("UNAVAILABLE", 503, "UNAVAILABLE"),
    ];
    let fcm = Fcm::start(FcmConfig::default()).await.unwrap();
    for (code, _, _) in rules {
        fcm.script()
            .add(Rule::token(code).answer(Answer::reason(code)))
            .unwrap();
    }
    let later = Answer::reason("QUOTA_EXCEEDED").retry_after(RetryAfter::Seconds(60));
    fcm.script().add(Rule::token("later").answer(later)).unwrap();
    fcm.script().add(Rule::token("cut").answer(Answer::close())).unwrap();
    let client = Client::connect(&fcm, false).await;
    for (code, http_status, status) in rules {
        let (received, body) = client.send(&message_to(code)).await;
        assert_eq!((received, error_code(&body)), (http_status, code));
        assert_eq!(
            (&body["error"]["code"], &body["error"]["status"]),
            (&json!(http_status), &json!(status))
        );
    }
    let later = client.post("peal-test", message_to("later").to_string()).await;
    assert_eq!(
        (later.status().as_u16(), &later.headers()["retry-after"]),
        (429, &"60".parse().unwrap())
    );
    for http1 in [false, true] {
        let client = Client::connect(&fcm, http1).await;
        let request = client
            .http
            .post(format!("{}/v1/projects/peal-test/messages:send", client.base))
            .bearer_auth(&client.token)
            .body(message_to("cut").to_string());
        assert!(request.send().await.is_err());
    }
    fcm.devices().register("phone", "peal-test");
    fcm.devices().register("theirs", "another-project");
    assert_eq!(client.send(&message_to("phone")).await.0, 200);
    assert_eq!(
        error_code(&client.send(&message_to("theirs")).await.1),
        "SENDER_ID_MISMATCH"
    );
    assert_eq!(error_code(&client.send(&message_to("nobody")).await.1), "UNREGISTERED");
}
