//! Servers that share the database.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::IntoResponse,
};
use serde::Deserialize;
use shared::community::member::Name;

use super::{
    Answer, Api,
    answers::{ApiError, Page, PageQuery, body, name},
};
use crate::accounts::parts::Part;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Drain {
    deadline_seconds: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    node: Option<String>,
}

pub(super) async fn list(State(api): State<Arc<Api>>, query: Result<Query<PageQuery>, QueryRejection>) -> Answer {
    let query = PageQuery::parse(query)?;
    let after: Option<Name> = query.after()?;
    // They are few, and read as a whole twice a second anyway.
    let mut nodes = api.registrar.accounts().node_reports().await?;
    nodes.retain(|node| after.as_ref().is_none_or(|after| node.name.as_str() > after.as_str()));
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Page::answer(Part::cut(nodes, query.limit(), |node| node.name.clone())))
}

pub(super) async fn remove(State(api): State<Arc<Api>>, Path(node): Path<String>) -> Answer {
    api.registrar.remove_node(&name(&node)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn drain(State(api): State<Arc<Api>>, Path(node): Path<String>, bytes: Bytes) -> Answer {
    let (node, Drain { deadline_seconds }) = (name(&node)?, body(&bytes)?);
    if deadline_seconds > DEADLINE_SECONDS_MAX {
        return Err(ApiError::bad_request(format!("a deadline is at most {DEADLINE_SECONDS_MAX} seconds away")));
    }
    api.registrar.accounts().drain_node(&node, Some(Duration::from_secs(deadline_seconds))).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn resume(State(api): State<Arc<Api>>, Path(node): Path<String>) -> Answer {
    api.registrar.accounts().drain_node(&name(&node)?, None).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn place(State(api): State<Arc<Api>>, Path(lan): Path<String>, bytes: Bytes) -> Answer {
    let (lan, Place { node }) = (name(&lan)?, body(&bytes)?);
    let node = node.map(|node| name(&node)).transpose()?;
    api.registrar.accounts().want_lan_on(&lan, node.as_ref()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// As the command's.
const DEADLINE_SECONDS_MAX: u64 = 7 * 86_400;
