//! What goes on now, and what was done.

use std::sync::Arc;

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{
    Answer, Api,
    answers::{Page, PageQuery},
};

pub(super) async fn health() -> &'static str {
    "ok\n"
}

pub(super) async fn readiness(State(api): State<Arc<Api>>) -> Response {
    match api.keeper.behind() {
        None => "ready\n".into_response(),
        Some(behind) => {
            let problem = format!("the member database has not answered for {} s\n", behind.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, problem).into_response()
        }
    }
}

pub(super) async fn metrics(State(api): State<Arc<Api>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], (api.figures)().text()).into_response()
}

pub(super) async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT).into_response()
}

pub(super) async fn sessions(State(api): State<Arc<Api>>, query: Result<Query<PageQuery>, QueryRejection>) -> Answer {
    let query = PageQuery::parse(query)?;
    Ok(Page::answer(api.sessions.part(query.lan()?.as_ref(), query.after()?.as_ref(), query.limit())))
}

pub(super) async fn flows(State(api): State<Arc<Api>>, query: Result<Query<PageQuery>, QueryRejection>) -> Answer {
    let query = PageQuery::parse(query)?;
    Ok(Page::answer(api.sessions.dedicated_ports().part(query.lan()?.as_ref(), query.after()?, query.limit())))
}

pub(super) async fn audit(State(api): State<Arc<Api>>, query: Result<Query<PageQuery>, QueryRejection>) -> Answer {
    let query = PageQuery::parse(query)?;
    Ok(Page::answer(api.registrar.accounts().audit_part(query.lan()?.as_ref(), query.after()?, query.limit()).await?))
}

/// The API as OpenAPI 3.1 describes it.
pub(super) const DOCUMENT: &str = include_str!("openapi.json");
