//! What an operator writes into the hub's configuration before a mesh starts.

use anyhow::Context;
use gateway::provision;
use serde_json::json;
use shared::{
    api_key::{NewKey, Scope},
    app::App,
    clock::Clock,
    id::Region,
    id_key::IdKey,
    nats::{config, roles::Role},
    provider::{Credential, fcm, log, webhook},
    seal::MeshKey,
    site::Site,
};

use super::{APP, Peal, Plan, TOPIC};
use crate::{nats, providers::Simulators};

/// What the hub's configuration says about a region.
pub(super) fn site(nats: &nats::Mesh, plan: &Plan, region: &str) -> anyhow::Result<Site> {
    if !plan.helpers {
        return Ok(Site::default());
    }
    let others = plan.regions.iter().filter(|other| *other != region);
    Ok(Site {
        nats: Some(nats.region(region).url()),
        helpers: others.map(|other| other.parse()).collect::<Result<_, _>>()?,
    })
}

/// The mailbox that e-mails of the app come from.
const SENDER: &str = "news@shop.example";

/// The sender of the app's text messages.
const SMS_SENDER: &str = "Shop";

/// The only country that the app sends text messages to.
const SMS_COUNTRY: &str = "CH";

fn alert(app: &mut App, plan: &Plan, mesh_key: &MeshKey) {
    if let Some(alerts) = &plan.alerts {
        app.alert(mesh_key, alerts.url.clone(), &alerts.secret);
    }
}

fn default_region(plan: &Plan) -> anyhow::Result<Region> {
    Ok(plan.regions.first().context("a mesh has a region")?.parse()?)
}

/// The mesh's key of ids.
pub(super) async fn id_key(nats: &nats::Mesh, mesh_key: &str) -> anyhow::Result<IdKey> {
    let operator = Role::Operator(nats.hub().domain().parse()?);
    let hub = provision::hub(nats.hub().connect(&operator).await?);
    Ok(config::read(&hub).await?.id_key(&MeshKey::from_base64(mesh_key)?)?)
}

/// Writes the regions and the app into the hub's configuration. Returns an API key with every scope.
pub(super) async fn provision(
    nats: &nats::Mesh,
    plan: &Plan,
    mesh_key: &str,
    simulators: &Simulators,
) -> anyhow::Result<String> {
    let operator = Role::Operator(nats.hub().domain().parse()?);
    let hub = provision::hub(nats.hub().connect(&operator).await?);
    let mesh_key = MeshKey::from_base64(mesh_key)?;
    provision::prepare_hub(&hub, &mesh_key, 1).await?;
    for region in &plan.regions {
        provision::write_region(&hub, &region.parse()?, &site(nats, plan, region)?).await?;
    }
    if plan.former.is_none() {
        provision::require_proofs(&hub, Clock::system().now()).await?;
    }
    let mut app = App {
        services: true,
        outbox: plan.outbox,
        residency: plan.residency.as_deref().map(str::parse).transpose()?,
        ambiguity: plan.ambiguity.clone(),
        quota: plan.quota,
        routes: plan.routes.clone(),
        spend_caps: plan.spend_caps.clone(),
        allowed_hosts: plan.allowed_hosts.clone().unwrap_or_default(),
        sms_countries: [SMS_COUNTRY.parse()?].into(),
        senders: serde_json::from_value(json!({ "email": [SENDER], "sms": [SMS_SENDER] }))?,
        ..App::new(APP.parse()?, default_region(plan)?)
    };
    let credentials = [
        Credential::Apns(simulators.apns.credential(TOPIC)),
        Credential::Fcm(fcm::Credential {
            quota_per_minute: plan.fcm_quota,
            ..simulators.fcm.credential()
        }),
        Credential::WebPush(simulators.web_push.credential()),
        Credential::Smtp(simulators.smtp.credential()),
        Credential::SendGrid(simulators.sendgrid.credential()),
        Credential::Mailchimp(simulators.mailchimp.credential()),
        Credential::Log(log::Credential::default()),
        Credential::Twilio(simulators.twilio.credential()),
        Credential::Vonage(simulators.vonage.credential()),
        Credential::Hms(simulators.hms.credential()),
        Credential::JPush(simulators.jpush.credential()),
        Credential::Sns(simulators.sns.credential()),
        Credential::Webhook(webhook::Credential::default()),
    ];
    for credential in &credentials {
        app.seal(&mesh_key, credential);
    }
    alert(&mut app, plan, &mesh_key);
    (plan.app)(&mut app);
    let keys = provision::write_app(&hub, &mesh_key, &app, &[NewKey::with(Scope::ALL)]).await?;
    keys.into_iter().next().context("an API key")
}

/// Writes a further app with an iOS app of its own into the hub's configuration. Returns an API key with every scope.
pub(super) async fn add_app(peal: &Peal, id: &str) -> anyhow::Result<String> {
    let operator = Role::Operator(peal.nats.hub().domain().parse()?);
    let hub = provision::hub(peal.nats.hub().connect(&operator).await?);
    let mesh_key = MeshKey::from_base64(&peal.mesh_key)?;
    let mut app = App {
        ambiguity: peal.plan.ambiguity.clone(),
        ..App::new(id.parse()?, default_region(&peal.plan)?)
    };
    let apns = peal.simulators.apns.credential(&format!("com.example.{id}"));
    app.seal(&mesh_key, &Credential::Apns(apns));
    alert(&mut app, &peal.plan, &mesh_key);
    let keys = provision::write_app(&hub, &mesh_key, &app, &[NewKey::with(Scope::ALL)]).await?;
    keys.into_iter().next().context("an API key")
}
