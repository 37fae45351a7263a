//! What the API answers when it does not do what it was asked, and how it reads requests.

use std::{fmt::Display, str::FromStr};

use axum::{
    Json,
    body::Bytes,
    extract::{Query, rejection::QueryRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use shared::{
    community::member::Name,
    service::{Exit, Failure},
};

use crate::accounts::{
    AccountsError,
    parts::{LARGE_PART, Part, PlaceError},
    written::WrittenError,
};

/// Why a request was not carried out.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    /// For programs.
    code: &'static str,
    /// For people.
    message: String,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", message)
    }

    pub(super) fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no-such-path", "there is no such path: see /v1/openapi.json")
    }

    pub(super) fn no_such_method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "no-such-method", "this path does not take that method: see /v1/openapi.json")
    }

    pub(super) fn no_token() -> Self {
        let message = "send `Authorization: Bearer TOKEN` with the token of the file api-token in the state directory";
        Self::new(StatusCode::UNAUTHORIZED, "no-token", message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Json(json!({ "error": { "code": self.code, "message": self.message } }));
        let mut response = (self.status, body).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<AccountsError> for ApiError {
    fn from(error: AccountsError) -> Self {
        let (status, code) = match &error {
            AccountsError::NoLan(_) | AccountsError::NoMember { .. } | AccountsError::NoInvite(_) | AccountsError::NoNode(_) => {
                (StatusCode::NOT_FOUND, "not-found")
            }
            AccountsError::LanEarns => (StatusCode::BAD_REQUEST, "bad-request"),
            AccountsError::Database(_) => (StatusCode::SERVICE_UNAVAILABLE, "store-unavailable"),
            AccountsError::Damaged(_) | AccountsError::Claimed | AccountsError::TooOld { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "store-damaged")
            }
            _ => (StatusCode::CONFLICT, "conflict"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<WrittenError> for ApiError {
    fn from(error: WrittenError) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let (status, code) = match failure.exit {
            Exit::Usage => (StatusCode::BAD_REQUEST, "bad-request"),
            Exit::Config => (StatusCode::CONFLICT, "conflict"),
            Exit::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "store-unavailable"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
        };
        Self::new(status, code, failure.message)
    }
}

/// A body of JSON; none stands for an empty object.
pub(super) fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, ApiError> {
    let bytes = if bytes.is_empty() { &b"{}"[..] } else { bytes };
    serde_json::from_slice(bytes).map_err(|error| ApiError::bad_request(format!("the body is not what is expected: {error}")))
}

/// A name of a path.
pub(super) fn name(text: &str) -> Result<Name, ApiError> {
    text.parse().map_err(|error| ApiError::bad_request(format!("{error}")))
}

/// Which part of a list is asked for; `lan` comes only where the document names it.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    /// Only those of this LAN.
    lan: Option<String>,
    /// Those behind this one: a page's `next`.
    after: Option<String>,
    limit: Option<u32>,
}

impl PageQuery {
    pub(super) fn parse(query: Result<Query<Self>, QueryRejection>) -> Result<Self, ApiError> {
        query.map(|Query(query)| query).map_err(|rejection| ApiError::bad_request(rejection.body_text()))
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit.unwrap_or(PAGE_DEFAULT).clamp(1, LARGE_PART)
    }

    /// The place behind which the part begins.
    pub(super) fn after<P: FromStr>(&self) -> Result<Option<P>, ApiError> {
        self.after.as_deref().map(str::parse).transpose().map_err(|_| ApiError::bad_request(PlaceError.to_string()))
    }

    /// The LAN whose items alone are asked for.
    pub(super) fn lan(&self) -> Result<Option<Name>, ApiError> {
        self.lan.as_deref().map(name).transpose()
    }
}

/// A part of a list.
#[derive(Serialize)]
pub(super) struct Page<T> {
    items: Vec<T>,
    /// What to ask `after` for the next part; none at the end.
    next: Option<String>,
}

impl<T: Serialize> Page<T> {
    pub(super) fn answer<P: Display>(part: Part<T, P>) -> Response {
        Json(Self { items: part.items, next: part.next.map(|place| place.to_string()) }).into_response()
    }
}

const PAGE_DEFAULT: u32 = 100;
