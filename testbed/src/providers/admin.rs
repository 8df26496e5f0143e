//! The small HTTP port by which a running simulator program is watched and told what to do.
//!
//! | request | does |
//! |---|---|
//! | `GET /log` | the remembered pushes, `{"apns": [...], "fcm": [...]}` |
//! | `DELETE /log` | forgets pushes and totals |
//! | `GET /stats` | the totals, `{"apns": {...}, "fcm": {...}}` |
//! | `GET /script`, `PUT /script` | the scripts, `{"apns": {...}, "fcm": {...}}`; one that is left out stays |
//! | `POST /go-away` | GOAWAY on every connection |
//! | `POST /cut` | every connection closes without a word |
//! | `POST /revoke-access-tokens` | the next use of an FCM access token is answered 401 |

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{Apns, Fcm, Push, Script, Stats};

/// Both simulators' scripts, as a file or a request gives them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scripts {
    /// For APNs.
    pub apns: Option<Script>,
    /// For FCM.
    pub fcm: Option<Script>,
}

/// The admin port. Dropping it closes it.
#[derive(Debug)]
pub struct Admin {
    addr: SocketAddr,
    serving: JoinHandle<()>,
}

#[derive(Clone)]
struct Both {
    apns: Arc<Apns>,
    fcm: Arc<Fcm>,
}

#[derive(Serialize)]
struct Pair<T> {
    apns: T,
    fcm: T,
}

impl Admin {
    /// Begins to listen, on the current runtime.
    pub async fn start(listen: SocketAddr, apns: Arc<Apns>, fcm: Arc<Fcm>) -> anyhow::Result<Self> {
        let socket = TcpListener::bind(listen)
            .await
            .with_context(|| format!("listening on {listen}"))?;
        let addr = socket.local_addr()?;
        let routes = Router::new()
            .route("/log", get(log).delete(clear_log))
            .route("/stats", get(stats))
            .route("/script", get(script).put(set_script))
            .route("/go-away", post(go_away))
            .route("/cut", post(cut))
            .route("/revoke-access-tokens", post(revoke_access_tokens))
            .with_state(Both { apns, fcm });
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(socket, routes).await {
                tracing::warn!(%error, "the simulators' admin port failed");
            }
        });
        Ok(Self { addr, serving })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn log(State(both): State<Both>) -> Json<Pair<Vec<Push>>> {
    Json(Pair {
        apns: both.apns.log().pushes(),
        fcm: both.fcm.log().pushes(),
    })
}

async fn clear_log(State(both): State<Both>) -> StatusCode {
    both.apns.log().clear();
    both.fcm.log().clear();
    StatusCode::NO_CONTENT
}

async fn stats(State(both): State<Both>) -> Json<Pair<Stats>> {
    Json(Pair {
        apns: both.apns.stats(),
        fcm: both.fcm.stats(),
    })
}

async fn script(State(both): State<Both>) -> Json<Scripts> {
    Json(Scripts {
        apns: Some(both.apns.script().get()),
        fcm: Some(both.fcm.script().get()),
    })
}

async fn set_script(
    State(both): State<Both>,
    Json(scripts): Json<Scripts>,
) -> Result<StatusCode, (StatusCode, String)> {
    let refused = |error: anyhow::Error| (StatusCode::UNPROCESSABLE_ENTITY, format!("{error}\n"));
    if let Some(script) = scripts.apns {
        both.apns.script().set(script).map_err(refused)?;
    }
    if let Some(script) = scripts.fcm {
        both.fcm.script().set(script).map_err(refused)?;
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn go_away(State(both): State<Both>) -> StatusCode {
    both.apns.go_away();
    both.fcm.go_away();
    StatusCode::NO_CONTENT
}

async fn cut(State(both): State<Both>) -> StatusCode {
    both.apns.cut();
    both.fcm.cut();
    StatusCode::NO_CONTENT
}

async fn revoke_access_tokens(State(both): State<Both>) -> StatusCode {
    both.fcm.revoke_access_tokens();
    StatusCode::NO_CONTENT
}
