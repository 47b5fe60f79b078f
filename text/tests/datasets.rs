//! Training files as a whole: their lines, however the bytes arrive, and what is reported of them.

use std::io::Cursor;

use proptest::prelude::*;
use text::dataset::{DatasetParser, DatasetReader, MAX_BLANK_LINES, MAX_LINE_BYTES, Row};
use text::formats::{LineErrorKind as Kind, RowFormat};
use text::report::{DatasetReport, FileRole};

const GOOD: &str =
    r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;
const USER: &str = r#"{"role":"user","content":"a"}"#;

/// A row with these messages, as JSON.
fn row(messages: &str) -> String {
    format!(r#"{{"messages":[{messages}]}}"#)
}

/// Everything a file gives, read in one chunk.
fn read(bytes: &[u8]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut parser = DatasetParser::new(RowFormat::Chat);
    parser.push(bytes, &mut |row| rows.push(row));
    parser.finish(&mut |row| rows.push(row));
    rows
}

fn lines(rows: &[Row]) -> Vec<Result<u64, (u64, u64, u64)>> {
    let place = |row: &Row| match row {
        Ok(example) => Ok(example.line),
        Err(error) => Err((error.line, error.example, error.byte_offset)),
    };
    rows.iter().map(place).collect()
}

#[test]
fn bom_crlf_blank_lines_and_a_missing_newline_do_no_harm() {
    let n = GOOD.len() as u64;
    let bad = "{\"foo\"";
    for (file, expected) in [
        (format!("{GOOD}\n{GOOD}\n"), vec![Ok(1), Ok(2)]),
        (format!("{GOOD}\n{GOOD}"), vec![Ok(1), Ok(2)]),
        (format!("{GOOD}\r\n{GOOD}\r\n"), vec![Ok(1), Ok(2)]),
        (format!("\u{feff}{GOOD}\n"), vec![Ok(1)]),
        (format!("\u{feff}\n{GOOD}\n"), vec![Ok(2)]),
        (format!("{GOOD}\n\n  \r\n\n"), vec![Ok(1)]),
        (format!("{GOOD}\n\n{GOOD}\n"), vec![Ok(1), Ok(3)]),
        (
            format!("{GOOD}\n{bad}\n{GOOD}\n"),
            vec![Ok(1), Err((2, 2, n + 1 + 5)), Ok(3)],
        ),
        (
            format!("\u{feff}{GOOD}\r\n\r\n{bad}"),
            vec![Ok(1), Err((3, 2, 3 + n + 2 + 2 + 5))],
        ),
        (String::new(), vec![]),
        ("\n\n\n".to_owned(), vec![]),
    ] {
        assert_eq!(lines(&read(file.as_bytes())), expected, "{file:?}");
    }
}

#[test]
fn a_good_row_knows_its_place_and_is_told_from_others_by_its_bytes() {
    let other = GOOD.replace("user", "system");
    assert_ne!(GOOD, other);
    let n = GOOD.len() as u64;
    let file = format!("\u{feff}{GOOD}\r\n\n{other}\n {GOOD}");
    let rows: Vec<_> = read(file.as_bytes())
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let places: Vec<(u64, u64)> = rows.iter().map(|row| (row.line, row.byte_offset)).collect();
    let third = 3 + n + 3;
    let expected = [(1, 3), (3, third), (4, third + other.len() as u64 + 1)];
    assert_eq!(places, expected);
    assert_eq!(rows[0].fingerprint, rows[2].fingerprint);
    assert_ne!(rows[0].fingerprint, rows[1].fingerprint);
}

#[test]
fn bytes_that_are_no_text_are_named_by_line_and_byte() {
    let mut file = format!("{GOOD}\n").into_bytes();
    let start = file.len() as u64;
    file.extend_from_slice(b"{\"messages\":[{\"role\":\"user\",\"content\":\"z\xe9ro\"}]}\n");
    file.extend_from_slice(b"{\"a\0\":1}\n");
    file.extend_from_slice(b"\xc0\xaf\n");
    let errors: Vec<_> = read(&file).into_iter().filter_map(Result::err).collect();
    let kinds: Vec<_> = errors
        .iter()
        .map(|error| (error.line, error.kind))
        .collect();
    assert_eq!(
        kinds,
        [
            (2, Kind::InvalidUtf8),
            (3, Kind::Nul),
            (4, Kind::InvalidUtf8)
        ]
    );
    assert_eq!(errors[0].byte_offset, start + 40);
    assert!(
        errors[0].reason.contains("byte 41 of the line"),
        "{}",
        errors[0].reason
    );
}

#[test]
fn a_line_that_is_too_long_is_refused_and_the_next_one_is_read() {
    let long = vec![b'x'; MAX_LINE_BYTES + 1];
    for n_chunk in [1 << 16, usize::MAX] {
        let file = [GOOD.as_bytes(), b"\n", &long, b"\n", b"oops\n", &long].concat();
        let mut rows = Vec::new();
        let mut parser = DatasetParser::new(RowFormat::Chat);
        for chunk in file.chunks(n_chunk.min(file.len())) {
            parser.push(chunk, &mut |row| rows.push(row));
        }
        parser.finish(&mut |row| rows.push(row));
        let (second, third) = (
            GOOD.len() as u64 + 1,
            (GOOD.len() + MAX_LINE_BYTES) as u64 + 3,
        );
        let expected = [
            Ok(1),
            Err((2, 2, second)),
            Err((3, 3, third)),
            Err((4, 4, third + 5)),
        ];
        assert_eq!(lines(&rows), expected);
    }
}

#[test]
fn millions_of_blank_lines_are_one_error() {
    let file = vec![b'\n'; 3 * MAX_BLANK_LINES as usize];
    let rows = read(&file);
    assert_eq!(
        lines(&rows),
        [Err((MAX_BLANK_LINES + 1, 0, MAX_BLANK_LINES))]
    );
}

fn report(file: &str, format: RowFormat) -> DatasetReport {
    let mut report = DatasetReport::default();
    for row in DatasetReader::new(Cursor::new(file), format) {
        report.add(&row.unwrap());
    }
    report
}

/// Twelve good lines, with line `number` (1-based) replaced.
fn file_with(number: usize, line: &str) -> String {
    let mut rows = [GOOD; 12];
    rows[number - 1] = line;
    rows.join("\n")
}

#[test]
fn a_job_fails_in_the_recorded_words() {
    let missing_role = row(&format!(r#"{USER},{{"content":"b"}}"#));
    let extra = GOOD.replacen('{', r#"{"weight":1.0,"#, 1);
    let cases = [
        (
            [GOOD; 7].join("\n"),
            "supervised",
            "invalid_n_examples",
            "Training file has 7 example(s), but must have at least 10 examples",
        ),
        (
            file_with(5, &missing_role),
            "supervised",
            "invalid_training_file",
            "The job failed due to an invalid training file. Invalid file format. Example 5, message 2 Discriminator 'role' is missing in value",
        ),
        (
            file_with(1, &extra),
            "supervised",
            "invalid_file_format",
            "The job failed due to a file format error in the training file. Invalid file format. Example 1 contains an extra \"weight\".",
        ),
        (
            [r#"{"foo": 1}"#; 12].join("\n"),
            "supervised",
            "invalid_training_file",
            "The job failed due to an invalid training file. Unexpected file format, expected either prompt/completion pairs or chat messages.",
        ),
        (
            [GOOD; 12].join("\n"),
            "dpo",
            "invalid_training_file",
            "The job failed due to an invalid training file. Invalid file format. Input file file-X is in the fine-tune-chat format, but the specified fine-tuning job is not using 'supervised' as the training method (provided method=dpo).",
        ),
        (
            [r#"{"foo": 1}"#; 1].join("\n"),
            "dpo",
            "invalid_training_file",
            "The job failed due to an invalid training file. Invalid file format. Example 1 is missing key 'input'.",
        ),
        (
            file_with(7, r#"{"messages": [oops"#),
            "supervised",
            "invalid_training_file",
            "The job failed due to an invalid training file. Invalid file format. Example 7 cannot be parsed. Error: line contains invalid json: expected value: column 15 (line 7)",
        ),
        (
            file_with(3, "oops").replace("\"b\"", "\"\""),
            "supervised",
            "invalid_training_file",
            "The job failed due to an invalid training file. Invalid file format. Example 1, message 2 is from the assistant but has neither content nor tool calls (11 more wrong; the job's events name the lines)",
        ),
        (
            r#"{"prompt":"a","completion":"b"}"#.to_owned(),
            "supervised",
            "invalid_training_file",
            "The job failed due to an invalid training file. Invalid file format. Input file file-X is in the fine-tune-completions format, but the model is fine-tuned on chat messages. The rows look like prompt_completion; set x_training.data.format to \"prompt_completion\".",
        ),
    ];
    for (file, method, code, message) in cases {
        let format = if method == "dpo" {
            RowFormat::Preference
        } else {
            RowFormat::Chat
        };
        let error = report(&file, format)
            .job_error(FileRole::Training, "file-X", method)
            .unwrap();
        assert_eq!(
            (error.code.as_str(), error.message.as_str()),
            (code, message)
        );
        assert_eq!(error.param.as_deref(), Some("training_file"));
    }
}

#[test]
fn of_one_method_the_loss_is_named() {
    let judged = GOOD.replacen('{', r#"{"label":true,"#, 1);
    let pair = r#"{"input":{"messages":[{"role":"user","content":"1"}]},"preferred_output":[{"role":"assistant","content":"un"}],"non_preferred_output":[{"role":"assistant","content":"one"}]}"#;
    for (row, expected, message) in [
        (
            judged.as_str(),
            RowFormat::Preference,
            "Input file file-X is in the fine-tune-unpaired-preference format, which needs method 'dpo' and x_loss_type 'kto'.",
        ),
        (
            pair,
            RowFormat::UnpairedPreference,
            "Input file file-X is in the fine-tune-preference format, which needs method 'dpo' and an x_loss_type other than 'kto'.",
        ),
    ] {
        let report = report(&[row; 12].join("\n"), expected);
        let error = report.job_error(FileRole::Training, "file-X", "dpo");
        let expected = format!(
            "The job failed due to an invalid training file. Invalid file format. {message}"
        );
        assert_eq!(error.unwrap().message, expected);
        let fix = report.errors[0].kind.suggested_fix();
        assert!(fix.starts_with("Train with method 'dpo' and "), "{fix}");
    }
}

#[test]
fn a_validation_file_fails_in_its_own_words_and_may_be_small() {
    assert_eq!(
        report(GOOD, RowFormat::Chat).job_error(FileRole::Validation, "f", "supervised"),
        None
    );
    let error = report("", RowFormat::Chat)
        .job_error(FileRole::Validation, "f", "supervised")
        .unwrap();
    assert_eq!(
        error.message,
        "Validation file has 0 example(s), but must have at least 1 examples"
    );
    let bad = report(&file_with(2, "x"), RowFormat::Chat);
    let error = bad
        .job_error(FileRole::Validation, "f", "supervised")
        .unwrap();
    assert_eq!(error.code, "invalid_validation_file");
    assert!(
        error
            .message
            .starts_with("The job failed due to an invalid validation file. ")
    );
    assert_eq!(error.param.as_deref(), Some("validation_file"));
    let events = bad.events(FileRole::Validation);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].data["line"], 2);
}

#[test]
fn the_first_hundred_bad_lines_are_named_and_the_rest_is_counted() {
    let file = ["oops"; 250].join("\n");
    let events = report(&file, RowFormat::Chat).events(FileRole::Training);
    assert_eq!(events.len(), 101);
    assert!(
        events
            .iter()
            .all(|event| event.level == domain::event::Level::Error)
    );
    assert!(
        events[99]
            .message
            .starts_with("Invalid training file: line 100 cannot be parsed")
    );
    assert_eq!(
        events[100].message,
        "250 lines of the training file are invalid; the first 100 are listed"
    );
    assert_eq!(report(GOOD, RowFormat::Chat).events(FileRole::Training), []);
}

/// Lines as files have them: good ones, bad ones, blank ones.
fn any_line() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => Just(GOOD.as_bytes().to_vec()),
        1 => Just(format!("{GOOD}\r").into_bytes()),
        1 => Just(r#"{"messages":[{"role":"user","content":"héllo 🦊"},{"role":"assistant","content":"数据"}]}"#.as_bytes().to_vec()),
        1 => Just(b"{\"foo\": 1}".to_vec()),
        1 => Just(b"   ".to_vec()),
        1 => Just(Vec::new()),
        2 => proptest::collection::vec(any::<u8>(), 0..40),
        1 => "[\\PC]{0,40}".prop_map(String::into_bytes),
    ]
}

proptest! {
    #[test]
    fn chunks_of_any_size_give_the_same_rows(
        parts in proptest::collection::vec(any_line(), 0..12),
        bom in any::<bool>(),
        sizes in proptest::collection::vec(1usize..50, 1..20),
    ) {
        let mut file = if bom { b"\xef\xbb\xbf".to_vec() } else { Vec::new() };
        file.extend(parts.join(&b'\n'));
        let mut rows = Vec::new();
        let mut parser = DatasetParser::new(RowFormat::Chat);
        let mut rest = file.as_slice();
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (chunk, after) = rest.split_at((*size).min(rest.len()));
            parser.push(chunk, &mut |row| rows.push(row));
            rest = after;
        }
        parser.finish(&mut |row| rows.push(row));
        prop_assert_eq!(&rows, &read(&file));
        let reader = DatasetReader::new(std::io::BufReader::with_capacity(sizes[0], Cursor::new(&file)), RowFormat::Chat);
        let read_rows: Vec<Row> = reader.map(Result::unwrap).collect();
        prop_assert_eq!(&rows, &read_rows);
    }
}
