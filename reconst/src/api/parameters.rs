//! Which query parameters a request takes: those that the document names for it.
//!
//! Always holds: no handler sees another one. What a program asks for and is not done would be taken for done: a list that goes on as if it had
//! not been asked for one LAN's is a wrong answer.

use std::{collections::BTreeMap, sync::LazyLock};

use axum::{
    extract::{MatchedPath, Query, Request},
    http::Method,
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde_json::Value;

use super::{answers::ApiError, live::DOCUMENT};

/// Refuses a request with a query parameter that it does not take.
pub(super) async fn check(path: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let method = if *request.method() == Method::HEAD { &Method::GET } else { request.method() };
    let operation = path.map(|path| format!("{method} {}", path.as_str()));
    // What has no operation is answered by the router.
    let taken = operation.as_ref().and_then(|operation| TAKEN_BY_OPERATION.get(operation).map(|taken| (operation, taken)));
    if let Some((operation, taken)) = taken {
        let given = match Query::<Vec<(String, String)>>::try_from_uri(request.uri()) {
            Ok(Query(given)) => given,
            Err(rejection) => return ApiError::bad_request(rejection.body_text()).into_response(),
        };
        if let Some((name, _)) = given.iter().find(|(name, _)| !taken.contains(name)) {
            let taken = if taken.is_empty() { "none".into() } else { taken.join(", ") };
            let message = format!("`{name}` is no query parameter of {operation}, which takes {taken}: see /v1/openapi.json");
            return ApiError::bad_request(message).into_response();
        }
    }
    next.run(request).await
}

/// The names of an operation's query parameters, by its method and path.
static TAKEN_BY_OPERATION: LazyLock<BTreeMap<String, Vec<String>>> = LazyLock::new(|| {
    let document: Value = serde_json::from_str(DOCUMENT).expect("a test reads it");
    let operations = document["paths"].as_object().into_iter().flatten().flat_map(|(path, methods)| {
        let methods = methods.as_object().into_iter().flatten();
        methods.map(move |(method, operation)| (format!("{} {path}", method.to_uppercase()), taken_by(operation)))
    });
    operations.collect()
});

fn taken_by(operation: &Value) -> Vec<String> {
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    parameters.filter(|parameter| parameter["in"] == "query").filter_map(|parameter| parameter["name"].as_str().map(Into::into)).collect()
}
