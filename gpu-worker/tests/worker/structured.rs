//! Answers that are held to a form: JSON of a schema, and calls of functions. The model is random, so whatever fits, fits because it had to.

use std::collections::HashSet;

use domain::generation::{FinishReason, ResponseFormat, SamplingParams, ToolChoice};
use domain::message::{GenerateError, GenerateEvent, GenerateRequest};
use futures::StreamExt;
use serde_json::{Map, Value, json};

use crate::house::{House, ask, text_of};

/// Longer than any answer that the schemas below allow.
const CONTEXT: usize = 4096;
const N_SCHEMAS: usize = 500;

/// A random schema for every seed, of all that JSON Schema says about values.
struct Schemas(u64);

impl Schemas {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn schema(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 8 } else { 12 }) {
            0 => self.string(),
            1 => self.integer(),
            2 => json!({"type": "number", "minimum": -5, "maximum": 5}),
            3 => json!({"type": "boolean"}),
            4 => self.words(),
            5 => json!({"const": (["x", "y z", "\"quoted\"", "é"][self.below(4)])}),
            6 => json!({"type": ["integer", "null"], "minimum": 0, "maximum": 99}),
            7 => json!({"anyOf": [self.string(), self.integer()]}),
            8 | 9 => self.object(depth - 1),
            10 => self.array(depth - 1),
            _ => json!({"anyOf": [self.object(depth - 1), {"type": "null"}]}),
        }
    }

    fn string(&mut self) -> Value {
        match self.below(6) {
            0 => json!({"type": "string", "maxLength": 12}),
            1 => json!({"type": "string", "minLength": 3, "maxLength": 8}),
            2 => json!({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}$"}),
            3 => json!({"type": "string", "format": "uuid"}),
            4 => json!({"type": "string", "format": "uuid"}),
            _ => json!({"type": "string", "format": "ipv4"}),
        }
    }

    fn integer(&mut self) -> Value {
        let least = self.below(2000) as i64 - 1000;
        json!({"type": "integer", "minimum": least, "maximum": least + self.below(5000) as i64})
    }

    fn words(&mut self) -> Value {
        let all = ["red", "green", "dark blue", "größer", "a\nb", ""];
        let n = 1 + self.below(all.len());
        json!({"enum": all[..n]})
    }

    fn object(&mut self, depth: usize) -> Value {
        let names = ["id", "first name", "größe", "tags", "a\"b", "nested"];
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for name in names.iter().take(self.below(5)) {
            properties.insert((*name).to_owned(), self.schema(depth));
            if self.chance(60) {
                required.push(*name);
            }
        }
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    }

    fn array(&mut self, depth: usize) -> Value {
        let least = self.below(3);
        let mut array = json!({"type": "array", "items": self.schema(depth), "minItems": least, "maxItems": least + self.below(3)});
        if self.chance(20) {
            array["prefixItems"] = json!([self.integer(), self.string()]);
        }
        array
    }

    /// What an answer is: an object, now and then with definitions that refer to themselves.
    fn top(&mut self) -> Value {
        let mut top = self.object(3);
        if self.chance(20) {
            let node = json!({"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]});
            top["$defs"] = json!({"node": {"type": "object", "properties": {"value": self.integer(), "next": node},
                "required": ["value", "next"], "additionalProperties": false}});
            top["properties"]["list"] = json!({"$ref": "#/$defs/node"});
            top["required"].as_array_mut().unwrap().push("list".into());
        }
        top
    }
}

/// Random draws that like to come to an end.
fn wild(seed: u64) -> SamplingParams {
    let closing = b"\"}],";
    SamplingParams {
        temperature: 1.5,
        seed: Some(seed),
        logit_bias: closing.iter().map(|byte| (u32::from(*byte), 4.0)).collect(),
        ..SamplingParams::default()
    }
}

fn in_format(schema: Value, seed: u64) -> GenerateRequest {
    GenerateRequest {
        response_format: ResponseFormat::JsonSchema {
            schema,
            strict: true,
        },
        sampling: wild(seed),
        ..ask("Answer.", 3000)
    }
}

fn finish_reason(events: &[GenerateEvent], answer: u32) -> FinishReason {
    let reasons = events.iter().filter_map(|event| match event {
        GenerateEvent::Finished {
            index,
            finish_reason,
        } if *index == answer => Some(*finish_reason),
        _ => None,
    });
    let reasons: Vec<FinishReason> = reasons.collect();
    assert_eq!(reasons.len(), 1);
    reasons[0]
}

#[tokio::test]
async fn every_answer_to_five_hundred_schemas_is_json_that_its_schema_allows() {
    let house = House::with_context(CONTEXT).await;
    let worker = house
        .worker("a", |config| {
            config.max_sequences = 16;
            config.max_cached_tokens = 16 * CONTEXT;
        })
        .await;
    let mut seen = HashSet::new();
    let schemas = (0..).map(|seed| (seed, Schemas(seed).top()));
    let schemas = schemas.filter(|(_, schema)| seen.insert(schema.to_string()));
    let answers = futures::stream::iter(schemas.take(N_SCHEMAS))
        .map(|(seed, schema)| {
            let (house, worker) = (&house, &worker);
            async move {
                let events = house
                    .generate(worker, &in_format(schema.clone(), seed))
                    .await;
                (schema, events)
            }
        })
        .buffer_unordered(16);
    let answers: Vec<(Value, Vec<GenerateEvent>)> = answers.collect().await;
    assert_eq!(answers.len(), N_SCHEMAS);
    for (schema, events) in answers {
        let text = text_of(&events, 0);
        assert_eq!(
            finish_reason(&events, 0),
            FinishReason::Stop,
            "{schema}\n{text}"
        );
        let value: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let validator = jsonschema::options()
            .should_validate_formats(true)
            .build(&schema)
            .unwrap();
        if let Err(error) = validator.validate(&value) {
            panic!("{error}\n{schema}\n{text}");
        }
    }
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn an_object_is_all_that_json_object_asks_for() {
    let house = House::with_context(CONTEXT).await;
    let worker = house.worker("a", |_| {}).await;
    for seed in 0..5 {
        let request = GenerateRequest {
            response_format: ResponseFormat::JsonObject,
            sampling: wild(seed),
            n: 2,
            ..ask("Answer.", 3000)
        };
        let events = house.generate(&worker, &request).await;
        for index in 0..2 {
            let text = text_of(&events, index);
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert!(value.is_object(), "{text}");
        }
    }
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_schema_that_cannot_be_held_to_is_refused_by_its_path() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    let impossible = json!({"type": "object", "properties": {"a": {"type": "array", "contains": {"const": 1}, "uniqueItems": true}}});
    let with = |strict| GenerateRequest {
        response_format: ResponseFormat::JsonSchema {
            schema: impossible.clone(),
            strict,
        },
        ..ask("Answer.", 8)
    };
    let reply = house.post(&worker, &with(true)).await;
    assert_eq!(reply.status(), 400);
    let GenerateError::Unanswerable { param, reason } = reply.json().await.unwrap() else {
        panic!("another error")
    };
    assert_eq!(param, "response_format.json_schema.schema");
    assert!(
        reason.contains("contains") || reason.contains("uniqueItems"),
        "{reason}"
    );
    // Not strict: as far as it goes.
    assert_eq!(house.post(&worker, &with(false)).await.status(), 200);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_schema_of_more_properties_than_can_be_held_to_is_refused() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    let with = |n: usize, are_required: bool| {
        let names: Vec<String> = (0..n).map(|i| format!("p{i}")).collect();
        let properties: serde_json::Map<String, Value> = names
            .iter()
            .map(|name| (name.clone(), json!({"type": "null"})))
            .collect();
        let required = if are_required { names } else { Vec::new() };
        let many = json!({"type": "object", "properties": properties, "required": required});
        let schema = json!({"type": "object", "properties": {"a": many}, "required": ["a"]});
        GenerateRequest {
            max_tokens: Some(20),
            ..in_format(schema, 1)
        }
    };
    for (n, are_required) in [(400, false), (401, true)] {
        let events = house.generate(&worker, &with(n, are_required)).await;
        assert_eq!(finish_reason(&events, 0), FinishReason::Length, "{n}");
    }
    for (n, are_required) in [(401, false), (5000, true)] {
        let reply = house.post(&worker, &with(n, are_required)).await;
        assert_eq!(reply.status(), 400, "{n} properties");
    }
    worker.stop().await.unwrap();
}

fn tools() -> Vec<Value> {
    let function = |name: &str, properties: Value, required: &[&str]| {
        json!({"type": "function", "function": {"name": name, "parameters":
            {"type": "object", "properties": properties, "required": required, "additionalProperties": false}}})
    };
    let city = json!({"city": {"type": "string", "maxLength": 10}, "days": {"type": "integer", "minimum": 1, "maximum": 9}});
    vec![
        function("get_weather", city, &["city", "days"]),
        function("wait", json!({}), &[]),
    ]
}

/// The calls of an answer: ids, names and arguments.
fn calls_of(events: &[GenerateEvent], answer: u32) -> Vec<(String, String, String)> {
    let mut calls = Vec::new();
    for event in events {
        match event {
            GenerateEvent::ToolCall {
                index,
                call,
                id,
                name,
            } if *index == answer => {
                assert_eq!(*call as usize, calls.len());
                calls.push((id.clone(), name.clone(), String::new()));
            }
            GenerateEvent::ToolArguments {
                index,
                call,
                arguments,
            } if *index == answer => calls[*call as usize].2 += arguments,
            _ => {}
        }
    }
    calls
}

fn check_call((id, name, arguments): &(String, String, String)) {
    assert!(id.starts_with("call_") && id.len() == 29, "{id}");
    let arguments: Value = serde_json::from_str(arguments).unwrap();
    match name.as_str() {
        "get_weather" => {
            let n_chars = arguments["city"].as_str().unwrap().chars().count();
            let days = arguments["days"].as_i64().unwrap();
            assert!(n_chars <= 10 && (1..=9).contains(&days), "{arguments}");
        }
        "wait" => assert_eq!(arguments, json!({})),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_model_calls_what_it_must_and_several_at_once_where_it_may() {
    let house = House::with_context(CONTEXT).await;
    let worker = house.worker("a", |_| {}).await;
    let request = |choice: ToolChoice, parallel: bool, seed: u64| GenerateRequest {
        tools: tools(),
        tool_choice: choice,
        parallel_tool_calls: parallel,
        sampling: SamplingParams {
            // The end of a turn is likely, so is another call.
            logit_bias: vec![(257, 1.0), (u32::from(b'"'), 3.0)],
            ..wild(seed)
        },
        ..ask("Weather?", 3000)
    };
    let mut most = 0;
    for seed in 0..12 {
        let events = house
            .generate(&worker, &request(ToolChoice::Required, true, seed))
            .await;
        let calls = calls_of(&events, 0);
        calls.iter().for_each(check_call);
        assert_eq!(finish_reason(&events, 0), FinishReason::ToolCalls);
        assert_eq!(text_of(&events, 0), "");
        most = most.max(calls.len());

        let events = house
            .generate(&worker, &request(ToolChoice::Required, false, seed))
            .await;
        assert_eq!(calls_of(&events, 0).len(), 1);

        let named = ToolChoice::Named("wait".to_owned());
        let events = house.generate(&worker, &request(named, true, seed)).await;
        let calls = calls_of(&events, 0);
        assert_eq!((calls.len(), calls[0].1.as_str()), (1, "wait"));
        // The client knows that the function is called: that is no news.
        assert_eq!(finish_reason(&events, 0), FinishReason::Stop);
    }
    assert!(most > 1, "one call at most in every answer");
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_model_that_may_call_says_what_it_would_say_without() {
    let house = House::with_context(CONTEXT).await;
    let worker = house.worker("a", |_| {}).await;
    for seed in 0..4 {
        let request = |choice: ToolChoice| GenerateRequest {
            tools: tools(),
            tool_choice: choice,
            sampling: SamplingParams {
                temperature: 1.0,
                seed: Some(seed),
                ..SamplingParams::default()
            },
            top_logprobs: Some(2),
            stop: vec!["~~".to_owned()],
            ..ask("Weather?", 120)
        };
        let free = house.generate(&worker, &request(ToolChoice::None)).await;
        let auto = house.generate(&worker, &request(ToolChoice::Auto)).await;
        // A random model never opens a call; only where pieces are cut may differ.
        assert_eq!(text_of(&auto, 0), text_of(&free, 0));
        assert_eq!(finish_reason(&auto, 0), finish_reason(&free, 0));
        let logprobs = |events: &[GenerateEvent]| -> Vec<f32> {
            let all = events.iter().filter_map(|event| match event {
                GenerateEvent::Delta { logprobs, .. } => Some(logprobs),
                _ => None,
            });
            all.flatten().map(|logprob| logprob.logprob).collect()
        };
        assert_eq!(logprobs(&auto), logprobs(&free));
    }
    worker.stop().await.unwrap();
}
