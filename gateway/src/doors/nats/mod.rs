//! The door for services, which speak NATS: `pull` takes what they published from the intakes of their apps, `now` answers
//! their requests, and `letter` keeps what is refused. `due` accepts what has waited for its time, whichever door it came through.

mod due;
mod letter;
mod now;
mod pull;
mod trace;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_nats::HeaderMap;
use jiff::Timestamp;
use shared::{
    app::App,
    id::{AppId, EventId},
    invalid::Invalid,
    lifecycle::Lifecycle,
    nats::{envelope::header, intake::Source},
};
use tokio::sync::watch;

use crate::{
    context::Context,
    intake::{
        accept::Intake,
        request::{Orders, Refused, Request, Terms},
    },
};

/// What the door needs of the gateway.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) context: Arc<Context>,
    pub(crate) intake: Arc<Intake>,
    /// Identifies this process among all gateways; 16 hexadecimal digits.
    pub(crate) instance: String,
    /// Maximum number of recipients of one notification.
    pub(crate) recipients_max: usize,
    /// Maximum number of requests in progress at a time.
    pub(crate) in_flight: usize,
    /// How long a request may take.
    pub(crate) request_timeout: Duration,
}

/// The apps that are served.
#[derive(Debug)]
pub(crate) struct Served {
    /// Those that have an intake.
    pub(crate) intakes: watch::Receiver<BTreeSet<AppId>>,
    /// Those of which something may become due.
    pub(crate) planned: watch::Receiver<BTreeSet<AppId>>,
}

impl Door {
    /// Serves the intakes of apps, what is due of apps, and the requests of services until the process finishes, and all that was
    /// taken by then is answered.
    pub(crate) async fn serve(self, apps: Served, lifecycle: Lifecycle) {
        let door = Arc::new(self);
        tokio::join!(
            pull::run(Arc::clone(&door), Source::Intakes, apps.intakes, lifecycle.clone()),
            pull::run(Arc::clone(&door), Source::Planned, apps.planned, lifecycle.clone()),
            now::run(door, lifecycle)
        );
    }

    /// Reads what a service of `app` sent, which came or was stored at `at`.
    fn orders(&self, app: &Arc<App>, headers: &HeaderMap, body: &[u8], at: Timestamp) -> Result<Orders, Refused> {
        let terms = Terms {
            app,
            by_test_key: false,
            ids: &self.context.config.id_key(),
            at,
            recipients_max: self.recipients_max,
            regions: self.context.jobs_of_topic(app),
        };
        Request::read(body)?.orders(&terms, |in_body| event(in_body, headers))
    }
}

/// The event id of a single notification: in the body, else of the `CloudEvent` that the message is, else the message id.
fn event(in_body: Option<EventId>, headers: &HeaderMap) -> Result<EventId, Invalid> {
    if let Some(event) = in_body {
        return Ok(event);
    }
    for name in ["ce-id", "Nats-Msg-Id"] {
        if let Some(text) = header(headers, name) {
            let rule = "must be 1 to 255 printable ASCII characters without spaces";
            return text.parse().map_err(|_| Invalid::new(name, rule));
        }
    }
    Err(Invalid::new(
        "event_id",
        "must be given, or one of the headers ce-id and Nats-Msg-Id",
    ))
}
