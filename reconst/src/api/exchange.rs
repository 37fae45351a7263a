//! LANs and members as one document of TOML.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde::Deserialize;

use super::{Answer, Api, answers::ApiError};
use crate::accounts::exchange::{Document, ImportError};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImportQuery {
    #[serde(default)]
    dry_run: bool,
}

pub(super) async fn export(State(api): State<Arc<Api>>) -> Answer {
    let document = api.registrar.accounts().export().await?;
    Ok(([(header::CONTENT_TYPE, "application/toml")], document.to_toml()).into_response())
}

pub(super) async fn import(State(api): State<Arc<Api>>, query: Result<Query<ImportQuery>, QueryRejection>, text: String) -> Answer {
    let Query(ImportQuery { dry_run }) = query.map_err(|rejection| ApiError::bad_request(rejection.body_text()))?;
    let document: Document = text.parse().map_err(|error| ApiError::bad_request(format!("{error}")))?;
    Ok(Json(api.registrar.import(&document, dry_run).await?).into_response())
}

impl From<ImportError> for ApiError {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::Document(reason) => Self::bad_request(reason),
            ImportError::Conflict(reason) => Self::new(StatusCode::CONFLICT, "conflict", reason),
            ImportError::Accounts(error) => error.into(),
        }
    }
}

/// Some 50,000 members with a certificate each.
pub(super) const DOCUMENT_BYTES_MAX: usize = 64 << 20;
