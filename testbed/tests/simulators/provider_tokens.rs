//! APNs: which provider tokens are accepted.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use testbed::providers::{
    Apns, ApnsConfig, ApnsKey,
    apns::{Environment, JwtMode, ProviderKey},
    now_s,
};

use crate::client::{Client, Draft};

/// A provider token in the form that the `a2` crate makes with OpenSSL: padded standard base64 and a DER signature.
fn token_like_a2(key: &ApnsKey, issued: &Value) -> String {
    let header = json!({"alg": "ES256", "kid": key.key_id}).to_string();
    let claims = json!({"iss": key.team_id, "iat": issued}).to_string();
    let signed = format!("{}.{}", BASE64_STANDARD.encode(header), BASE64_STANDARD.encode(claims));
    let body: String = key.pem.lines().filter(|line| !line.starts_with('-')).collect();
    let pkcs8 = BASE64_STANDARD.decode(body).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8).unwrap();
    let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", BASE64_STANDARD.encode(signature))
}

async fn push_and_get_reason(apns: &Apns, token: &str) -> String {
    let client = Client::connect(apns, 1).await;
    let draft = Draft::message_to("beef").set("authorization", &format!("Bearer {token}"));
    client.push(draft).await.unwrap().reason()
}

#[tokio::test]
async fn each_mode_accepts_the_provider_tokens_that_it_should() {
    for (mode, is_tolerant) in [(JwtMode::Apple, true), (JwtMode::Strict, false)] {
        let apns = Apns::start(ApnsConfig {
            jwt: mode,
            ..ApnsConfig::default()
        })
        .await
        .unwrap();
        let key = apns.key().clone();
        let expect = if is_tolerant { "" } else { "InvalidProviderToken" };
        let now = now_s();

        assert_eq!(push_and_get_reason(&apns, &key.provider_token(now).unwrap()).await, "");
        assert_eq!(
            push_and_get_reason(&apns, &token_like_a2(&key, &json!(now))).await,
            expect
        );
        let milliseconds = json!((now * 1000).to_string());
        assert_eq!(
            push_and_get_reason(&apns, &token_like_a2(&key, &milliseconds)).await,
            expect
        );

        let old = key.provider_token(now - 3601).unwrap();
        assert_eq!(push_and_get_reason(&apns, &old).await, "ExpiredProviderToken");
        let ahead = key.provider_token(now + 3600).unwrap();
        assert_eq!(push_and_get_reason(&apns, &ahead).await, "InvalidProviderToken");
        let stranger = ApnsKey::generate(&key.team_id, &key.key_id).unwrap();
        let forged = stranger.provider_token(now).unwrap();
        assert_eq!(push_and_get_reason(&apns, &forged).await, "InvalidProviderToken");
        let unknown = ApnsKey::generate(&key.team_id, "UNKNOWN001").unwrap();
        let unknown = unknown.provider_token(now).unwrap();
        assert_eq!(push_and_get_reason(&apns, &unknown).await, "InvalidProviderToken");
        let none = format!(
            "{}.{}.",
            BASE64_URL_SAFE_NO_PAD.encode(json!({"alg": "none", "kid": key.key_id}).to_string()),
            BASE64_URL_SAFE_NO_PAD.encode(json!({"iss": key.team_id, "iat": now}).to_string()),
        );
        assert_eq!(push_and_get_reason(&apns, &none).await, "InvalidProviderToken");
    }
}

#[tokio::test]
async fn a_connection_belongs_to_one_team_and_kind_of_key() {
    let team = ApnsKey::generate("TEAMTEAM01", "KEYKEYKEY1").unwrap();
    let rotated = ApnsKey::generate("TEAMTEAM01", "KEYKEYKEY2").unwrap();
    let scoped = ApnsKey::generate("TEAMTEAM01", "KEYKEYKEY3").unwrap();
    let sandbox = ApnsKey::generate("TEAMTEAM01", "KEYKEYKEY4").unwrap();
    let other = ApnsKey::generate("TEAMTEAM02", "KEYKEYKEY5").unwrap();
    let apns = Apns::start(ApnsConfig {
        keys: vec![
            team.clone().into(),
            rotated.clone().into(),
            other.clone().into(),
            ProviderKey {
                topics: Some(vec!["com.example.else".into()]),
                ..scoped.clone().into()
            },
            ProviderKey {
                environment: Some(Environment::Development),
                ..sandbox.clone().into()
            },
        ],
        ..ApnsConfig::default()
    })
    .await
    .unwrap();
    let client = Client::connect(&apns, 1).await;
    let reason = async |key: &ApnsKey| {
        let token = key.provider_token(now_s()).unwrap();
        let draft = Draft::message_to("beef").set("authorization", &format!("bearer {token}"));
        client.push(draft).await.unwrap().reason()
    };
    assert_eq!(reason(&team).await, "");
    assert_eq!(reason(&rotated).await, "");
    assert_eq!(reason(&other).await, "Forbidden");
    assert_eq!(reason(&scoped).await, "UnrelatedKeyIdInToken");
    let alone = |key: &ApnsKey| key.provider_token(now_s()).unwrap();
    assert_eq!(
        push_and_get_reason(&apns, &alone(&sandbox)).await,
        "BadEnvironmentKeyIdInToken"
    );
    assert_eq!(push_and_get_reason(&apns, &alone(&scoped)).await, "TopicDisallowed");

    apns.revoke_key("TEAMTEAM01", "KEYKEYKEY1");
    assert_eq!(push_and_get_reason(&apns, &client.token).await, "InvalidProviderToken");
}

#[tokio::test]
async fn a_team_that_changes_its_token_too_often_is_refused() {
    let apns = Apns::start(ApnsConfig {
        limit_token_updates: true,
        ..ApnsConfig::default()
    })
    .await
    .unwrap();
    let (key, now) = (apns.key().clone(), now_s());
    let first = key.provider_token(now - 60).unwrap();
    assert_eq!(push_and_get_reason(&apns, &first).await, "");
    let same_iat = key.provider_token(now - 60).unwrap();
    assert_ne!(same_iat, first);
    assert_eq!(push_and_get_reason(&apns, &same_iat).await, "");
    let next = key.provider_token(now).unwrap();
    assert_eq!(push_and_get_reason(&apns, &next).await, "TooManyProviderTokenUpdates");
    assert_eq!(push_and_get_reason(&apns, &first).await, "");
}
