//! The HTTP port to observe and control running simulators.
//!
//! | request | effect |
//! |---|---|
//! | `GET /log` | the recorded pushes, `{"apns": [...], "fcm": [...]}` |
//! | `GET /log/smtp` | those of one provider, each as its payload, an empty line between them |
//! | `DELETE /log` | discards recorded pushes and totals |
//! | `GET /stats` | the totals, `{"apns": {...}, "fcm": {...}}` |
//! | `GET /script`, `PUT /script` | the scripts, `{"apns": {...}, "fcm": {...}}`; a provider that is left out keeps its script |
//! | `POST /go-away` | sends GOAWAY on every connection |
//! | `POST /cut` | closes every connection without notice |
//! | `POST /revoke-access-tokens` | the next use of an FCM access token is answered 401 |

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use shared::provider::Provider;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{RecordedPush, Script, Simulation, Simulators, Stats};

/// A script for each provider, as in files and requests: `{"apns": {...}, "fcm": {...}}`.
pub type Scripts = BTreeMap<Provider, Script>;

/// The admin port. Dropping it closes it.
#[derive(Debug)]
pub struct Admin {
    addr: SocketAddr,
    serving: JoinHandle<()>,
}

type ByProvider<T> = BTreeMap<&'static str, T>;

impl Admin {
    /// Starts to listen, on the current runtime.
    pub async fn start(listen: SocketAddr, simulators: Arc<Simulators>) -> anyhow::Result<Self> {
        let socket = TcpListener::bind(listen)
            .await
            .with_context(|| format!("listening on {listen}"))?;
        let addr = socket.local_addr()?;
        let routes = Router::new()
            .route("/log", get(log).delete(clear_log))
            .route("/log/{provider}", get(payloads))
            .route("/stats", get(stats))
            .route("/script", get(script).put(set_script))
            .route("/go-away", post(go_away))
            .route("/cut", post(cut))
            .route("/revoke-access-tokens", post(revoke_access_tokens))
            .with_state(simulators);
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(socket, routes).await {
                tracing::warn!(%error, "the simulators' admin port failed");
            }
        });
        Ok(Self { addr, serving })
    }

    /// The address on which it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn by_provider<T>(simulators: &Simulators, value: impl Fn(&dyn Simulation) -> T) -> Json<ByProvider<T>> {
    let entries = simulators.all();
    Json(
        entries
            .map(|simulator| (simulator.provider().as_str(), value(simulator)))
            .collect(),
    )
}

async fn log(State(simulators): State<Arc<Simulators>>) -> Json<ByProvider<Vec<RecordedPush>>> {
    by_provider(&simulators, |simulator| simulator.log().pushes())
}

async fn payloads(
    State(simulators): State<Arc<Simulators>>,
    Path(provider): Path<Provider>,
) -> Result<String, (StatusCode, String)> {
    let simulator = simulators.of(provider);
    let simulator = simulator.map_err(|error| (StatusCode::NOT_FOUND, format!("{error}\n")))?;
    let pushes = simulator.log().pushes();
    let texts = pushes.iter().map(|push| String::from_utf8_lossy(&push.payload));
    let texts: Vec<_> = texts.map(|text| text.trim_end().to_owned()).collect();
    Ok(texts.join("\n\n"))
}

async fn clear_log(State(simulators): State<Arc<Simulators>>) -> StatusCode {
    simulators.all().for_each(|simulator| simulator.log().clear());
    StatusCode::NO_CONTENT
}

async fn stats(State(simulators): State<Arc<Simulators>>) -> Json<ByProvider<Stats>> {
    by_provider(&simulators, |simulator| simulator.stats())
}

async fn script(State(simulators): State<Arc<Simulators>>) -> Json<ByProvider<Script>> {
    by_provider(&simulators, |simulator| simulator.script().get())
}

async fn set_script(
    State(simulators): State<Arc<Simulators>>,
    Json(scripts): Json<Scripts>,
) -> Result<StatusCode, (StatusCode, String)> {
    for (provider, script) in scripts {
        let simulator = simulators.of(provider);
        let set = simulator.and_then(|simulator| simulator.script().set(script));
        set.map_err(|error| (StatusCode::UNPROCESSABLE_ENTITY, format!("{error}\n")))?;
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn go_away(State(simulators): State<Arc<Simulators>>) -> StatusCode {
    simulators.all().for_each(|simulator| simulator.go_away());
    StatusCode::NO_CONTENT
}

async fn cut(State(simulators): State<Arc<Simulators>>) -> StatusCode {
    simulators.all().for_each(|simulator| simulator.cut());
    StatusCode::NO_CONTENT
}

async fn revoke_access_tokens(State(simulators): State<Arc<Simulators>>) -> StatusCode {
    simulators.fcm.revoke_access_tokens();
    StatusCode::NO_CONTENT
}
