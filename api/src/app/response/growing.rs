//! A response as a worker's events make it grow, and what clients hear of that.

use domain::generation::{FinishReason, Role, TokenLogprob};
use domain::message::GenerateEvent;
use domain::response::{Item, ItemContent, ItemStatus, Response, ResponseStatus, TextPart};
use domain::time::Timestamp;

use crate::app::workers;
use crate::error::ApiError;

/// What happens to a response, in the order in which a client hears of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Begun(Response),
    /// Item `index` begins; a message begins with one empty part.
    ItemBegun {
        index: usize,
        item: Item,
    },
    Text {
        index: usize,
        id: String,
        delta: String,
        logprobs: Vec<TokenLogprob>,
    },
    Arguments {
        index: usize,
        id: String,
        delta: String,
    },
    ItemDone {
        index: usize,
        item: Item,
    },
    /// Completed or incomplete; nothing follows.
    Done(Response),
    /// Nothing follows.
    Failed(Response, ApiError),
}

/// The response so far.
pub struct Growing {
    response: Response,
    finish_reason: FinishReason,
    has_ended: bool,
}

impl Growing {
    pub fn new(response: Response) -> Self {
        Self {
            response,
            finish_reason: FinishReason::Stop,
            has_ended: false,
        }
    }

    /// What the event adds, at `now`; `None` once the response has ended.
    pub fn take(&mut self, event: GenerateEvent, now: Timestamp) -> Option<Vec<Step>> {
        if self.has_ended {
            return None;
        }
        let mut steps = Vec::new();
        if let Err(error) = self.grow(event, now, &mut steps) {
            self.has_ended = true;
            self.response.status = ResponseStatus::Failed {
                message: error.message.clone(),
            };
            steps.push(Step::Failed(self.response.clone(), error));
        }
        Some(steps)
    }

    fn grow(
        &mut self,
        event: GenerateEvent,
        now: Timestamp,
        steps: &mut Vec<Step>,
    ) -> Result<(), ApiError> {
        match event {
            // Only completions of texts begin with their prompt.
            GenerateEvent::Queued | GenerateEvent::Echo { .. } => {}
            GenerateEvent::Started { .. } => steps.push(Step::Begun(self.response.clone())),
            GenerateEvent::Delta { text, logprobs, .. } => self.say(text, logprobs, steps),
            GenerateEvent::ToolCall { id, name, .. } => {
                let call = ItemContent::FunctionCall {
                    call_id: id,
                    name,
                    arguments: String::new(),
                };
                self.begin(call, steps);
            }
            GenerateEvent::ToolArguments { arguments, .. } => self.pass(arguments, steps)?,
            GenerateEvent::Finished { finish_reason, .. } => {
                if self.response.output.is_empty() {
                    self.begin(empty_message(), steps);
                }
                self.finish_reason = finish_reason;
                let status = match self.is_cut() {
                    true => ItemStatus::Incomplete,
                    false => ItemStatus::Completed,
                };
                self.end_item(status, steps);
            }
            GenerateEvent::Done { usage } => {
                self.has_ended = true;
                self.response.usage = Some(usage);
                self.response.status = match self.is_cut() {
                    true => ResponseStatus::Incomplete,
                    false => ResponseStatus::Completed { at: now },
                };
                steps.push(Step::Done(self.response.clone()));
            }
            GenerateEvent::Failed { error } => return Err(workers::api_error(&error)),
        }
        Ok(())
    }

    /// More text: of the message that is open, or of a new one.
    fn say(&mut self, delta: String, logprobs: Vec<TokenLogprob>, steps: &mut Vec<Step>) {
        if delta.is_empty() && logprobs.is_empty() {
            return;
        }
        let is_open = |item: &Item| matches!(item.content, ItemContent::Message { .. });
        if !self.response.output.last().is_some_and(is_open) {
            self.begin(empty_message(), steps);
        }
        let index = self.response.output.len() - 1;
        let item = &mut self.response.output[index];
        if let ItemContent::Message { parts, .. } = &mut item.content {
            let part = &mut parts[0];
            part.text += &delta;
            part.logprobs.extend(logprobs.iter().cloned());
        }
        steps.push(Step::Text {
            index,
            id: item.id.clone(),
            delta,
            logprobs,
        });
    }

    /// More of the arguments of the call that is open. Errors: there is none.
    fn pass(&mut self, delta: String, steps: &mut Vec<Step>) -> Result<(), ApiError> {
        let n = self.response.output.len();
        match self.response.output.last_mut() {
            Some(Item {
                id,
                content: ItemContent::FunctionCall { arguments, .. },
                ..
            }) => {
                *arguments += &delta;
                let (index, id) = (n - 1, id.clone());
                steps.push(Step::Arguments { index, id, delta });
                Ok(())
            }
            _ => Err(ApiError::internal(
                "the worker sent arguments before their call",
            )),
        }
    }

    /// The item that was open is done, and another one begins.
    fn begin(&mut self, content: ItemContent, steps: &mut Vec<Step>) {
        self.end_item(ItemStatus::Completed, steps);
        let index = self.response.output.len();
        let item = Item::of_output(&self.response.id, index, content);
        self.response.output.push(item.clone());
        steps.push(Step::ItemBegun { index, item });
    }

    fn end_item(&mut self, status: ItemStatus, steps: &mut Vec<Step>) {
        let index = self.response.output.len();
        let Some(item) = self.response.output.last_mut() else {
            return;
        };
        item.status = status;
        let item = item.clone();
        steps.push(Step::ItemDone {
            index: index - 1,
            item,
        });
    }

    /// There was no room for more.
    fn is_cut(&self) -> bool {
        self.finish_reason == FinishReason::Length
    }
}

fn empty_message() -> ItemContent {
    ItemContent::Message {
        role: Role::Assistant,
        parts: vec![TextPart::default()],
    }
}

#[cfg(test)]
mod tests {
    use domain::id::ResponseId;
    use domain::response::ResponseRequest;
    use domain::usage::TokenUsage;
    use serde_json::json;

    use super::*;

    fn begun() -> Response {
        Response {
            id: ResponseId::mint([0; 24]),
            created_at: Timestamp(0),
            request: ResponseRequest {
                model: "m".to_owned(),
                instructions: None,
                previous_response_id: None,
                max_output_tokens: None,
                temperature: 1.0,
                top_p: 1.0,
                top_logprobs: 0,
                tools: Vec::new(),
                tool_choice: json!("auto"),
                parallel_tool_calls: true,
                text_format: json!({"type": "text"}),
                metadata: Vec::new(),
                store: false,
            },
            status: ResponseStatus::InProgress,
            output: Vec::new(),
            usage: None,
        }
    }

    fn says(text: &str) -> GenerateEvent {
        GenerateEvent::Delta {
            index: 0,
            text: text.to_owned(),
            logprobs: Vec::new(),
        }
    }

    fn calls() -> [GenerateEvent; 2] {
        let call = GenerateEvent::ToolCall {
            index: 0,
            call: 0,
            id: "call_1".to_owned(),
            name: "get".to_owned(),
        };
        let arguments = GenerateEvent::ToolArguments {
            index: 0,
            call: 0,
            arguments: "{}".to_owned(),
        };
        [call, arguments]
    }

    /// The steps by name and item, and the response at its end.
    fn grown(events: Vec<GenerateEvent>, reason: FinishReason) -> (String, Response) {
        let finished = GenerateEvent::Finished {
            index: 0,
            finish_reason: reason,
        };
        let done = GenerateEvent::Done {
            usage: TokenUsage::default(),
        };
        let mut growing = Growing::new(begun());
        let events = events.into_iter().chain([finished, done]);
        let mut names = Vec::new();
        let mut last = None;
        for step in events
            .filter_map(|event| growing.take(event, Timestamp(9)))
            .flatten()
        {
            names.push(match step {
                Step::Begun(_) => "begun".to_owned(),
                Step::ItemBegun { index, .. } => format!("+{index}"),
                Step::Text { index, .. } => format!("t{index}"),
                Step::Arguments { index, .. } => format!("a{index}"),
                Step::ItemDone { index, .. } => format!(".{index}"),
                Step::Done(response) | Step::Failed(response, _) => {
                    last = Some(response);
                    "end".to_owned()
                }
            });
        }
        (names.join(" "), last.unwrap())
    }

    #[test]
    fn one_item_is_open_at_a_time() {
        let [call, arguments] = calls();
        let events = vec![
            says("a"),
            says("b"),
            call.clone(),
            arguments.clone(),
            says(""),
            says("c"),
            call,
            arguments,
        ];
        let (steps, response) = grown(events, FinishReason::ToolCalls);
        assert_eq!(steps, "+0 t0 t0 .0 +1 a1 .1 +2 t2 .2 +3 a3 .3 end");
        assert_eq!(
            response.status,
            ResponseStatus::Completed { at: Timestamp(9) }
        );
        let is_done = |item: &Item| item.status == ItemStatus::Completed;
        assert!(response.output.iter().all(is_done));
    }

    #[test]
    fn an_empty_answer_is_an_empty_message() {
        let (steps, response) = grown(Vec::new(), FinishReason::Stop);
        assert_eq!(steps, "+0 .0 end");
        assert_eq!(response.output[0].content, empty_message());
    }

    #[test]
    fn what_was_cut_off_is_incomplete_and_what_came_before_it_is_not() {
        let [call, arguments] = calls();
        let (_, response) = grown(vec![says("a"), call, arguments], FinishReason::Length);
        assert_eq!(response.status, ResponseStatus::Incomplete);
        let statuses: Vec<_> = response.output.iter().map(|item| item.status).collect();
        assert_eq!(statuses, [ItemStatus::Completed, ItemStatus::Incomplete]);
    }

    #[test]
    fn arguments_before_their_call_fail_the_response_and_nothing_follows() {
        let [_, arguments] = calls();
        let (steps, response) = grown(vec![arguments, says("a")], FinishReason::Stop);
        assert_eq!(steps, "end");
        assert!(matches!(response.status, ResponseStatus::Failed { .. }));
    }
}
