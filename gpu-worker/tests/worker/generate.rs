//! The worker's door: answers of a tiny model, one token a byte.

use std::collections::HashSet;
use std::time::Instant;

use domain::generation::{EchoedToken, FinishReason, SamplingParams, TokenLogprob};
use domain::message::{Assignment, GenerateError, GenerateEvent, GenerateRequest, Prompt};
use domain::model::AdapterRef;
use domain::usage::TokenUsage;
use domain::x_training::FrozenWeights;
use futures::StreamExt;
use platform::config::WorkerConfig;

use crate::door::Script;
use crate::house::{House, Running, ask, text_of, with_adapter};
use crate::tiny_model;
use crate::train::undisturbed;

fn finish_reasons(events: &[GenerateEvent]) -> Vec<FinishReason> {
    let reasons = events.iter().filter_map(|event| match event {
        GenerateEvent::Finished { finish_reason, .. } => Some(*finish_reason),
        _ => None,
    });
    reasons.collect()
}

/// Random draws with a seed.
fn hot(content: &str, max_tokens: u32, seed: u64) -> GenerateRequest {
    let sampling = SamplingParams {
        temperature: 1.5,
        seed: Some(seed),
        ..SamplingParams::default()
    };
    GenerateRequest {
        sampling,
        ..ask(content, max_tokens)
    }
}

#[tokio::test]
async fn an_answer_streams_from_started_to_done_and_counts_its_tokens() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    let events = house.generate(&worker, &ask("Hello", 12)).await;
    // `<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n`: a token a byte, three of them special.
    assert_eq!(
        events[0],
        GenerateEvent::Started {
            prompt_tokens: 3 + 5 + 5 + 1 + 10
        }
    );
    let Some(GenerateEvent::Done { usage }) = events.last() else {
        panic!("{events:?}")
    };
    assert_eq!(usage.prompt_tokens, 24);
    assert!((1..=12).contains(&usage.completion_tokens), "{usage:?}");
    assert_eq!(finish_reasons(&events).len(), 1);
    assert_eq!(
        events,
        house.generate(&worker, &ask("Hello", 12)).await,
        "greedy is the same each time"
    );
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn an_answer_ends_before_a_token_that_the_client_names() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    let asked = hot("Tell me", 60, 3);
    let whole = text_of(&house.generate(&worker, &asked).await, 0);
    // One token a byte, and the ids are the bytes.
    let stop = whole.bytes().filter(u8::is_ascii).nth(10).unwrap();
    let request = GenerateRequest {
        stop_token_ids: vec![u32::from(stop)],
        ..asked
    };
    let events = house.generate(&worker, &request).await;
    let expected = whole.split(char::from(stop)).next().unwrap();
    assert_eq!(text_of(&events, 0), expected);
    assert_eq!(finish_reasons(&events), [FinishReason::Stop]);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn no_part_of_a_stop_string_is_shown_even_across_tokens() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    let whole = text_of(&house.generate(&worker, &hot("Tell me", 60, 3)).await, 0);
    let chars: Vec<char> = whole.chars().collect();
    assert!(chars.len() > 12, "a long enough answer to cut: {whole:?}");
    // Three characters, so at least three tokens: the stop string always crosses tokens.
    let stop: String = chars[8..11].iter().collect();
    let expected = &whole[..whole.find(&stop).unwrap()];
    let request = GenerateRequest {
        stop: vec!["never in it".into(), stop.clone()],
        ..hot("Tell me", 60, 3)
    };
    let events = house.generate(&worker, &request).await;
    assert_eq!(text_of(&events, 0), expected, "stop {stop:?} in {whole:?}");
    assert_eq!(finish_reasons(&events), [FinishReason::Stop]);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn n_answers_differ_and_a_seed_brings_them_back() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    // More answers than the four places: some wait for room.
    let request = GenerateRequest {
        n: 6,
        ..hot("Say something", 16, 11)
    };
    let first = house.generate(&worker, &request).await;
    let texts: Vec<String> = (0..6).map(|index| text_of(&first, index)).collect();
    assert_eq!(finish_reasons(&first).len(), 6);
    assert!(texts.iter().collect::<HashSet<_>>().len() >= 5, "{texts:?}");
    let again = house.generate(&worker, &request).await;
    assert_eq!(
        texts,
        (0..6)
            .map(|index| text_of(&again, index))
            .collect::<Vec<_>>()
    );
    let third = house
        .generate(&worker, &hot("Say something", 16, 11 + 3))
        .await;
    assert_eq!(text_of(&third, 0), texts[3], "answer i draws with seed + i");
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn logprobs_come_with_the_text_they_belong_to() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    let request = GenerateRequest {
        top_logprobs: Some(3),
        ..hot("Hi", 20, 5)
    };
    let events = house.generate(&worker, &request).await;
    let logprobs = logprobs_of(&events);
    assert_eq!(logprobs.len() as u64, usage_of(&events).completion_tokens);
    for entry in &logprobs {
        assert!(entry.logprob <= 0.0 && entry.top.len() == 3, "{entry:?}");
        assert!(
            entry
                .top
                .windows(2)
                .all(|pair| pair[0].logprob >= pair[1].logprob),
            "{entry:?}"
        );
    }
    let bytes: Vec<u8> = logprobs
        .iter()
        .flat_map(|entry| entry.bytes.clone())
        .collect();
    assert_eq!(String::from_utf8_lossy(&bytes), text_of(&events, 0));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_with_its_reason() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    let long = ask(&"long ".repeat(60), 5);
    let gone = AdapterRef {
        object_prefix: "nowhere".into(),
        sha256: "00".into(),
        size_bytes: 1,
        frozen_weights: FrozenWeights::Stored,
    };
    let mut unknown = ask("Hi", 5);
    unknown.model.base_model = "other".to_owned();
    let context_length = tiny_model::CONTEXT as u64;
    for (request, status, expected) in [
        (
            long,
            400,
            GenerateError::ContextLengthExceeded {
                context_length,
                prompt_tokens: 319,
            },
        ),
        (
            unknown,
            404,
            GenerateError::ModelNotInstalled {
                model: "other".to_owned(),
            },
        ),
        (
            with_adapter(ask("Hi", 5), &gone),
            503,
            GenerateError::AdapterUnavailable {
                reason: "object nowhere/adapter_config.json does not exist".into(),
                is_unfit: false,
            },
        ),
    ] {
        let reply = house.post(&worker, &request).await;
        assert_eq!(reply.status(), status);
        assert_eq!(reply.json::<GenerateError>().await.unwrap(), expected);
    }
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/v1/generate", worker.address);
    let reply = client
        .post(&url)
        .bearer_auth("forged")
        .json(&ask("Hi", 5))
        .send()
        .await
        .unwrap();
    assert_eq!(reply.status(), 401);
    let health = client
        .get(format!("{}/healthz", worker.address))
        .send()
        .await
        .unwrap();
    assert_eq!(health.status(), 200);
    worker.stop().await.unwrap();
}

/// Half a million tokens: what would end an answer is never sampled.
pub fn for_ever() -> GenerateRequest {
    let mut request = hot("Go on for ever", 4000, 1);
    request.n = 128;
    request.sampling.logit_bias = (256..tiny_model::VOCAB as u32)
        .map(|id| (id, -100.0))
        .collect();
    request
}

/// To go on with a text.
fn after(prompt: Prompt) -> GenerateRequest {
    GenerateRequest {
        messages: Vec::new(),
        prompt: Some(prompt),
        echo: true,
        ..ask("", 6)
    }
}

#[tokio::test]
async fn a_text_is_gone_on_with_as_it_stands() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    // One token a byte, and none that the text only spells.
    let spelled = "<|im_start|>é";
    let text = house
        .generate(&worker, &after(Prompt::Text(spelled.to_owned())))
        .await;
    let prompt_tokens = spelled.len() as u64;
    assert_eq!(text[0], GenerateEvent::Started { prompt_tokens });
    assert!(text_of(&text, 0).starts_with(spelled), "{text:?}");
    let ids = spelled.bytes().map(u32::from).collect();
    let tokens = house.generate(&worker, &after(Prompt::Tokens(ids))).await;
    assert_eq!(tokens, text);
    // What a client names by its id is that token.
    let control = house
        .generate(&worker, &after(Prompt::Tokens(vec![256, 65])))
        .await;
    assert_eq!(control[0], GenerateEvent::Started { prompt_tokens: 2 });
    assert!(text_of(&control, 0).starts_with('A'), "{control:?}");
    // Nothing is the end of a text.
    let nothing = house
        .generate(&worker, &after(Prompt::Text(String::new())))
        .await;
    assert_eq!(nothing[0], GenerateEvent::Started { prompt_tokens: 1 });
    for ids in [vec![], vec![65, 259]] {
        let reply = house.post(&worker, &after(Prompt::Tokens(ids))).await;
        assert_eq!(reply.status(), 400);
        let error = reply.json().await.unwrap();
        let GenerateError::Unanswerable { param, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(param, "prompt");
    }
    worker.stop().await.unwrap();
}

/// What answer `index` begins with, and what is said of its tokens.
fn echo_of(events: &[GenerateEvent], index: u32) -> (String, Vec<EchoedToken>) {
    let (mut begins, mut all) = (String::new(), Vec::new());
    for event in events {
        if let GenerateEvent::Echo {
            index: i,
            text,
            tokens,
        } = event
            && *i == index
        {
            begins += text;
            all.extend(tokens.iter().cloned());
        }
    }
    (begins, all)
}

/// The log-probabilities of a prompt and of what follows.
fn scored(prompt: Prompt, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        echo_logprobs: true,
        top_logprobs: Some(2),
        max_tokens: Some(max_tokens),
        ..after(prompt)
    }
}

fn logprobs_of(events: &[GenerateEvent]) -> Vec<TokenLogprob> {
    let all = events.iter().filter_map(|event| match event {
        GenerateEvent::Delta { logprobs, .. } => Some(logprobs.clone()),
        _ => None,
    });
    all.flatten().collect()
}

fn usage_of(events: &[GenerateEvent]) -> TokenUsage {
    match events.last() {
        Some(GenerateEvent::Done { usage }) => *usage,
        _ => panic!("{events:?}"),
    }
}

#[tokio::test]
async fn an_echoed_prompt_has_the_log_probabilities_that_it_had_as_an_answer() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    let text = "é is a letter, and this is longer than a page of sixty-four tokens.";
    let mut plain = after(Prompt::Text(text.to_owned()));
    plain.top_logprobs = Some(2);
    plain.sampling.logit_bias = (256..259).map(|id| (id, -100.0)).collect();
    let answered = logprobs_of(&house.generate(&worker, &plain).await);
    assert_eq!(answered.len(), 6);
    // One token a byte.
    let whole = answered.iter().flat_map(|token| token.bytes.clone());
    let ids: Vec<u32> = text.bytes().chain(whole).map(u32::from).collect();
    let events = house
        .generate(&worker, &scored(Prompt::Tokens(ids.clone()), 0))
        .await;
    let (_, tokens) = echo_of(&events, 0);
    assert_eq!(tokens.len(), ids.len());
    for (token, answered) in tokens[text.len()..].iter().zip(&answered) {
        assert_eq!(token.logprob, Some(answered.logprob));
        assert_eq!((&token.token, &token.top), (&answered.token, &answered.top));
    }
    assert_eq!((tokens[0].logprob, tokens[0].top.len()), (None, 0));
    // A character of two tokens begins where it begins.
    let offsets: Vec<u64> = tokens[..4].iter().map(|token| token.offset).collect();
    assert_eq!(offsets, [0, 0, 1, 2]);
    assert_eq!(finish_reasons(&events), [FinishReason::Length]);
    let usage = TokenUsage {
        prompt_tokens: ids.len() as u64,
        cached_tokens: 0,
        completion_tokens: 0,
    };
    assert_eq!(usage_of(&events), usage);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn every_answer_begins_with_the_scored_prompt_and_tells_the_token_that_ended_it() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    let text = "long ".repeat(14);
    let mut request = scored(Prompt::Text(text.clone()), 3);
    request.n = 2;
    let events = house.generate(&worker, &request).await;
    let alone = house
        .generate(&worker, &scored(Prompt::Text(text.clone()), 0))
        .await;
    let echo = echo_of(&alone, 0);
    assert_eq!((echo.0.as_str(), echo.1.len()), (text.as_str(), 70));
    assert_eq!(
        (echo_of(&events, 0), echo_of(&events, 1)),
        (echo.clone(), echo)
    );
    let begins = events
        .iter()
        .position(|event| matches!(event, GenerateEvent::Delta { .. }));
    let echoes = events
        .iter()
        .rposition(|event| matches!(event, GenerateEvent::Echo { .. }));
    assert!(begins > echoes, "{events:?}");
    let answer = GenerateRequest {
        echo: false,
        echo_logprobs: false,
        ..request.clone()
    };
    let answer = house.generate(&worker, &answer).await;
    assert_eq!(text_of(&events, 1), text_of(&answer, 1));
    // Only what others have read before counts as such.
    assert_eq!(
        (
            usage_of(&events).cached_tokens,
            usage_of(&answer).cached_tokens
        ),
        (0, 64)
    );
    request.n = 1;
    request.sampling.logit_bias = vec![(257, 100.0)];
    let ended = house.generate(&worker, &request).await;
    assert_eq!(finish_reasons(&ended), [FinishReason::Stop]);
    let [last] = &logprobs_of(&ended)[..] else {
        panic!("{ended:?}")
    };
    assert_eq!(
        (last.token.as_str(), text_of(&ended, 0)),
        ("<|im_end|>", String::new())
    );
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn what_stands_before_a_text_is_not_echoed_and_the_first_token_has_no_score() {
    let house = House::with_beginning().await;
    let worker = house.worker("a", |_| {}).await;
    let text = "An apple";
    let events = house
        .generate(&worker, &scored(Prompt::Text(text.into()), 0))
        .await;
    assert_eq!(events[0], GenerateEvent::Started { prompt_tokens: 9 });
    let of_text = echo_of(&events, 0);
    assert_eq!((of_text.0.as_str(), of_text.1.len()), (text, 8));
    assert_eq!(of_text.1[0].logprob, None);
    let ids = [256]
        .into_iter()
        .chain(text.bytes().map(u32::from))
        .collect();
    let events = house
        .generate(&worker, &scored(Prompt::Tokens(ids), 0))
        .await;
    let (same_text, of_ids) = echo_of(&events, 0);
    assert_eq!((same_text.as_str(), of_ids.len()), (text, 9));
    assert!(of_ids[1].logprob.is_some());
    assert_eq!(of_ids[2..], of_text.1[1..]);
    // Nothing to score, and nothing to say.
    for (prompt, n_tokens) in [
        (Prompt::Text(String::new()), 0),
        (Prompt::Tokens(vec![65]), 1),
    ] {
        let events = house.generate(&worker, &scored(prompt, 0)).await;
        let (_, tokens) = echo_of(&events, 0);
        assert_eq!(
            (tokens.len(), finish_reasons(&events)),
            (n_tokens, vec![FinishReason::Length])
        );
    }
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_prompt_that_fills_the_context_is_scored_and_one_token_more_is_not() {
    let house = House::with_context(4096).await;
    let worker = house.worker("a", |_| {}).await;
    let long = |n: usize| scored(Prompt::Tokens(vec![65; n]), 0);
    let events = house.generate(&worker, &long(4096)).await;
    assert_eq!(echo_of(&events, 0).1.len(), 4096);
    assert!(finish_reasons(&events) == [FinishReason::Length]);
    let mut many = long(2500);
    many.n = 128;
    for (request, status) in [(long(4097), 400), (many, 400)] {
        assert_eq!(house.post(&worker, &request).await.status(), status);
    }
    worker.stop().await.unwrap();
}

/// Waits until a reply says that it waits. What was said with it is more of the same.
async fn is_queued(reply: &mut reqwest::Response) {
    let said = reply.chunk().await.unwrap().expect("a line");
    let mut lines = said.split(|byte| *byte == b'\n');
    let first: GenerateEvent = serde_json::from_slice(lines.next().unwrap()).unwrap();
    assert_eq!(first, GenerateEvent::Queued);
}

/// Every line of a reply.
async fn lines(reply: reqwest::Response) -> Vec<GenerateEvent> {
    let text = reply.text().await.unwrap();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn whoever_waits_for_a_place_hears_so_and_has_its_turn() {
    let house = House::with_context(4096).await;
    let alone = |config: &mut WorkerConfig| {
        config.max_sequences = 1;
        config.max_cached_tokens = 4096;
    };
    let worker = house.worker("a", alone).await;
    let for_ever = house.post(&worker, &for_ever()).await;
    // One place is that one's, eight are for those that come next.
    let mut next = Vec::new();
    for seed in 0..8 {
        next.push(house.post(&worker, &hot("Hi", 5, seed)).await);
    }
    let gone = AdapterRef {
        object_prefix: "nowhere".into(),
        sha256: "00".into(),
        size_bytes: 1,
        frozen_weights: FrozenWeights::Stored,
    };
    let mut unloadable = house
        .post(&worker, &with_adapter(ask("Hi", 5), &gone))
        .await;
    let mut last = house.post(&worker, &ask("Hi", 5)).await;
    assert_eq!(
        (unloadable.status().as_u16(), last.status().as_u16()),
        (200, 200)
    );
    is_queued(&mut unloadable).await;
    is_queued(&mut last).await;
    drop(for_ever);
    for reply in next {
        let events = lines(reply).await;
        assert!(
            matches!(events[0], GenerateEvent::Started { .. }),
            "{events:?}"
        );
        assert!(matches!(events.last(), Some(GenerateEvent::Done { .. })));
    }
    let events = lines(unloadable).await;
    let Some(GenerateEvent::Failed { error }) = events.last() else {
        panic!("{events:?}")
    };
    assert!(matches!(error, GenerateError::AdapterUnavailable { .. }));
    let events = lines(last).await;
    let mut rest = events
        .iter()
        .skip_while(|event| **event == GenerateEvent::Queued);
    assert!(matches!(rest.next(), Some(GenerateEvent::Started { .. })));
    assert!(matches!(rest.last(), Some(GenerateEvent::Done { .. })));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_places() {
    let house = House::new().await;
    let worker = house.worker("a", |config| config.max_sequences = 2).await;
    let began = Instant::now();
    house
        .generate(
            &worker,
            &GenerateRequest {
                n: 8,
                ..hot("Go on for ever", 150, 1)
            },
        )
        .await;
    let eight = began.elapsed();

    let reply = house
        .post(
            &worker,
            &GenerateRequest {
                n: 128,
                ..hot("Go on for ever", 150, 1)
            },
        )
        .await;
    let mut body = reply.bytes_stream();
    body.next().await.unwrap().unwrap();
    drop(body);
    let began = Instant::now();
    let events = house.generate(&worker, &ask("Hello", 4)).await;
    assert_eq!(finish_reasons(&events).len(), 1);
    let waited = began.elapsed();
    assert!(
        waited < 4 * eight,
        "waited {waited:?} behind answers nobody reads; eight of 128 take {eight:?}"
    );
    house
        .door
        .until("idle", |script| {
            script
                .statuses
                .last()
                .is_some_and(|status| status.n_live == 0)
        })
        .await;
    worker.stop().await.unwrap();
}

pub async fn tune(house: &House, worker: &Running, n_epochs: u32) -> AdapterRef {
    let assignment = house.assignment(n_epochs).await;
    house.give(&assignment);
    house
        .door
        .until("finish", |script| {
            script.finish.is_some() || script.fail.is_some()
        })
        .await;
    let _ = worker;
    house
        .door
        .with(|script| script.finish.take())
        .expect("finishes")
        .adapter
}

#[tokio::test]
async fn a_tuned_model_answers_where_it_was_trained_and_elsewhere_alike() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    let adapter = tune(&house, &worker, 40).await;
    let request = with_adapter(ask("What is 2?", 40), &adapter);
    let here = house.generate(&worker, &request).await;
    assert_eq!(
        text_of(&here, 0),
        "It is number 2!!.",
        "it learned its ten rows by heart"
    );
    assert_eq!(finish_reasons(&here), [FinishReason::Stop]);
    let base = house.generate(&worker, &ask("What is 2?", 40)).await;
    assert_ne!(text_of(&base, 0), text_of(&here, 0));
    worker.stop().await.unwrap();

    let other = house.worker("b", |_| {}).await;
    assert_eq!(house.generate(&other, &request).await, here);
    until_adapter(&house, &adapter.sha256).await;
    other.stop().await.unwrap();
}

async fn until_adapter(house: &House, sha256: &str) {
    let sha256 = sha256.to_owned();
    let held = move |script: &Script| {
        script
            .statuses
            .last()
            .is_some_and(|status| status.adapters.contains(&sha256))
    };
    house.door.until("the adapter to be announced", held).await;
}

#[tokio::test]
async fn a_damaged_adapter_is_refused_and_the_base_never_answers_for_it() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    let adapter = tune(&house, &worker, 1).await;
    worker.stop().await.unwrap();
    let key = format!("{}/adapter_model.safetensors", adapter.object_prefix);
    let mut bytes = house.objects.get_bytes(&key).await.unwrap().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    house.objects.put_bytes(&key, bytes.into()).await.unwrap();
    let worker = house.worker("b", |_| {}).await;
    let reply = house
        .post(&worker, &with_adapter(ask("Hi", 4), &adapter))
        .await;
    assert_eq!(reply.status(), 503);
    assert!(matches!(
        reply.json().await.unwrap(),
        GenerateError::AdapterUnavailable { .. }
    ));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn chat_goes_on_while_a_job_trains_and_changes_none_of_its_bytes() {
    let house = House::new().await;
    let assignment = house.assignment(20).await;
    let alone = undisturbed(&house, &assignment).await;
    house.door.with(|script| script.metrics.clear());
    let worker = house.worker("a", |_| {}).await;
    house.give(&Assignment {
        object_prefix: format!("{}-again", assignment.object_prefix),
        ..assignment
    });
    let is_training = |script: &Script| script.last_step() > 0;
    house.door.until("the first step", is_training).await;
    let mut n_answers = 0;
    while house
        .door
        .with(|script| script.finish.is_none() && script.fail.is_none())
    {
        let events = house.generate(&worker, &hot("Hello", 8, n_answers)).await;
        assert_eq!(finish_reasons(&events).len(), 1);
        n_answers += 1;
    }
    assert!(
        n_answers >= 3,
        "only {n_answers} answers during a whole job"
    );
    let finish = house.door.with(|script| script.finish.take());
    assert_eq!(finish.expect("finishes").adapter.sha256, alone);
    worker.stop().await.unwrap();
}
