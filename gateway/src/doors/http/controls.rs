//! `/v1/controls`: what operators, and apps for themselves, hold or end while everything runs. They are read from this region's copy
//! of the configuration, and written by an admin gateway at the hub.

use std::sync::Arc;

use axum::{Json as Answer, extract::State};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shared::{
    channel::{Channel, Class},
    control::{Action, Control, Scope},
    id::{AppId, Category, ControlId, Region},
    invalid::Invalid,
    nats::config::Tenants,
    objects,
};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    api::Api,
    apps::{carry_out, known, unreachable},
    auth::{Administrator, ToControl, ToReadControls},
    body::Json,
    named::Named,
    openapi,
    problem::Problem,
};
use crate::admin::relay::{Act, Done};

/// A control: what a request states, and what an answer adds.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
#[schema(as = Control)]
pub(crate) struct ControlDocument {
    action: Action,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    app: Option<AppId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    category: Option<Category>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    channel: Option<Channel>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    class: Option<Class>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    region: Option<Region>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    why: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<ControlId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    who: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    created_at: Option<Timestamp>,
}

objects!(ControlDocument);

impl ControlDocument {
    /// The control that is to be made at `now`.
    ///
    /// # Errors
    /// The first member that breaks a rule, or that answers alone have.
    fn checked(self, now: Timestamp) -> Result<Control, Invalid> {
        let answered = [
            ("id", self.id.is_some()),
            ("who", self.who.is_some()),
            ("created_at", self.created_at.is_some()),
        ];
        if let Some((member, _)) = answered.into_iter().find(|(_, is_given)| *is_given) {
            return Err(Invalid::new(member, "must not be given"));
        }
        let control = Control {
            id: ControlId(Uuid::nil()),
            action: self.action,
            scope: Scope {
                app: self.app,
                category: self.category,
                channel: self.channel,
                class: self.class,
                region: self.region,
            },
            until: self.until,
            why: self.why,
            who: String::new(),
            by_operator: false,
            created_at: now,
        };
        control.check()?;
        Ok(control)
    }

    fn of(control: &Control) -> Self {
        let Scope {
            app,
            category,
            channel,
            class,
            region,
        } = control.scope.clone();
        Self {
            action: control.action,
            app,
            category,
            channel,
            class,
            region,
            until: control.until,
            why: control.why.clone(),
            id: Some(control.id),
            who: Some(control.who.clone()),
            created_at: Some(control.created_at),
        }
    }
}

/// Controls.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ControlList {
    /// The oldest first, also those that are over.
    controls: Vec<ControlDocument>,
}

/// List controls
///
/// An operator's key lists all, the key of an app those that name the app.
#[utoipa::path(
    get,
    path = "/v1/controls",
    operation_id = "listControls",
    tag = "controls",
    responses((status = 200, description = "The controls", body = ControlList), openapi::AnyRefusal),
    security(("api_key" = ["controls:write"])),
)]
pub(crate) async fn list(State(api): State<Arc<Api>>, by: Administrator<ToReadControls>) -> Answer<ControlList> {
    let tenants = api.context.config.tenants();
    let sees = |control: &&Arc<Control>| by.only().is_none_or(|own| control.scope.app.as_ref() == Some(own));
    let controls = tenants.controls.values().filter(sees);
    Answer(ControlList {
        controls: controls.map(|control| ControlDocument::of(control)).collect(),
    })
}

/// Hold or end work
///
/// What the control covers waits (`pause`), or ends as `suppressed`, `killed`. Workers obey within two seconds. All members that are
/// given must match. The key of an app must name the app.
#[utoipa::path(
    post,
    path = "/v1/controls",
    operation_id = "addControl",
    tag = "controls",
    request_body = ControlDocument,
    responses((status = 201, description = "The control", body = ControlDocument), openapi::AdminRefusal),
    security(("api_key" = ["controls:write"])),
)]
pub(crate) async fn add(
    State(api): State<Arc<Api>>,
    by: Administrator<ToControl>,
    Json(control): Json<ControlDocument>,
) -> Result<(StatusCode, Answer<ControlDocument>), Problem> {
    let control = control.checked(api.context.clock.now())?;
    let Done::Control(control) = carry_out(&api, &by, Act::AddControl(control)).await? else {
        return Err(unreachable());
    };
    known(&api, |tenants: &Tenants| tenants.controls.contains_key(&control.id)).await;
    Ok((StatusCode::CREATED, Answer(ControlDocument::of(&control))))
}

/// Remove a control
///
/// What it held comes back as it was scheduled: within a minute at first, later within as long as it has waited, at most an hour. The
/// key of an app removes no control that an operator made.
#[utoipa::path(
    delete,
    path = "/v1/controls/{id}",
    operation_id = "removeControl",
    tag = "controls",
    params(("id" = ControlId, Path, description = "The id of the control")),
    responses((status = 204, description = "Removed"), openapi::AdminRefusal),
    security(("api_key" = ["controls:write"])),
)]
pub(crate) async fn remove(
    State(api): State<Arc<Api>>,
    by: Administrator<ToControl>,
    Named(id): Named<ControlId>,
) -> Result<StatusCode, Problem> {
    carry_out(&api, &by, Act::RemoveControl(id)).await?;
    known(&api, |tenants| !tenants.controls.contains_key(&id)).await;
    Ok(StatusCode::NO_CONTENT)
}
