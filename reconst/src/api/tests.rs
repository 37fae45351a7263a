//! Requests as a program of an operator makes them, through the whole router.

use axum::{
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use shared::{
    community::{
        member::{Identity, Role},
        quota::Limits,
        weight::LineWeight,
    },
    ids::{FlowId, LanId, PathId, SessionId},
    link::tls,
    transfer::{
        join::{JoinRequest, SessionSecret},
        schedule::Policy,
    },
};
use tower::ServiceExt;

use super::*;
use crate::{
    accounts::testing,
    authority::Authority,
    dedicated::{DedicatedPort, DedicatedPorts, Holder, Protocol},
    egress::{Egress, udp::IDLE_TIME},
    enrol::Enroller,
};

#[tokio::test]
async fn only_who_has_the_token_is_answered() {
    let bench = Bench::new().await;
    for shown in [None, Some("Bearer wrong"), Some("Bearer "), Some("secre"), Some("Basic secret")] {
        let mut request = Request::get("/v1/users");
        if let Some(shown) = shown {
            request = request.header(header::AUTHORIZATION, shown);
        }
        let response = bench.router.clone().oneshot(request.body(Body::empty()).expect("a request")).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{shown:?}");
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        let response = bench.router.clone().oneshot(Request::get(path).body(Body::empty()).expect("a request")).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn the_document_names_every_route_and_no_other() {
    let bench = Bench::new().await;
    let document: Value = serde_json::from_str(live::DOCUMENT).expect("JSON");
    let paths = document["paths"].as_object().expect("paths");
    let mut routes = 0;
    for (path, methods) in paths {
        for method in [Method::GET, Method::PUT, Method::POST, Method::DELETE] {
            let concrete = path.replace("{lan}", "nowhere").replace("{name}", "nobody");
            let (status, answer) = bench.ask(method.clone(), &concrete, Value::Null).await;
            let is_named = methods.get(method.as_str().to_lowercase()).is_some();
            let is_routed = status != StatusCode::METHOD_NOT_ALLOWED && answer["error"]["code"] != "no-such-path";
            assert_eq!(is_named, is_routed, "{method} {path}: {status} {answer}");
            routes += usize::from(is_routed);
        }
    }
    // What has a handler here and is not in the document is counted nowhere above.
    let source = include_str!("mod.rs");
    let router = source.find("fn router").expect("the router")..source.find("async fn authenticate").expect("what follows it");
    let source = &source[router];
    let handlers = source.matches("get(").count()
        + source.matches("put(").count()
        + source.matches("post(").count()
        + source.matches("delete(").count();
    assert_eq!(routes, handlers, "a route without a line in openapi.json");
}

#[tokio::test]
async fn a_user_is_invited_limited_and_removed() {
    let bench = Bench::new().await;
    let (status, invite) = bench.ask(Method::POST, "/v1/lans/elm/users/ann/invites", json!({ "limits": { "max_flows": 5 } })).await;
    assert_eq!(status, StatusCode::CREATED, "{invite}");
    assert!(invite["link"].as_str().expect("a link").starts_with("tributary://127.0.0.1:10000/user/"), "{invite}");

    let limits = json!({ "quota_bytes": 1_000_000, "period": "month/15", "time_zone": "Europe/Berlin", "throttle_bits_per_second": 64_000,
            "earn_percent": 50, "earn_at_most_bytes": 200_000 });
    let (status, user) = bench.ask(Method::PUT, "/v1/lans/elm/users/ann/limits", limits.clone()).await;
    assert_eq!((status, &user["period"], &user["max_flows"]), (StatusCode::OK, &json!("month/15"), &Value::Null));
    assert_eq!((&user["earn_percent"], &user["earn_at_most_bytes"], &user["earned_bytes"]), (&json!(50), &json!(200_000), &json!(0)));
    let (_, again) = bench.ask(Method::PUT, "/v1/lans/elm/users/ann/limits", limits).await;
    assert_eq!(again, user);
    let (_, audit) = bench.ask(Method::GET, "/v1/audit?after=1", Value::Null).await;
    let changes: Vec<_> = audit["items"].as_array().expect("a list").iter().map(|change| change["action"].as_str()).collect();
    assert_eq!(changes, [Some("user.invite"), Some("user.set")], "a write that changes nothing is not logged: {audit}");

    assert_eq!(bench.ask(Method::DELETE, "/v1/lans/elm/users/ann", Value::Null).await.0, StatusCode::NO_CONTENT);
    let (status, error) = bench.ask(Method::GET, "/v1/lans/elm/users/ann", Value::Null).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::NOT_FOUND, &json!("not-found")));
}

#[tokio::test]
async fn a_list_comes_in_parts_that_make_up_the_whole() {
    let bench = Bench::new().await;
    for lan in ["oak", "ash"] {
        bench.ask(Method::PUT, &format!("/v1/lans/{lan}"), Value::Null).await;
    }
    for number in 0..7 {
        let lan = ["elm", "elm", "oak"][number % 3];
        for role in ["users", "relays"] {
            bench.ask(Method::POST, &format!("/v1/lans/{lan}/{role}/m{number}/invites"), Value::Null).await;
        }
    }
    for list in ["users", "relays"] {
        assert_eq!(bench.names(&format!("/v1/{list}?limit=3")).await, ["m0", "m1", "m3", "m4", "m6", "m2", "m5"], "by LAN, then name");
        assert_eq!(bench.names(&format!("/v1/{list}?lan=elm&limit=2")).await, ["m0", "m1", "m3", "m4", "m6"]);
        assert_eq!(bench.names(&format!("/v1/{list}?lan=oak&limit=2")).await, ["m2", "m5"]);
        assert_eq!(bench.names(&format!("/v1/{list}?lan=yew&limit=2")).await, [""; 0]);
    }
    assert_eq!(bench.names("/v1/lans?limit=2").await, ["oak", "ash", "elm"], "by number");
}

#[tokio::test]
async fn who_is_removed_between_two_parts_takes_nobody_else_along() {
    let bench = Bench::new().await;
    for number in 0..5 {
        bench.ask(Method::POST, &format!("/v1/lans/elm/users/u{number}/invites"), Value::Null).await;
    }
    let (_, first) = bench.ask(Method::GET, "/v1/users?limit=2", Value::Null).await;
    bench.ask(Method::DELETE, "/v1/lans/elm/users/u1", Value::Null).await;
    bench.ask(Method::DELETE, "/v1/lans/elm/users/u3", Value::Null).await;
    bench.ask(Method::POST, "/v1/lans/elm/users/u11/invites", Value::Null).await;
    let after = first["next"].as_str().expect("a next part");
    assert_eq!(bench.names(&format!("/v1/users?after={after}")).await, ["u11", "u2", "u4"]);
    bench.ask(Method::DELETE, "/v1/lans/elm", Value::Null).await;
    assert_eq!(bench.names(&format!("/v1/users?after={after}")).await, [""; 0]);
}

#[tokio::test]
async fn sessions_come_in_parts_that_make_up_the_whole() {
    let bench = Bench::new().await;
    bench.ask(Method::PUT, "/v1/lans/oak", json!({ "lan_id": 16 })).await;
    for (lan, user, sessions) in [("oak", "ann", 1), ("elm", "bob", 5), ("elm", "ann", 2)] {
        bench.begin_sessions(lan, user, sessions).await;
    }
    let in_order = ["15 ann", "15 ann", "15 bob", "15 bob", "15 bob", "15 bob", "15 bob", "16 ann"];
    let who = |item: &Value| format!("{} {}", item["lan"], item["user"].as_str().expect("a user"));
    for limit in [1, 3, 8, 100] {
        assert_eq!(bench.whole(&format!("/v1/sessions?limit={limit}"), who).await, in_order, "{limit} at a time");
    }
    let (_, first) = bench.ask(Method::GET, "/v1/sessions?limit=3", Value::Null).await;
    bench.begin_sessions("elm", "cid", 1).await;
    let after = first["next"].as_str().expect("a next part");
    let rest = bench.whole(&format!("/v1/sessions?after={after}"), who).await;
    assert_eq!(rest, ["15 bob", "15 bob", "15 bob", "15 bob", "15 cid", "16 ann"], "who comes meanwhile takes nobody's place");
}

#[tokio::test]
async fn sessions_flows_and_changes_are_listed_for_one_lan() {
    let bench = Bench::new().await;
    bench.ask(Method::PUT, "/v1/lans/oak", json!({ "lan_id": 16 })).await;
    for (lan, user, sessions) in [("elm", "ann", 2), ("oak", "bob", 1), ("elm", "cid", 3), ("oak", "ann", 2)] {
        bench.begin_sessions(lan, user, sessions).await;
    }
    let who = |item: &Value| format!("{} {}", item["lan_name"].as_str().expect("a LAN"), item["user"].as_str().expect("a user"));
    for limit in [1, 2, 100] {
        let of_elm = bench.whole(&format!("/v1/sessions?lan=elm&limit={limit}"), who).await;
        assert_eq!(of_elm, ["elm ann", "elm ann", "elm cid", "elm cid", "elm cid"], "{limit} at a time");
        let of_oak = bench.whole(&format!("/v1/sessions?limit={limit}&lan=oak"), who).await;
        assert_eq!(of_oak, ["oak ann", "oak ann", "oak bob"], "{limit} at a time");
    }

    let _flows: Vec<_> = ["elm", "oak", "elm", "oak", "oak"].into_iter().map(|lan| bench.hold_port(lan)).collect();
    let lan = |item: &Value| item["lan_name"].as_str().expect("a LAN").to_owned();
    assert_eq!(bench.whole("/v1/flows?limit=2", lan).await, ["elm", "oak", "elm", "oak", "oak"]);
    assert_eq!(bench.whole("/v1/flows?lan=elm&limit=1", lan).await, ["elm"; 2]);
    assert_eq!(bench.whole("/v1/flows?lan=oak&limit=2", lan).await, ["oak"; 3]);

    let change = |item: &Value| format!("{} {}", item["action"].as_str().expect("a word"), item["subject"].as_str().expect("a word"));
    assert_eq!(bench.whole("/v1/audit?lan=oak&limit=2", change).await, ["lan.add oak", "user.add bob@oak", "user.add ann@oak"]);
    for list in ["sessions", "flows", "audit"] {
        assert_eq!(bench.whole(&format!("/v1/{list}?lan=yew"), change).await, [""; 0], "{list}");
        assert_eq!(bench.ask(Method::GET, &format!("/v1/{list}?lan=Yew!"), Value::Null).await.0, StatusCode::BAD_REQUEST, "{list}");
    }
}

#[tokio::test]
async fn what_no_operation_takes_is_refused_by_each() {
    let bench = Bench::new().await;
    for (method, path, operation) in operations() {
        let concrete = path.replace("{lan}", "elm").replace("{name}", "ann");
        let (status, answer) = bench.ask(method.clone(), &format!("{concrete}?color=red"), Value::Null).await;
        assert_eq!((status, &answer["error"]["code"]), (StatusCode::BAD_REQUEST, &json!("bad-request")), "{method} {path}");
        let message = answer["error"]["message"].as_str().expect("a reason");
        assert!(message.contains("`color`") && message.contains(&path), "{message}");
        for parameter in operation["parameters"].as_array().into_iter().flatten().filter(|parameter| parameter["in"] == "query") {
            let name = parameter["name"].as_str().expect("a name");
            assert!(message.contains(name), "{message} does not name {name}");
        }
    }
    for path in ["/v1/lans?lan=elm", "/v1/nodes?limit=1&lan=elm", "/v1/export?lan=elm", "/v1/lans/elm/users/ann?limit=1"] {
        assert_eq!(bench.ask(Method::GET, path, Value::Null).await.0, StatusCode::BAD_REQUEST, "{path}");
    }
    assert_eq!(bench.ask(Method::HEAD, "/v1/lans?lan=elm", Value::Null).await.0, StatusCode::BAD_REQUEST);
    let (_, answer) = bench.ask(Method::GET, "/v1/nowhere?color=red", Value::Null).await;
    assert_eq!(answer["error"]["code"], "no-such-path");
}

#[tokio::test]
async fn what_the_document_names_is_taken() {
    let bench = Bench::new().await;
    for (method, path, operation) in operations() {
        for parameter in operation["parameters"].as_array().into_iter().flatten().filter(|parameter| parameter["in"] == "query") {
            let query = match parameter["name"].as_str().expect("a name") {
                "limit" => "limit=1",
                "lan" => "lan=elm",
                // Other tests give the values that these take.
                "after" | "dry_run" => continue,
                name => panic!("{name} is tested nowhere"),
            };
            let (_, answer) = bench.ask(method.clone(), &format!("{path}?{query}"), Value::Null).await;
            // A store in a file has no nodes to list.
            assert_ne!(answer["error"]["code"], "bad-request", "{method} {path}?{query}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_lan_is_put_once_and_moved() {
    let bench = Bench::new().await;
    let put = async |body| bench.ask(Method::PUT, "/v1/lans/oak", body).await;
    let (status, lan) = put(json!({ "lan_id": 16 })).await;
    assert_eq!((status, &lan["data_port"]), (StatusCode::CREATED, &json!(10_016)));
    assert_eq!(put(json!({ "lan_id": 16 })).await, (StatusCode::OK, lan));
    assert_eq!(put(json!({ "data_port": 9000 })).await.1["data_port"], 9000);
    assert_eq!(put(json!({ "lan_id": 17 })).await.0, StatusCode::CONFLICT);
    assert_eq!(put(json!({ "data_port": 10_015 })).await.0, StatusCode::CONFLICT, "another LAN's");
}

#[tokio::test]
async fn a_lan_has_limits_of_its_own() {
    let bench = Bench::new().await;
    let limits = json!({ "quota_bytes": 5_000_000, "rate_down_bits_per_second": 20_000_000 });
    let (status, lan) = bench.ask(Method::PUT, "/v1/lans/elm/limits", limits.clone()).await;
    assert_eq!((status, &lan["quota_bytes"], &lan["used_percent"]), (StatusCode::OK, &json!(5_000_000), &json!(0)), "{lan}");
    assert_eq!(bench.ask(Method::PUT, "/v1/lans/elm/limits", limits).await.1, lan);
    assert_eq!(bench.ask(Method::GET, "/v1/lans/elm", Value::Null).await.1, lan);
    assert_eq!(bench.ask(Method::GET, "/v1/lans", Value::Null).await.1["items"], json!([lan]));
    let (_, audit) = bench.ask(Method::GET, "/v1/audit?after=1", Value::Null).await;
    assert_eq!(audit["items"].as_array().map(Vec::len), Some(1), "a write that changes nothing is not logged: {audit}");
    assert_eq!(bench.ask(Method::PUT, "/v1/lans/oak/limits", Value::Null).await.0, StatusCode::NOT_FOUND);
    let earning = bench.ask(Method::PUT, "/v1/lans/elm/limits", json!({ "quota_bytes": 1, "earn_percent": 50 })).await;
    assert_eq!(earning.0, StatusCode::BAD_REQUEST, "a user's quota earns: {}", earning.1);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_a_reason() {
    let bench = Bench::new().await;
    bench.ask(Method::POST, "/v1/lans/elm/users/ann/invites", Value::Null).await;
    let bodies = [
        json!({ "quota_bytes": 0 }),
        json!({ "period": "7d" }),
        json!({ "quota_bytes": 1, "period": "week" }),
        json!({ "quota_bytes": 1, "time_zone": "Middle/Earth" }),
        json!({ "max_flows": 0 }),
        json!({ "earn_percent": 50 }),
        json!({ "quota_bytes": 1, "earn_percent": 101 }),
        json!({ "quota_bytes": 1, "earn_at_most_bytes": 1 }),
        json!({ "qouta_bytes": 1 }),
    ];
    for body in bodies {
        let (status, answer) = bench.ask(Method::PUT, "/v1/lans/elm/users/ann/limits", body.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {answer}");
        assert!(!answer["error"]["message"].as_str().expect("a reason").is_empty());
    }
    for path in [
        "/v1/users?limit=many",
        "/v1/users?color=red",
        "/v1/audit?after=never",
        "/v1/users?after=ann",
        "/v1/lans?after=elm",
        "/v1/flows?after=x",
        "/v1/sessions?after=15.ann",
        "/v1/lans/Elm!/users/ann",
    ] {
        let (status, answer) = bench.ask(Method::GET, path, Value::Null).await;
        assert_eq!((status, &answer["error"]["code"]), (StatusCode::BAD_REQUEST, &json!("bad-request")), "{path}");
    }
}

#[tokio::test]
async fn what_is_exported_is_imported_again() {
    let bench = Bench::new().await;
    bench.ask(Method::POST, "/v1/lans/elm/users/ann/invites", Value::Null).await;
    let request = Request::get("/v1/export").header(header::AUTHORIZATION, "Bearer secret").body(Body::empty());
    let response = bench.router.clone().oneshot(request.expect("a request")).await.expect("an answer");
    let document = response.into_body().collect().await.expect("a body").to_bytes();
    let document = String::from_utf8(document.to_vec()).expect("text");
    let import = async |query: &str, text: String| {
        let request = Request::post(format!("/v1/import{query}")).header(header::AUTHORIZATION, "Bearer secret").body(Body::from(text));
        let response = bench.router.clone().oneshot(request.expect("a request")).await.expect("an answer");
        let (status, bytes) = (response.status(), response.into_body().collect().await.expect("a body").to_bytes());
        (status, serde_json::from_slice::<Value>(&bytes).expect("JSON"))
    };
    assert_eq!(import("", document.clone()).await.1["changes"], json!([]));
    let other = document.replace("name = \"ann\"", "name = \"bob\"");
    let (status, imported) = import("?dry_run=true", other.clone()).await;
    assert_eq!((status, &imported["changes"][0]["subject"]), (StatusCode::OK, &json!("bob@elm")), "{imported}");
    assert_eq!(bench.ask(Method::GET, "/v1/lans/elm/users/bob", Value::Null).await.0, StatusCode::NOT_FOUND);
    assert_eq!(import("", other).await.0, StatusCode::OK);
    assert_eq!(bench.ask(Method::GET, "/v1/lans/elm/users/bob", Value::Null).await.0, StatusCode::OK);
    assert_eq!(import("", "version = 9".into()).await.0, StatusCode::BAD_REQUEST);
}

/// What the document has: method, path, and what it says of it.
fn operations() -> Vec<(Method, String, Value)> {
    let document: Value = serde_json::from_str(live::DOCUMENT).expect("JSON");
    let paths = document["paths"].as_object().expect("paths").clone();
    let of_path = |(path, methods): (String, Value)| {
        let methods = methods.as_object().expect("methods").clone();
        methods.into_iter().map(move |(method, operation)| (method.to_uppercase().parse().expect("a method"), path.clone(), operation))
    };
    paths.into_iter().flat_map(of_path).collect()
}

struct Bench {
    router: Router,
    api: Arc<Api>,
    _scratch: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let (registrar, scratch) = testing::registrar().await;
        let accounts = registrar.accounts().clone();
        let keeper = Keeper::new(accounts.clone(), None, None);
        let egress = Egress::new(Vec::new(), Vec::new());
        let (authority, _) = Authority::create("isp.example").expect("a key");
        let enroller = Enroller::new(accounts.clone(), authority);
        let (dedicated, policy) = (DedicatedPorts::default(), Policy::default());
        let sessions = Sessions::new(accounts, keeper.clone(), egress, enroller, dedicated, policy, IDLE_TIME);
        let (registrar, figures) = (registrar.acting_as("api"), Box::new(Figures::default));
        let api = Arc::new(Api { registrar, sessions, keeper, figures, token: "secret".into() });
        Self { router: router(api.clone()), api, _scratch: scratch }
    }

    /// The names in a list, read part by part.
    async fn names(&self, path: &str) -> Vec<String> {
        self.whole(path, |item| item["name"].as_str().expect("a name").to_owned()).await
    }

    /// What `of` makes of the items of a list, read part by part.
    async fn whole(&self, path: &str, of: impl Fn(&Value) -> String) -> Vec<String> {
        let (mut items, mut after) = (Vec::new(), String::new());
        loop {
            let (status, page) = self.ask(Method::GET, &format!("{path}{after}"), Value::Null).await;
            assert_eq!(status, StatusCode::OK, "{path}{after}: {page}");
            items.extend(page["items"].as_array().expect("a list").iter().map(&of));
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return items,
            }
        }
    }

    /// Begins so many sessions of a new user.
    async fn begin_sessions(&self, lan: &str, user: &str, sessions: u8) {
        let (lan, user) = (lan.parse().expect("a name"), user.parse().expect("a name"));
        let profile = self.api.registrar.add_user(&lan, &user, &Limits::default()).await.expect("a new user");
        let certificate = tls::certificate("certificate", &profile.certificate_pem).expect("PEM");
        let member = self.api.registrar.accounts().authorise(&certificate, Role::User).await.expect("a member");
        for number in 0..sessions {
            let request = JoinRequest {
                session: SessionId([number; 16]),
                secret: SessionSecret([8; 32]),
                path: PathId(0),
                incarnation: None,
                weight_down: LineWeight::default(),
                line: 1,
                relay: "pc".into(),
            };
            self.api.sessions.begin(&member, &request).await;
        }
    }

    /// A flow of a user of `lan`, for as long as what is given is there.
    fn hold_port(&self, lan: &str) -> DedicatedPort {
        let user = Identity { name: "ann".parse().expect("a name"), role: Role::User, lan: LanId(15) };
        let (lan_name, session) = (lan.parse().expect("a name"), SessionId([7; 16]));
        let holder = Holder { user, lan_name, session, flow: FlowId(1), origin: None };
        self.api.sessions.dedicated_ports().hold(holder, Protocol::Tcp, 20_001, None)
    }

    async fn ask(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder().method(method).uri(path).header(header::AUTHORIZATION, "Bearer secret").body(body);
        let response = self.router.clone().oneshot(request.expect("a request")).await.expect("an answer");
        let status = response.status();
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }
}
