//! Users and relays.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::IntoResponse,
};
use serde::{Deserialize, Serialize};
use shared::community::{member::Role, quota::Limits};
use time::Duration;

use super::{
    Answer, Api,
    answers::{ApiError, Page, PageQuery, body, name},
};
use crate::accounts::{invites::Invitation, ledger::Lender, parts::Members, written::WrittenLimits};

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct InviteBody {
    limits: WrittenLimits,
    again: bool,
    lifetime_seconds: Option<u32>,
}

#[derive(Serialize)]
struct InviteReport {
    number: u32,
    link: String,
    expires_at: i64,
}

#[derive(Serialize)]
struct RelayReport {
    name: String,
    lan: String,
    lan_id: u16,
    owner: Option<String>,
    lent_up_bytes: u64,
    lent_down_bytes: u64,
}

pub(super) async fn users(State(api): State<Arc<Api>>, query: Result<Query<PageQuery>, QueryRejection>) -> Answer {
    let query = PageQuery::parse(query)?;
    let lan = query.lan()?;
    let members = Members { lan: lan.as_ref(), after: query.after()?, limit: query.limit() };
    Ok(Page::answer(api.registrar.accounts().users(&members, api.keeper.time()).await?))
}

pub(super) async fn user(State(api): State<Arc<Api>>, Path((lan, user)): Path<(String, String)>) -> Answer {
    Ok(Json(api.registrar.accounts().user_report(&name(&lan)?, &name(&user)?, api.keeper.time()).await?).into_response())
}

pub(super) async fn set_limits(State(api): State<Arc<Api>>, Path((lan, user)): Path<(String, String)>, bytes: Bytes) -> Answer {
    let (lan, user) = (name(&lan)?, name(&user)?);
    let limits = body::<WrittenLimits>(&bytes)?.parse()?;
    let accounts = api.registrar.accounts();
    let account = accounts.user(&lan, &user).await?;
    if account.limits != limits {
        accounts.set_limits(account.account, &limits).await?;
    }
    Ok(Json(accounts.user_report(&lan, &user, api.keeper.time()).await?).into_response())
}

pub(super) async fn remove_user(State(api): State<Arc<Api>>, Path((lan, user)): Path<(String, String)>) -> Answer {
    remove(&api, &lan, Role::User, &user).await
}

pub(super) async fn remove_relay(State(api): State<Arc<Api>>, Path((lan, relay)): Path<(String, String)>) -> Answer {
    remove(&api, &lan, Role::Relay, &relay).await
}

pub(super) async fn invite_user(State(api): State<Arc<Api>>, Path((lan, user)): Path<(String, String)>, bytes: Bytes) -> Answer {
    invite(&api, &lan, Role::User, &user, &bytes).await
}

pub(super) async fn invite_relay(State(api): State<Arc<Api>>, Path((lan, relay)): Path<(String, String)>, bytes: Bytes) -> Answer {
    invite(&api, &lan, Role::Relay, &relay, &bytes).await
}

pub(super) async fn relays(State(api): State<Arc<Api>>, query: Result<Query<PageQuery>, QueryRejection>) -> Answer {
    let query = PageQuery::parse(query)?;
    let lan = query.lan()?;
    let members = Members { lan: lan.as_ref(), after: query.after()?, limit: query.limit() };
    let report = |lender: Lender| RelayReport {
        name: lender.name.to_string(),
        lan: lender.lan_name.to_string(),
        lan_id: lender.lan.0,
        owner: lender.owner.map(|name| name.to_string()),
        lent_up_bytes: lender.carried.up,
        lent_down_bytes: lender.carried.down,
    };
    Ok(Page::answer(api.registrar.accounts().lenders(&members, api.keeper.time()).await?.map(report)))
}

async fn remove(api: &Api, lan: &str, role: Role, member: &str) -> Answer {
    api.registrar.accounts().remove_member(&name(lan)?, role, &name(member)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn invite(api: &Api, lan: &str, role: Role, member: &str, bytes: &Bytes) -> Answer {
    let (lan, member) = (name(lan)?, name(member)?);
    let InviteBody { limits, again, lifetime_seconds } = body(bytes)?;
    let limits = limits.parse()?;
    if limits != Limits::default() && (again || role == Role::Relay) {
        return Err(ApiError::bad_request("limits are for users who are new: leave them out"));
    }
    let lifetime = Duration::seconds(lifetime_seconds.map_or(INVITE_SECONDS, i64::from));
    let invitation = Invitation { lan: &lan, role, name: &member, limits: &limits, again, lifetime };
    let (invite, invited) = api.registrar.invite(&invitation).await?;
    let report = InviteReport { number: invited.number, link: invite.to_string(), expires_at: invited.expires_at.unix_timestamp() };
    Ok((StatusCode::CREATED, Json(report)).into_response())
}

/// As the command's: long enough to walk over with it.
const INVITE_SECONDS: i64 = 7 * 86_400;
