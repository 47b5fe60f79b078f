//! The OpenAPI document: what the routes say of themselves, completed by what surrounds them all.

use std::collections::HashMap;

use poem::http::HeaderValue;
use serde_json::{Map, Value};

use crate::error::Kind;
use crate::routes;

/// What every key may be told.
const OF_KEYS: [(Kind, &str); 1] = [(Kind::Forbidden, "The API key may not do this.")];
/// What every POST may be told that comes twice.
const OF_POSTS: [(Kind, &str); 1] = [(
    Kind::Conflict,
    "The same request is under way; try again after `Retry-After` seconds.",
)];
/// What every body may be told.
const OF_BODIES: [(Kind, &str); 3] = [
    (
        Kind::RequestTimeout,
        "The body did not come, or came too slowly.",
    ),
    (Kind::TooLarge, "The body is too large."),
    (Kind::UnsupportedMediaType, "The body is compressed."),
];

/// As JSON that ends with a line break.
pub fn text() -> String {
    let mut document = routes_alone();
    for (method, operation) in operations(&mut document).flat_map(|(_, methods)| methods) {
        complete(method, operation);
    }
    // Sorted, so that a change shows where it is.
    document.sort_all_objects();
    let text = serde_json::to_string_pretty(&document).expect("a value becomes JSON");
    text + "\n"
}

/// By the [`shape`] of each path, the methods that it knows, as the header `Allow` names them.
pub fn methods() -> HashMap<String, HeaderValue> {
    let mut document = routes_alone();
    let allowed = |(path, methods): (&String, &mut Map<String, Value>)| {
        let mut names: Vec<String> = methods.keys().map(|name| name.to_uppercase()).collect();
        names.sort_unstable();
        let value = HeaderValue::try_from(names.join(", "));
        (
            shape(path),
            value.expect("names of methods — a bug in methods"),
        )
    };
    operations(&mut document).map(allowed).collect()
}

/// A path without the names of its parameters, which the router and the document spell differently.
pub fn shape(path: &str) -> String {
    let is_parameter = |segment: &str| segment.starts_with([':', '{']);
    let segments = path.split('/');
    let segments = segments.map(|segment| if is_parameter(segment) { "*" } else { segment });
    segments.collect::<Vec<_>>().join("/")
}

fn routes_alone() -> Value {
    let spec = routes::service().spec();
    serde_json::from_str(&spec).expect("the document is JSON — a bug in poem-openapi")
}

fn operations(document: &mut Value) -> impl Iterator<Item = (&String, &mut Map<String, Value>)> {
    let paths = document["paths"].as_object_mut();
    let paths = paths.into_iter().flatten();
    paths.filter_map(|(path, methods)| Some((path, methods.as_object_mut()?)))
}

/// Adds how an operation reads an object in its query, and what it can answer without having been asked.
fn complete(method: &str, operation: &mut Value) {
    let parameters = operation.get_mut("parameters");
    for parameter in parameters
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if parameter["schema"]["type"] == "object" {
            // `metadata[key]=value`, which nothing else in the framework can say.
            parameter["style"] = "deepObject".into();
            parameter["explode"] = true.into();
        }
    }
    let has_key = operation.get("security").is_some();
    let has_body = operation.get("requestBody").is_some();
    let error = operation["responses"][Kind::BadRequest.code()].clone();
    let more = has_key.then_some(OF_KEYS.as_slice()).into_iter();
    for (kind, description) in more
        .chain((method == "post").then_some(OF_POSTS.as_slice()))
        .chain(has_body.then_some(OF_BODIES.as_slice()))
        .flatten()
    {
        let mut response = error.clone();
        response["description"] = (*description).into();
        operation["responses"][kind.code()] = response;
    }
}
