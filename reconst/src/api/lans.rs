//! LANs.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::IntoResponse,
};
use serde::{Deserialize, Serialize};
use shared::ids::LanId;

use super::{
    Answer, Api,
    answers::{ApiError, Page, PageQuery, body, name},
};
use crate::accounts::registry::Lan;

#[derive(Serialize)]
struct LanReport {
    name: String,
    lan_id: u16,
    data_port: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewLan {
    lan_id: Option<u16>,
    data_port: Option<u16>,
}

pub(super) async fn list(State(api): State<Arc<Api>>, query: Result<Query<PageQuery>, QueryRejection>) -> Answer {
    let query = PageQuery::parse(query)?;
    let lans = api.registrar.accounts().lans().await?;
    let reports = lans.iter().map(report).collect();
    Ok(Page::of(reports, |lan: &LanReport| lan.name.clone(), &query).into_response())
}

/// Adds a LAN, moves one to another port, or finds it as it is to be.
pub(super) async fn put(State(api): State<Arc<Api>>, Path(lan): Path<String>, bytes: Bytes) -> Answer {
    let (lan, wanted): (_, NewLan) = (name(&lan)?, body(&bytes)?);
    let existing = api.registrar.accounts().lans().await?.into_iter().find(|known| known.name == lan);
    let Some(existing) = existing else {
        let added = api.registrar.add_lan(&lan, wanted.lan_id.map(LanId), wanted.data_port).await?;
        return Ok((StatusCode::CREATED, Json(report(&added))).into_response());
    };
    if wanted.lan_id.is_some_and(|id| LanId(id) != existing.id) {
        return Err(ApiError::new(StatusCode::CONFLICT, "conflict", format!("LAN {lan} has number {}, which stays", existing.id)));
    }
    let data_port = wanted.data_port.unwrap_or(existing.data_port);
    if data_port != existing.data_port {
        api.registrar.move_lan(&lan, data_port).await?;
    }
    Ok(Json(report(&Lan { data_port, ..existing })).into_response())
}

pub(super) async fn remove(State(api): State<Arc<Api>>, Path(lan): Path<String>) -> Answer {
    api.registrar.accounts().remove_lan(&name(&lan)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn report(lan: &Lan) -> LanReport {
    LanReport { name: lan.name.to_string(), lan_id: lan.id.0, data_port: lan.data_port }
}
