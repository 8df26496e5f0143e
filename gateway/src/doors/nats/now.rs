//! The NATS micro service `peal-send`: requests of services that want the answer at once. The answers are those of the HTTP
//! API.

use std::sync::Arc;

use async_nats::{
    HeaderMap,
    service::{NATS_SERVICE_ERROR, NATS_SERVICE_ERROR_CODE, Request, ServiceExt, endpoint::Endpoint},
};
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use shared::{
    app::App,
    lifecycle::Lifecycle,
    nats::{envelope::header, subject, topology::INTAKE_MAX_MESSAGE_BYTES},
    trial::Trial,
};
use tokio::{
    sync::Semaphore,
    time::{Duration, sleep},
};
use tokio_util::task::TaskTracker;

use super::{Door, trace};
use crate::{
    doors::{
        problem::{FORBIDDEN, OVERLOADED, Problem, RESIDES_ELSEWHERE, STARTING, TOO_LARGE},
        request_id,
        send::{self, SendResponse},
    },
    intake::request::Orders,
    trace::Trace,
};

/// The pause before a service that could not be started is started again.
const RETRY_START_AFTER: Duration = Duration::from_secs(1);

/// The header in which the server states which account a request came from. It replaces what a client wrote there.
const REQUEST_INFO: &str = "Nats-Request-Info";

/// The part of [`REQUEST_INFO`] that names the account.
#[derive(Deserialize)]
struct RequestInfo {
    acc: String,
}

pub(super) async fn run(door: Arc<Door>, lifecycle: Lifecycle) {
    let (permits, requests) = (Arc::new(Semaphore::new(door.in_flight)), TaskTracker::new());
    while !lifecycle.is_finishing() {
        match begin(&door).await {
            Ok((service, mut endpoint)) => {
                serve(&door, &mut endpoint, &permits, &requests, &lifecycle).await;
                if let Err(error) = service.stop().await {
                    tracing::debug!(%error, "the micro service had ended already");
                }
            }
            Err(error) => tracing::warn!(%error, "cannot start the micro service; retrying"),
        }
        tokio::select! {
            () = lifecycle.finishing() => {}
            () = sleep(RETRY_START_AFTER) => {}
        }
    }
    requests.close();
    requests.wait().await;
}

async fn begin(door: &Door) -> Result<(async_nats::service::Service, Endpoint), async_nats::Error> {
    let client = door.context.js.client();
    let service = client
        .service_builder()
        .description("Sends notifications; the body is that of POST /v1/notifications")
        .start(subject::SEND_SERVICE, env!("CARGO_PKG_VERSION"))
        .await?;
    let endpoint = service
        .endpoint_builder()
        .name("now")
        .add(subject::SEND_NOW_FILTER)
        .await?;
    Ok((service, endpoint))
}

async fn serve(
    door: &Arc<Door>,
    endpoint: &mut Endpoint,
    permits: &Arc<Semaphore>,
    requests: &TaskTracker,
    lifecycle: &Lifecycle,
) {
    loop {
        let request = tokio::select! {
            () = lifecycle.finishing() => {
                // Another gateway takes what comes from now on.
                if let Err(error) = endpoint.stop().await {
                    tracing::debug!(%error, "the endpoint had ended already");
                }
                return;
            }
            request = endpoint.next() => request,
        };
        let Some(request) = request else { return };
        let (door, permit) = (Arc::clone(door), Arc::clone(permits).try_acquire_owned());
        requests.spawn(Box::pin(async move {
            if permit.is_ok() {
                door.answer(&request).await;
            } else {
                let problem = Problem::new(OVERLOADED, "Repeat after a second.");
                door.respond(&request, &Trace::None, Err(problem)).await;
            }
            drop(permit);
        }));
    }
}

impl Door {
    async fn answer(&self, request: &Request) {
        let none = HeaderMap::new();
        let headers = request.message.headers.as_ref().unwrap_or(&none);
        let trace = trace::of_request(&self.context.telemetry, headers);
        let answer = self.send_now(request, headers, &trace).await;
        trace::end(&trace, answer.as_ref().err().map(|problem| problem.kind().code));
        self.respond(request, &trace, answer).await;
    }

    /// The answer in JSON.
    async fn send_now(&self, request: &Request, headers: &HeaderMap, trace: &Trace) -> Result<Bytes, Problem> {
        let message = &request.message;
        if !self.context.is_informed() {
            return Err(Problem::new(STARTING, "Repeat after a second."));
        }
        let app = self.app(message.subject.as_str(), headers)?;
        let limit = usize::try_from(INTAKE_MAX_MESSAGE_BYTES).unwrap_or_default();
        if message.payload.len() > limit {
            return Err(Problem::new(
                TOO_LARGE,
                format!("The body may have at most {limit} bytes."),
            ));
        }
        let now = self.context.clock.now();
        match self.orders(&app, headers, &message.payload, now)? {
            Orders::One(order) => match send::accept(&self.intake, *order, trace, self.request_timeout).await {
                Ok(answer) => Ok(json(&SendResponse::of(&app.id, Trial::NONE, answer))),
                Err(failed) => Err(failed.problem),
            },
            Orders::Many(orders) => {
                let orders = orders.into_iter().map(|(_, order)| order);
                let results = send::accept_many(&self.intake, orders, trace, self.request_timeout).await;
                Ok(json(&results.answer(&app.id, Trial::NONE)))
            }
        }
    }

    /// The app whose service published to `subject`. The server lets each account publish to its own subject only.
    fn app(&self, subject: &str, headers: &HeaderMap) -> Result<Arc<App>, Problem> {
        let unknown = || Problem::new(FORBIDDEN, "No app with services has this account.");
        let account = subject::account_of(subject).ok_or_else(unknown)?;
        let stated = header(headers, REQUEST_INFO);
        let stated = stated.and_then(|text| serde_json::from_str::<RequestInfo>(text).ok());
        if stated.is_some_and(|info| info.acc != account) {
            return Err(unknown());
        }
        let tenants = self.context.config.tenants();
        let mut apps = tenants.apps.values();
        let app = apps.find(|app| app.services && app.account_name() == account);
        let app = app.ok_or_else(unknown)?;
        match &app.residency {
            _ if app.suspended => Err(Problem::suspended()),
            Some(region) if *region != self.context.here => Err(Problem::new(
                RESIDES_ELSEWHERE,
                format!("Ask a gateway of {region}, where this app's data stays."),
            )),
            _ => Ok(Arc::clone(app)),
        }
    }

    async fn respond(&self, request: &Request, trace: &Trace, answer: Result<Bytes, Problem>) {
        let (headers, body) = match answer {
            Ok(body) => (HeaderMap::new(), body),
            Err(problem) => {
                let kind = problem.kind();
                self.context.telemetry.metrics.refused(kind.code);
                let id = request_id(&self.instance);
                let mut headers = HeaderMap::new();
                headers.insert(NATS_SERVICE_ERROR, kind.code);
                headers.insert(NATS_SERVICE_ERROR_CODE, kind.status.as_str());
                tracing::debug!(request_id = id, code = kind.code, "request refused");
                (headers, json(&problem.document(Some(&id), trace.id().as_deref())))
            }
        };
        if let Err(error) = request.respond_with_headers(Ok(body), headers).await {
            tracing::debug!(%error, "a request names no subject for the answer, or the connection is closed");
        }
    }
}

fn json(answer: &impl Serialize) -> Bytes {
    serde_json::to_vec(answer).expect("answers always serialize").into()
}
