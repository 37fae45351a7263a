//! The admin API: HTTP and JSON for programs that manage members, such as an Internet provider's billing.
//!
//! Enters: requests with the token that lies in the state directory. Leaves: what commands do as well, in the same transactions, so that
//! neither races with the other; each change is in the audit log as the API's. `/metrics`, `/healthz` and `/readyz` take no token and name no
//! member. What there is, is written down in `openapi.json`, which the API serves too and a test compares with the routes.

mod answers;
mod exchange;
mod lans;
mod live;
mod members;
mod nodes;
mod parameters;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use shared::service::{Failure, Shutdown, bind_failure};
use tokio::{net::TcpListener, sync::Semaphore};

use self::answers::ApiError;
use crate::{accept::Sessions, metrics::Figures, provision::Registrar, quota::Keeper};

/// The parts of a running `reconst` that the API works on.
pub(crate) struct Api {
    pub(crate) registrar: Registrar,
    pub(crate) sessions: Sessions,
    pub(crate) keeper: Keeper,
    pub(crate) figures: Box<dyn Fn() -> Figures + Send + Sync>,
    /// What each request but a few has to show.
    pub(crate) token: String,
}

/// Binds the API's socket.
///
/// # Errors
/// If the address can't be bound.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    if !address.ip().to_canonical().is_loopback() {
        tracing::warn!(%address, "the API's token goes over the network unencrypted: put a proxy with TLS before it, or use 127.0.0.1");
    }
    TcpListener::bind(address).await.map_err(|error| bind_failure(address, "--api", &error))
}

/// Answers until the program stops.
pub(crate) async fn serve(listener: TcpListener, api: Arc<Api>, shutdown: Shutdown) {
    let service = TowerToHyperService::new(router(api));
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accept = async {
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the API could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let service = service.clone();
            tokio::spawn(async move {
                let _slot = slot;
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIME)
                    .keep_alive(true)
                    .serve_connection(TokioIo::new(stream), service);
                if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_TIME, connection).await {
                    tracing::debug!(%error, "API connection");
                }
            });
        }
    };
    tokio::select! {
        () = accept => (),
        () = shutdown.stopping() => (),
    }
}

fn router(api: Arc<Api>) -> Router {
    let open =
        Router::new().route("/healthz", get(live::health)).route("/readyz", get(live::readiness)).route("/metrics", get(live::metrics));
    Router::new()
        .route("/v1/openapi.json", get(live::document))
        .route("/v1/lans", get(lans::list))
        .route("/v1/lans/{lan}", put(lans::put).get(lans::get).delete(lans::remove))
        .route("/v1/lans/{lan}/limits", put(lans::set_limits))
        .route("/v1/users", get(members::users))
        .route("/v1/lans/{lan}/users/{name}", get(members::user).delete(members::remove_user))
        .route("/v1/lans/{lan}/users/{name}/limits", put(members::set_limits))
        .route("/v1/lans/{lan}/users/{name}/invites", post(members::invite_user))
        .route("/v1/relays", get(members::relays))
        .route("/v1/lans/{lan}/relays/{name}", delete(members::remove_relay))
        .route("/v1/lans/{lan}/relays/{name}/invites", post(members::invite_relay))
        .route("/v1/export", get(exchange::export))
        .route("/v1/import", post(exchange::import).layer(DefaultBodyLimit::max(exchange::DOCUMENT_BYTES_MAX)))
        .route("/v1/lans/{lan}/node", put(nodes::place))
        .route("/v1/nodes", get(nodes::list))
        .route("/v1/nodes/{name}", delete(nodes::remove))
        .route("/v1/nodes/{name}/drain", put(nodes::drain).delete(nodes::resume))
        .route("/v1/sessions", get(live::sessions))
        .route("/v1/flows", get(live::flows))
        .route("/v1/audit", get(live::audit))
        .fallback(|| async { ApiError::no_such_path() })
        .method_not_allowed_fallback(|| async { ApiError::no_such_method() })
        .layer(from_fn(parameters::check))
        .layer(from_fn_with_state(api.clone(), authenticate))
        .merge(open.layer(from_fn(parameters::check)))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}

async fn authenticate(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(axum::http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default().trim();
    if is_same(shown, &api.token) { next.run(request).await } else { ApiError::no_token().into_response() }
}

/// Takes as long for a token that is nearly right as for any other of its length.
fn is_same(shown: &str, token: &str) -> bool {
    let differing = shown.bytes().zip(token.bytes()).fold(0, |differing, (a, b)| differing | (a ^ b));
    shown.len() == token.len() && differing == 0
}

/// A handler's end.
type Answer = Result<Response, ApiError>;

/// The longest body, a set of limits, takes some hundred bytes.
const BODY_BYTES_MAX: usize = 64 << 10;

/// Billing, a dashboard and a monitor, each with some connections.
const CONNECTIONS_MAX: usize = 64;

/// On the networks of operators a request's head arrives within milliseconds.
const HEADER_TIME: Duration = Duration::from_secs(10);

/// After that a client connects anew.
const CONNECTION_TIME: Duration = Duration::from_secs(300);

/// Out of file descriptors is the usual reason that accepting fails, and it does not end by asking again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
