//! What goes on now, and what was done.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{
    Answer, Api,
    answers::{ApiError, Page, PageQuery},
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

pub(super) async fn sessions(State(api): State<Arc<Api>>) -> Answer {
    Ok(Json(api.sessions.report()).into_response())
}

pub(super) async fn flows(State(api): State<Arc<Api>>, query: Result<Query<PageQuery>, QueryRejection>) -> Answer {
    let query = PageQuery::parse(query)?;
    let flows = api.sessions.dedicated_ports().report();
    Ok(Page::of(flows, |flow| format!("{}-{}", flow.session, flow.flow), &query).into_response())
}

pub(super) async fn audit(State(api): State<Arc<Api>>, query: Result<Query<PageQuery>, QueryRejection>) -> Answer {
    let query = PageQuery::parse(query)?;
    let after = query.after.as_deref().unwrap_or("0");
    let after = after.parse().map_err(|_| ApiError::bad_request("`after` is the number of a change"))?;
    let limit = query.limit();
    let entries = api.registrar.accounts().audit_log(after, limit as u32).await?;
    let next = if entries.len() < limit { None } else { entries.last().map(|entry| entry.number.to_string()) };
    Ok(Page::cut(entries, next).into_response())
}

/// The API as OpenAPI 3.1 describes it.
pub(super) const DOCUMENT: &str = include_str!("openapi.json");
