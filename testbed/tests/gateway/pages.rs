//! The pages to which links in messages lead: for whom they open, what they show, and what they store.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use reqwest::redirect::Policy;
use serde_json::{Value, json};
use shared::{
    api_key::{NewKey, Scope},
    app::App,
    channel::Channel,
    clock::Clock,
    id::{AddressId, AppId, JobId, NotificationId},
    reference::{PreferenceLink, Reference, Unsubscription},
};
use uuid::Uuid;

use crate::rig::{PUBLIC_URL, Rig, app, region};

/// Gives `shop` categories, a name and a colour, and ann a membership.
async fn start() -> Rig {
    let mut rig = Rig::start().await;
    let shop = App {
        categories: serde_json::from_value(json!({
            "codes": { "kind": "critical", "title": "Codes to sign in" },
            "offers": { "kind": "commercial", "title": "Offers <b>&</b> more" },
        }))
        .unwrap(),
        page: serde_json::from_value(json!({ "name": "Ann's \"Shop\"", "color": "#ffd400" })).unwrap(),
        ..rig.new_app("shop")
    };
    rig.key = rig.issue(shop, NewKey::with(Scope::ALL)).await;
    assert_eq!(
        rig.ask("PUT", "/v1/recipients/ann/topics/news", Value::Null)
            .await
            .status,
        200
    );
    rig.http = reqwest::Client::builder().redirect(Policy::none()).build().unwrap();
    rig
}

/// A link for ann: its token.
async fn token(rig: &Rig) -> String {
    let link = rig.ask("POST", "/v1/recipients/ann/preference-link", Value::Null).await;
    assert_eq!(link.status, 200, "{link:?}");
    let days = link.body["expires_at"].as_str().unwrap().parse::<Timestamp>().unwrap();
    let days = days.duration_since(Clock::system().now()).as_hours() / 24;
    assert!((59..=60).contains(&days), "{days}");
    let url = link.body["url"].as_str().unwrap();
    url.strip_prefix(&format!("{PUBLIC_URL}/p/")).unwrap().to_owned()
}

async fn show(rig: &Rig, token: &str) -> (u16, String) {
    let shown = rig.request("GET", &format!("/p/{token}")).send().await.unwrap();
    let headers = shown.headers().clone();
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
    let policy = header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; style-src 'nonce-") && policy.contains("frame-ancestors 'none'"));
    assert_eq!(
        (header("referrer-policy"), header("cache-control")),
        ("no-referrer".into(), "no-store".into())
    );
    assert!(!headers.contains_key("set-cookie"));
    (shown.status().as_u16(), shown.text().await.unwrap())
}

async fn post(rig: &Rig, token: &str, form: &[(&str, &str)]) -> u16 {
    let posting = rig.request("POST", &format!("/p/{token}")).form(form).send();
    let answer = posting.await.unwrap();
    if answer.status() == 303 {
        assert_eq!(answer.headers()["location"], "?saved");
    }
    answer.status().as_u16()
}

async fn preferences(rig: &Rig) -> Value {
    rig.ask("GET", "/v1/recipients/ann/preferences", Value::Null).await.body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recipient_sees_and_changes_its_preferences_by_a_link() {
    let rig = start().await;
    let token = token(&rig).await;
    let (status, page) = show(&rig, &token).await;
    assert_eq!(status, 200);
    for text in [
        "Ann's &quot;Shop&quot;",
        "--accent:#ffd400;--on-accent:#000000",
        "Codes to sign in",
        "Offers &lt;b&gt;&amp;&lt;/b&gt; more",
        "name=\"topic.news\"",
        "name=\"channel.sms\"",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    assert!(
        !page.contains("category.codes") && !page.contains("<script") && !page.contains("Saved."),
        "{page}"
    );

    // Two have the page open: each stores what it changed, and nothing else.
    let (offers, news) = ("category.offers.email", "topic.news");
    assert_eq!(
        post(&rig, &token, &[(offers, "was-on"), (news, "was-on"), (news, "on")]).await,
        303
    );
    let other = [
        (offers, "was-on"),
        (offers, "on"),
        (news, "was-on"),
        ("mute", "forever"),
        ("mute-was", "off"),
    ];
    assert_eq!(post(&rig, &token, &other).await, 303);
    let stored = json!({
        "channels": {}, "categories": { "offers": { "email": false } }, "muted": true, "topics": { "news": false },
    });
    assert_eq!(preferences(&rig).await, stored);
    assert!(show(&rig, &format!("{token}?saved")).await.1.contains("Saved."));
    let topics = rig.ask("GET", "/v1/recipients/ann/topics", Value::Null).await.body;
    assert_eq!(topics["topics"][0]["topic"], "news", "the membership stays");
    assert_eq!(
        post(
            &rig,
            &token,
            &[
                ("mute", "off"),
                ("mute-was", "forever"),
                (offers, "was-off"),
                (offers, "on")
            ]
        )
        .await,
        303
    );
    let stored = json!({ "channels": {}, "categories": { "offers": { "email": true } }, "topics": { "news": false } });
    assert_eq!(preferences(&rig).await, stored);
    assert_eq!(post(&rig, &token, &[]).await, 303);
    let large = "x".repeat(300_000);
    assert_eq!(post(&rig, &token, &[("a", &large)]).await, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_opens_nothing_but_the_preferences_of_its_recipient_while_it_lasts() {
    let rig = start().await;
    let token = token(&rig).await;
    assert_eq!(show(&rig, &token).await.0, 200);
    let (ids, shop, bank): (_, AppId, AppId) = (rig.ids().await, app(), "bank".parse().unwrap());
    rig.issue_key("bank", Scope::ALL).await;
    let sign = |app: &AppId, recipient: &str, at: Timestamp| {
        let recipient = recipient.parse().unwrap();
        PreferenceLink {
            recipient,
            expires_at: at,
        }
        .sign(&ids, app)
        .unwrap()
    };
    let now = Clock::system().now();
    let later = now + SignedDuration::from_hours(1);
    let unsubscription = Unsubscription {
        reference: reference(),
        category: None,
    };
    let unknown = show(&rig, "x").await.1;
    for (why, token) in [
        ("cut off", token[..token.len() - 1].to_owned()),
        ("for another app", token.replacen("shop.", "bank.", 1)),
        ("of a recipient whom nobody knows", sign(&shop, "bob", later)),
        ("of a recipient of another app", sign(&bank, "ann", later)),
        (
            "of an app that does not exist",
            sign(&"nobody".parse().unwrap(), "ann", later),
        ),
        (
            "for another purpose",
            unsubscription.sign(&ids, &shop, &region("eu")).unwrap(),
        ),
        ("made by nobody", format!("shop.{}", URL_SAFE_NO_PAD.encode([7; 40]))),
    ] {
        let (status, page) = show(&rig, &token).await;
        assert_eq!((status, without_nonce(&page)), (404, without_nonce(&unknown)), "{why}");
        assert_eq!(post(&rig, &token, &[("channel.push", "was-on")]).await, 404, "{why}");
    }
    let ended = sign(&shop, "ann", now - SignedDuration::from_secs(1));
    assert_eq!(show(&rig, &ended).await.0, 410);
    assert_eq!(post(&rig, &ended, &[("channel.push", "was-on")]).await, 410);
    assert_eq!(preferences(&rig).await["channels"], json!({}));

    // One who is deleted does not come back by a link.
    assert_eq!(rig.ask("DELETE", "/v1/recipients/ann", Value::Null).await.status, 204);
    assert_eq!(post(&rig, &token, &[("channel.push", "was-on")]).await, 404);
    assert_eq!(rig.ask("GET", "/v1/recipients/ann", Value::Null).await.status, 404);
    let link = rig.ask("POST", "/v1/recipients/ann/preference-link", Value::Null).await;
    assert_eq!((link.status, link.code()), (404, "not_found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_public_url_there_are_no_links() {
    let rig = Rig::with(|settings| settings.public_url = None).await;
    assert_eq!(rig.ask("PUT", "/v1/recipients/ann", json!({})).await.status, 201);
    let link = rig.ask("POST", "/v1/recipients/ann/preference-link", Value::Null).await;
    assert_eq!((link.status, link.code()), (409, "links_unavailable"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_from_before_its_category_was_critical_unsubscribes_from_nothing() {
    let rig = start().await;
    let ids = rig.ids().await;
    for (category, listed) in [("codes", 0), ("offers", 1)] {
        let unsubscription = Unsubscription {
            reference: reference(),
            category: Some(category.parse().unwrap()),
        };
        let path = format!("/u/{}", unsubscription.sign(&ids, &app(), &region("eu")).unwrap());
        let page = rig.request("GET", &path).send().await.unwrap().text().await.unwrap();
        assert_eq!(page.contains("<form"), listed == 1, "{page}");
        let clicking = rig
            .request("POST", &path)
            .form(&[("List-Unsubscribe", "One-Click")])
            .send();
        assert_eq!(clicking.await.unwrap().status(), 200);
        let list = rig.ask("GET", "/v1/suppressions", Value::Null).await.body;
        assert_eq!(
            list["suppressions"].as_array().unwrap().len(),
            listed,
            "{category}: {list}"
        );
    }
}

fn reference() -> Reference {
    let id = Uuid::from_u128(7);
    Reference {
        channel: Channel::Email,
        notification: NotificationId(id),
        job: Some(JobId(id)),
        address: AddressId(id),
        sent_at: None,
    }
}

/// A page without what is new in each.
fn without_nonce(page: &str) -> String {
    let (head, rest) = page.split_once("nonce=\"").unwrap();
    let (_, rest) = rest.split_once('"').unwrap();
    head.to_owned() + rest
}
