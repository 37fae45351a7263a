//! LANs.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::IntoResponse,
};
use serde::Deserialize;
use shared::{community::member::Name, ids::LanId};

use super::{
    Answer, Api,
    answers::{ApiError, Page, PageQuery, body, name},
};
use crate::accounts::{AccountsError, written::WrittenLimits};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewLan {
    lan_id: Option<u16>,
    data_port: Option<u16>,
}

pub(super) async fn list(State(api): State<Arc<Api>>, query: Result<Query<PageQuery>, QueryRejection>) -> Answer {
    let query = PageQuery::parse(query)?;
    Ok(Page::answer(api.registrar.accounts().lan_reports(query.after()?.map(LanId), query.limit(), api.keeper.time()).await?))
}

pub(super) async fn get(State(api): State<Arc<Api>>, Path(lan): Path<String>) -> Answer {
    report(&api, &name(&lan)?, StatusCode::OK).await
}

pub(super) async fn set_limits(State(api): State<Arc<Api>>, Path(lan): Path<String>, bytes: Bytes) -> Answer {
    let lan = name(&lan)?;
    let limits = body::<WrittenLimits>(&bytes)?.parse()?;
    let accounts = api.registrar.accounts();
    let id = accounts.lan(&lan).await?.id;
    if accounts.lan_account(id).await?.limits != limits {
        accounts.set_lan_limits(&lan, &limits).await?;
    }
    report(&api, &lan, StatusCode::OK).await
}

/// Adds a LAN, moves one to another port, or finds it as it is to be.
pub(super) async fn put(State(api): State<Arc<Api>>, Path(lan): Path<String>, bytes: Bytes) -> Answer {
    let (lan, wanted): (_, NewLan) = (name(&lan)?, body(&bytes)?);
    let existing = match api.registrar.accounts().lan(&lan).await {
        Ok(existing) => existing,
        Err(AccountsError::NoLan(_)) => {
            api.registrar.add_lan(&lan, wanted.lan_id.map(LanId), wanted.data_port).await?;
            return report(&api, &lan, StatusCode::CREATED).await;
        }
        Err(error) => return Err(error.into()),
    };
    if wanted.lan_id.is_some_and(|id| LanId(id) != existing.id) {
        return Err(ApiError::new(StatusCode::CONFLICT, "conflict", format!("LAN {lan} has number {}, which stays", existing.id)));
    }
    let data_port = wanted.data_port.unwrap_or(existing.data_port);
    if data_port != existing.data_port {
        api.registrar.move_lan(&lan, data_port).await?;
    }
    report(&api, &lan, StatusCode::OK).await
}

pub(super) async fn remove(State(api): State<Arc<Api>>, Path(lan): Path<String>) -> Answer {
    api.registrar.accounts().remove_lan(&name(&lan)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn report(api: &Api, lan: &Name, status: StatusCode) -> Answer {
    Ok((status, Json(api.registrar.accounts().lan_report(lan, api.keeper.time()).await?)).into_response())
}
