//! A response, event by event: unlike a chat's, each has a name, and the last one says how it ended.

use bytes::Bytes;
use domain::response::{Item, ItemContent, ResponseStatus};
use futures::{Stream, StreamExt};

use crate::app::response::{Answering, Step};
use crate::wire::response_reply::ResponseEvent;

/// The response's events as bytes.
pub fn sse(answering: Answering) -> impl Stream<Item = Bytes> + Send + 'static {
    let mut numbers = 0..;
    answering.steps.map(move |step| {
        let mut out = Vec::new();
        for (event, number) in spelled(step).into_iter().zip(&mut numbers) {
            let event = ResponseEvent {
                sequence_number: number,
                ..event
            };
            push(&mut out, &event);
        }
        out.into()
    })
}

fn push(out: &mut Vec<u8>, event: &ResponseEvent) {
    out.extend_from_slice(format!("event: {}\n", event.r#type).as_bytes());
    super::push(out, event);
}

fn spelled(step: Step) -> Vec<ResponseEvent> {
    type E = ResponseEvent;
    match step {
        Step::Begun(response) => vec![
            E::of_response("response.created", response.clone()),
            E::of_response("response.in_progress", response),
        ],
        Step::ItemBegun { index, item } => begun(index, item),
        Step::Text {
            index,
            id,
            delta,
            logprobs,
        } => vec![E {
            delta: Some(delta),
            logprobs: Some(logprobs.into_iter().map(Into::into).collect()),
            ..E::of_text("response.output_text.delta", index, &id)
        }],
        Step::Arguments { index, id, delta } => vec![E {
            delta: Some(delta),
            ..E::within("response.function_call_arguments.delta", index, &id)
        }],
        Step::ItemDone { index, item } => done(index, item),
        Step::Done(response) => {
            let name = match response.status {
                ResponseStatus::Incomplete => "response.incomplete",
                _ => "response.completed",
            };
            vec![E::of_response(name, response)]
        }
        Step::Failed(response, error) => {
            super::note(&error);
            vec![E::of_response("response.failed", response)]
        }
    }
}

/// A message begins without parts, a call without arguments.
fn begun(index: usize, mut item: Item) -> Vec<ResponseEvent> {
    let parts = match &mut item.content {
        ItemContent::Message { parts, .. } => std::mem::take(parts),
        _ => Vec::new(),
    };
    let added = |part| {
        ResponseEvent::of_text("response.content_part.added", index, &item.id).with_part(part)
    };
    let parts: Vec<ResponseEvent> = parts.into_iter().map(added).collect();
    let item = ResponseEvent::of_item("response.output_item.added", index, item);
    [vec![item], parts].concat()
}

fn done(index: usize, item: Item) -> Vec<ResponseEvent> {
    let mut events = Vec::new();
    match &item.content {
        ItemContent::Message { parts, .. } => {
            for part in parts.clone() {
                let logprobs = part.logprobs.iter().cloned().map(Into::into).collect();
                events.push(ResponseEvent {
                    text: Some(part.text.clone()),
                    logprobs: Some(logprobs),
                    ..ResponseEvent::of_text("response.output_text.done", index, &item.id)
                });
                let done = ResponseEvent::of_text("response.content_part.done", index, &item.id);
                events.push(done.with_part(part));
            }
        }
        ItemContent::FunctionCall {
            name, arguments, ..
        } => events.push(ResponseEvent {
            name: Some(name.clone()),
            arguments: Some(arguments.clone()),
            ..ResponseEvent::within("response.function_call_arguments.done", index, &item.id)
        }),
        ItemContent::FunctionCallOutput { .. } => {}
    }
    events.push(ResponseEvent::of_item(
        "response.output_item.done",
        index,
        item,
    ));
    events
}
