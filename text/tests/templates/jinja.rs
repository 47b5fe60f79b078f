//! What templates write, and what they are refused.

use text::chat_model::LoadError;
use text::chat_template::{ChatTemplate, TemplateError};

use crate::model;

/// Renders one user message with a template that need not suit a chat model.
fn render(source: &str, content: &str) -> Result<String, TemplateError> {
    use text::chat_template::Conversation;
    let template = ChatTemplate::new(source, vec![("bos_token".into(), "<s>".into())], None)?;
    let messages = [minijinja::value::Value::from_pairs([
        ("role", "user"),
        ("content", content),
    ])];
    let tools = minijinja::value::Value::from(());
    let conversation = Conversation {
        messages: &messages,
        tools: &tools,
        add_generation_prompt: true,
    };
    template.render(&conversation, 64 << 10)
}

#[test]
fn templates_run_as_in_transformers() {
    for (source, expected) in [
        ("{{ bos_token }}|{{ eos_token }}|{{ nothing }}", "<s>||"),
        ("  {% if true %}\nx\n  {% endif %}\ny\n", "x\ny"),
        (
            "{{ none }} {{ true }} {{ false }} {{ 1.0 }}",
            "None True False 1.0",
        ),
        (
            "{{ tools is none }} {{ tools is defined }} {{ documents is none }}",
            "True True True",
        ),
        (
            "{{ {'b': '<é>', 'a': [1, true, none]} | tojson }}",
            r#"{"b": "<é>", "a": [1, true, null]}"#,
        ),
        (
            "{{ {'b': [1], 'c': {}} | tojson(indent=2) }}",
            "{\n  \"b\": [\n    1\n  ],\n  \"c\": {}\n}",
        ),
        (
            "{{ {'b': '<é😀>', 'a': {}} | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}",
            r#"{"a":{},"b":"<\u00e9\ud83d\ude00>"}"#,
        ),
        (
            "{{ [0.1, 1e-7, 1e16, 123456.0, 0.0001, 2] | tojson }} {{ 1e-7 }} {{ 1e16 | string }}",
            "[0.1, 1e-07, 1e+16, 123456.0, 0.0001, 2] 1e-07 1e+16",
        ),
        (
            "{{ {'a': [none, true, \"it's\", 'a\n\u{200d}'], 'b': 1e-7} }} {{ (1,) }} {{ [] ~ {} }}",
            r#"{'a': [None, True, "it's", 'a\n\u200d'], 'b': 1e-07} (1,) []{}"#,
        ),
        (
            "{{ none is iterable }} {{ 'a' is iterable }} {{ nothing is iterable }}",
            "False True True",
        ),
        (
            "{{ 'a\nb\n' | indent(2) }}|{{ 'a\n\nb' | indent('> ', first=true, blank=true) }}",
            "a\n  b\n|> a\n> \n> b",
        ),
        (
            "{{ messages | map(attribute='role') | list | tojson }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
            r#"["user"] 1"#,
        ),
        (
            "{%- for (a, b) in {'x': 'in if'}.items() if b != ' if ' recursive %}{{ a }}{{ b }}{% endfor %}{% for i in ([1] if true else [2]) if i %}{{ i }}{% endfor %}",
            "xin if1",
        ),
        (
            "{{ ([1] + [2]) | tojson }} {{ [1] + [2] }} {{ ([1] + [2]) | length }} {{ range(2) | list | tojson }}",
            "[1, 2] [1, 2] 2 [0, 1]",
        ),
        ("a\r\nb{{ 'c\r\nd' }}", "a\nbc\nd"),
        ("{% generation %}a{% endgeneration %}b", "ab"),
        (
            "x\n {%- generation -%} \n a \n {%- endgeneration %} b",
            "xa b",
        ),
        (
            "{% for m in messages %}{{ m.content.strip().upper() }}{% if m.tool_calls %}!{% endif %}{% endfor %}",
            "HI",
        ),
        (
            "{{ messages[-1]['content'] | trim }}{{ messages[::-1] | length }}",
            "hi1",
        ),
        ("{{ strftime_now is defined }}", "False"),
        (
            "{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "01",
        ),
        ("{{ '<b>' }}", "<b>"),
    ] {
        assert_eq!(render(source, " hi ").unwrap(), expected, "{source}");
    }
}

#[test]
fn what_python_refuses_is_refused() {
    for source in [
        "{% for i in none %}{% endfor %}",
        "{% for tool in tools %}{% endfor %}",
        "{{ nothing | tojson }}",
        "{{ [nothing] | tojson }}",
        "{{ messages | map(attribute='role') | tojson }}",
        "{{ nothing.at_all }}",
        "{{ 'a' + 1 }}",
        "{{ messages.append(1) }}",
    ] {
        assert!(
            matches!(render(source, "hi"), Err(TemplateError::Refused(_))),
            "{source}"
        );
    }
}

#[test]
fn the_date_is_what_was_given() {
    let now = chrono::NaiveDate::from_ymd_opt(2026, 3, 5)
        .unwrap()
        .and_hms_opt(6, 7, 8)
        .unwrap();
    let render = |source: &str| {
        let template = ChatTemplate::new(source, vec![], Some(now)).unwrap();
        let tools = minijinja::value::Value::from(());
        let conversation = text::chat_template::Conversation {
            messages: &[],
            tools: &tools,
            add_generation_prompt: false,
        };
        template.render(&conversation, 1000)
    };
    assert_eq!(
        render("{{ strftime_now('%d %b %Y') }}").unwrap(),
        "05 Mar 2026"
    );
    assert!(matches!(
        render("{{ strftime_now('%') }}"),
        Err(TemplateError::Refused(_))
    ));
}

#[test]
fn a_hostile_template_is_an_error_and_not_the_end_of_the_process() {
    let big = |operator: &str, n: usize| format!("{{{{ {}1 }}}}", operator.repeat(n));
    let sources = [
        big("-", 60_000),
        big("not ", 15_000),
        format!("{{{{ 1{} }}}}", "+1".repeat(30_000)),
        format!("{{{{ 1{} }}}}", "**1".repeat(20_000)),
        format!("{{{{ {}1{} }}}}", "(".repeat(30_000), ")".repeat(30_000)),
        format!("{{{{ {}1{} }}}}", "[".repeat(30_000), "]".repeat(30_000)),
        format!("{}{}", "{% if 1 %}".repeat(3_000), "{% endif %}".repeat(3_000)),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}".to_owned(),
        "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}".to_owned(),
        "{% set ns = namespace(x=['a']) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}".to_owned(),
        "{% set ns = namespace(x=['a']) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}".to_owned(),
        "{{ ('a' * 1000) | indent('b' * 1000000, true) | length }}".to_owned(),
        "{{ 'a' | indent(1000000000) }}".to_owned(),
        "{{ '%1000000000d' | format(1) }}".to_owned(),
        "{{ range(10) | batch(1000000000) | list }}".to_owned(),
        "{{ range(10) | slice(1000000000) | list }}".to_owned(),
        "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}".to_owned(),
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}".to_owned(),
        "{% for i in range(90000) %}x{% endfor %}".to_owned(),
        "{% include 'x' %}".to_owned(),
        "{% import 'x' as x %}".to_owned(),
        "{{ raise_exception('no') }}".to_owned(),
        "{{ debug() }}".to_owned(),
        "{{ a.b.c }}".to_owned(),
        "{% for %}".to_owned(),
        " ".repeat((64 << 10) + 1),
    ];
    for source in sources {
        // some of these are harmless once they compile; none may crash, hang or write without end
        let start = &source[..source.len().min(40)];
        match render(&source, "hi") {
            Ok(text) => assert!(text.len() <= 64 << 10, "{start}"),
            Err(error) => assert!(error.to_string().len() < 300, "{start}: {error}"),
        }
    }
    assert!(
        matches!(render("{{ raise_exception('no ' + messages[0].content) }}", "hi"), Err(TemplateError::Refused(text)) if text.starts_with("no hi"))
    );
    assert!(matches!(
        render("{% for i in range(90000) %}x{% endfor %}", ""),
        Err(TemplateError::TooLong(_))
    ));
    assert!(matches!(
        render(
            "{% for i in range(9000) %}{% for j in range(9000) %}{% endfor %}{% endfor %}",
            ""
        ),
        Err(TemplateError::TooSlow)
    ));
    assert!(matches!(
        render(&" ".repeat(70_000), ""),
        Err(TemplateError::TooLarge(70_000))
    ));
    assert!(matches!(
        model("{{ raise_exception('never') }}"),
        Err(LoadError::Probe(_))
    ));
}
