//! What is masked, with templates of many shapes.

use domain::generation::{ChatMessage, Role};
use domain::x_training::{Data, DataFormat, Packing, Truncation};
use serde_json::json;
use text::chat_model::{ChatModel, Fitted, RenderError, TokenizedExample};
use text::formats::{ChatExample, RowFormat, TrainingExample, parse_row};

use Role::{Assistant, System, User};

use crate::{CHATML, chatml, folder, model, say};

fn example_of(line: &str) -> TrainingExample {
    parse_row(line, RowFormat::Chat).unwrap()
}

fn all_trained(messages: Vec<ChatMessage>) -> TrainingExample {
    let trained = messages.iter().map(|m| m.role == Role::Assistant).collect();
    TrainingExample::Chat(ChatExample {
        messages,
        trained,
        tools: vec![],
        parallel_tool_calls: None,
    })
}

/// The runs of labels, as text (special tokens spelled out).
fn labelled(model: &ChatModel, example: &TokenizedExample) -> Vec<String> {
    let mut runs: Vec<String> = Vec::new();
    let mut was_label = false;
    for (token, is_label) in example.tokens.iter().zip(&example.mask) {
        if *is_label {
            if !was_label {
                runs.push(String::new());
            }
            runs.last_mut()
                .unwrap()
                .push_str(&model.token_text(*token).0);
        }
        was_label = *is_label;
    }
    runs
}

fn check_labels(template: &str, messages: &[(Role, &str)], expected: &[&str]) {
    let model = model(template).unwrap();
    let messages = messages
        .iter()
        .map(|(role, content)| say(*role, content))
        .collect();
    let example = model.example(&all_trained(messages)).unwrap();
    assert_eq!(labelled(&model, &example), expected, "{template}");
}

#[test]
fn labels_are_what_the_model_would_write_in_every_family_of_templates() {
    // a default system prompt, as Qwen2.5 has
    let qwen = "{%- if messages[0]['role'] == 'system' %}\n    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n{%- else %}\n    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}\n{%- endif %}\n{%- for message in messages %}\n    {%- if (message.role == \"user\") or (message.role == \"system\" and not loop.first) or (message.role == \"assistant\") %}\n        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n";
    let turns = [
        (User, "hi"),
        (Assistant, "ho"),
        (User, "more"),
        (Assistant, "no"),
    ];
    for template in [CHATML, qwen] {
        check_labels(template, &turns, &["ho<|im_end|>", "no<|im_end|>"]);
        check_labels(
            template,
            &[(System, "s"), (User, "u"), (Assistant, " a ")],
            &[" a <|im_end|>"],
        );
    }
    // trims contents, as Llama 3 does
    let header = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|endoftext|>\n\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|endoftext|>\n\n' }}{% endif %}";
    check_labels(
        header,
        &[
            (User, "hi"),
            (Assistant, "\n\n  ho \n"),
            (User, "x"),
            (Assistant, "no"),
        ],
        &["ho<|im_end|>", "no<|im_end|>"],
    );
    // no generation prompt, and the system prompt goes before the last question, as in Mistral's: earlier turns are no
    // beginning of later ones, and yet what is shown before each answer is known
    let mistral = "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}{{- '<|endoftext|>' }}{%- for message in loop_messages %}{%- if message['role'] == 'user' %}{%- if loop.last or loop.index0 == loop_messages | length - 2 %}{{- '[INST] ' + (system + '\n\n' if system is defined else '') + message['content'] + '[/INST]' }}{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}{%- else %}{{- ' ' + message['content'] | trim + '<|im_end|>' }}{%- endif %}{%- endfor %}";
    check_labels(
        mistral,
        &[
            (System, "Be."),
            (User, "hi"),
            (Assistant, "ho"),
            (User, "x"),
            (Assistant, "no"),
        ],
        &[" ho<|im_end|>", " no<|im_end|>"],
    );
    // earlier answers are shortened, as Qwen3 does with thoughts: the label is what is written, not what was given
    let thinking = "{%- for m in messages %}{%- set c = m.content.split('</t>')[-1].lstrip('\\n') if (m.role == 'assistant' and not loop.last) else m.content %}{{- '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";
    check_labels(
        thinking,
        &[
            (User, "hi"),
            (Assistant, "<t>a</t>\nho"),
            (User, "x"),
            (Assistant, "<t>b</t>no"),
        ],
        &["ho<|im_end|>", "<t>b</t>no<|im_end|>"],
    );
}

#[test]
fn turns_are_found_in_templates_that_show_the_model_other_things_than_they_write() {
    let turns = [
        (User, "hi"),
        (Assistant, "<t>a</t>ho"),
        (User, "x"),
        (Assistant, "no"),
    ];
    // as DeepSeek R1: the prompt opens a thought that no earlier answer keeps
    let thought = "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content.split('</t>')[-1] + '<|im_end|>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<t>\n' }}{%- endif %}";
    check_labels(thought, &turns, &["ho<|im_end|>", "no<|im_end|>"]);
    // as Phi-3: the end of the text is written where no prompt is
    let ending = "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}{{- '<|im_start|>assistant\n' if add_generation_prompt else '<|endoftext|>' }}";
    check_labels(ending, &turns, &["<t>a</t>ho<|im_end|>", "no<|im_end|>"]);
    // an answer of spaces, and one that opens the conversation
    check_labels(
        CHATML,
        &[(User, "hi"), (Assistant, "  "), (User, "x")],
        &["  <|im_end|>"],
    );
    check_labels(
        ending,
        &[(Assistant, "ho"), (User, "x"), (Assistant, "no")],
        &["ho<|im_end|>", "no<|im_end|>"],
    );
}

#[test]
fn what_opens_the_next_message_may_be_what_ends_an_answer() {
    // as GLM-4; whitespace before the opening is the model's too
    let template = "{% for m in messages %}{{ '<|endoftext|>' if m.role == 'user' else '<|im_start|>' }}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}";
    let (_dir, model) = folder(template, json!({"eos_token_id": 509}));
    let model = model.unwrap();
    let opener = model.tokenizer().token_to_id("<|endoftext|>").unwrap();
    assert!(model.stop_token_ids().contains(&opener));
    let turns = [
        say(User, "hi"),
        say(Assistant, "ho \n"),
        say(User, "x"),
        say(Assistant, "no \n"),
    ];
    let example = model.example(&all_trained(turns.to_vec())).unwrap();
    assert_eq!(
        labelled(&model, &example),
        ["ho \n<|endoftext|>", "no \n<|endoftext|>"]
    );
    // nothing is added behind what somebody else says
    let example = model.example(&all_trained(turns[..3].to_vec())).unwrap();
    assert_eq!(
        example.tokens.last(),
        model.encode_text("x").unwrap().last()
    );
}

#[test]
fn a_template_without_end_of_turn_labels_the_answer_alone() {
    let plain = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    // "assistant: " is one prompt; the space before the answer belongs to it, and its token is the answer's
    let model = model(plain).unwrap();
    let example = model
        .example(&all_trained(vec![
            say(User, "hi"),
            say(Assistant, "ho"),
            say(User, "x"),
            say(Assistant, "no"),
        ]))
        .unwrap();
    let runs = labelled(&model, &example);
    let runs: Vec<&str> = runs.iter().map(|run| run.trim()).collect();
    assert_eq!(runs, ["ho", "no"]);
}

#[test]
fn weight_zero_is_not_learned() {
    let model = chatml();
    let line = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"wrong","weight":0},{"role":"user","content":"b"},{"role":"assistant","content":"right","weight":1}]}"#;
    let example = model.example(&example_of(line)).unwrap();
    assert_eq!(labelled(&model, &example), ["right<|im_end|>"]);
}

const CALL: &str = r#"{"messages":[{"role":"user","content":"Weather?"},{"role":"assistant","tool_calls":[{"id":"c","type":"function","function":{"name":"w","arguments":"{\"b\": 1, \"a\": \"é\"}"}}]},{"role":"tool","tool_call_id":"c","content":"20"},{"role":"assistant","content":"It is 20."}]}"#;

#[test]
fn tool_calls_are_learned_whether_the_template_knows_them_or_not() {
    let call = "<tool_call>\n{\"name\": \"w\", \"arguments\": {\"b\": 1, \"a\": \"é\"}}\n</tool_call><|im_end|>";
    let knows = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for c in m.tool_calls %}{{ '<tool_call>\n' + {'name': c.function.name, 'arguments': c.function.arguments} | tojson + '\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    for template in [CHATML, knows] {
        let model = model(template).unwrap();
        let example = model.example(&example_of(CALL)).unwrap();
        assert_eq!(
            labelled(&model, &example),
            [call, "It is 20.<|im_end|>"],
            "{template}"
        );
    }
}

#[test]
fn a_long_example_is_cut_or_left_out_as_asked_and_refused_if_nothing_is_left() {
    let config = json!({"eos_token_id": [511, 509], "max_position_embeddings": 24});
    let (_dir, model) = folder(CHATML, config);
    let model = model.unwrap();
    assert_eq!(model.context_length(), 24);
    assert_eq!(model.stop_token_ids(), [511, 509]);
    let data = |max_length, truncation| Data {
        format: DataFormat::Chat,
        max_length,
        truncation,
        packing: Packing::Greedy,
    };
    let long = all_trained(vec![say(User, "hi"), say(Assistant, &"ho ".repeat(50))]);
    let whole = model.example(&long).unwrap();
    let n = whole.tokens.len();
    let cut = |range: std::ops::Range<usize>| {
        Fitted::Cut(TokenizedExample {
            tokens: whole.tokens[range.clone()].to_vec(),
            mask: whole.mask[range].to_vec(),
        })
    };
    let fitted = |max_length, truncation| model.fit(&long, &data(max_length, truncation)).unwrap();
    assert_eq!(fitted(9999, Truncation::Right), cut(0..24));
    assert_eq!(fitted(20, Truncation::Right), cut(0..20));
    assert_eq!(fitted(20, Truncation::Left), cut(n - 20..n));
    assert_eq!(fitted(20, Truncation::Drop), Fitted::Dropped);
    let Fitted::Split(pieces) = fitted(20, Truncation::Split) else {
        panic!("it is longer than 20 tokens");
    };
    let learned = |example: &TokenizedExample| -> Vec<u32> {
        let labels = example.tokens.iter().zip(&example.mask).skip(1);
        labels
            .filter(|(_, is_label)| **is_label)
            .map(|(token, _)| *token)
            .collect()
    };
    assert!(pieces.len() > 2 && pieces.iter().all(|piece| piece.tokens.len() <= 20));
    assert_eq!(
        pieces.iter().flat_map(learned).collect::<Vec<_>>(),
        learned(&whole)
    );
    for pair in pieces.windows(2) {
        let (a, b) = (&pair[0], &pair[1]);
        assert_eq!((a.tokens.last(), b.mask[0]), (b.tokens.first(), false));
    }
    let refused = model.fit(&long, &data(20, Truncation::Error)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!("has {n} tokens, more than max_length 20")
    );
    let short = all_trained(vec![say(User, "hi"), say(Assistant, "ho")]);
    let fitted = model.fit(&short, &data(24, Truncation::Error)).unwrap();
    assert_eq!(fitted, Fitted::Whole(model.example(&short).unwrap()));
    let late = all_trained(vec![say(User, &"hi ".repeat(50)), say(Assistant, "ho")]);
    assert!(matches!(
        model.fit(&late, &data(24, Truncation::Right)),
        Err(RenderError::NothingLeft(24))
    ));
    assert!(matches!(
        model.fit(&late, &data(24, Truncation::Left)),
        Ok(Fitted::Cut(_))
    ));
    let split = model.fit(&late, &data(24, Truncation::Split)).unwrap();
    assert_eq!(
        split.examples().len(),
        1,
        "pieces without a label are left out"
    );
}
