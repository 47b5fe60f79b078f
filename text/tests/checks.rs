//! A file judged on several threads: the same rows in the same order, and the same words.

use std::fmt::Write;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::num::NonZeroUsize;
use std::path::Path;

use domain::x_training::{Data, DataFormat, Packing, Truncation};
use text::chat_model::ChatModel;
use text::check::{Found, See, Seen, check};
use text::dataset::{DatasetReader, Row, read_rows};
use text::formats::{Expected, LineErrorKind, RowFormat};
use text::report::DatasetReport;

fn model() -> ChatModel {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    ChatModel::load(&fixtures.join("chatml")).unwrap()
}

fn data(format: DataFormat, truncation: Truncation) -> Data {
    Data {
        format,
        max_length: 120,
        truncation,
        packing: Packing::BinPack,
    }
}

fn threads(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

/// Good rows of many lengths, bad ones, blank lines and no newline at the end: some megabyte.
fn mixed(n_lines: usize) -> String {
    let mut file = String::new();
    for i in 0..n_lines {
        let line = match i % 97 {
            13 => "{oops".to_owned(),
            29 => String::new(),
            31 => r#"{"messages":[{"role":"robot","content":"x"}]}"#.to_owned(),
            _ => format!(
                r#"{{"messages":[{{"role":"user","content":"{i} {}"}},{{"role":"assistant","content":"no"}}]}}"#,
                "so ".repeat(i % 50)
            ),
        };
        writeln!(file, "{line}").unwrap();
    }
    file + "{last"
}

#[test]
fn rows_keep_their_order_and_places_on_any_number_of_threads() {
    let file = mixed(9_000);
    let expected = Expected::from(RowFormat::Chat);
    let reader = DatasetReader::new(Cursor::new(&file), expected);
    let alone: Vec<Row> = reader.map(Result::unwrap).collect();
    for n in [1, 2, 5] {
        for capacity in [4_001, 1 << 22] {
            let reader = BufReader::with_capacity(capacity, file.as_bytes());
            let mut rows: Vec<Row> = Vec::new();
            read_rows(
                reader,
                expected,
                threads(n),
                |row| row,
                |row| rows.push(row),
            )
            .unwrap();
            assert!(rows == alone, "{n} threads, {capacity} bytes at a time");
        }
    }
}

/// The lines of the rows that are seen, and what of them is learned.
#[derive(Default, PartialEq, Debug)]
struct Lines(Vec<(u64, u64)>);

impl See for Lines {
    fn see(&mut self, seen: Seen) {
        self.0.push((seen.row.line, seen.n_labels));
    }
}

fn checked(file: &str, data: &Data, n_threads: usize) -> (Found, Lines) {
    let mut lines = Lines::default();
    let expected = Expected::of(None, data);
    let reader = Cursor::new(file);
    let found = check(
        reader,
        expected,
        &model(),
        data,
        threads(n_threads),
        &mut lines,
    );
    (found.unwrap(), lines)
}

#[test]
fn a_report_is_the_same_on_any_number_of_threads() {
    let file = mixed(3_000);
    for truncation in [Truncation::Right, Truncation::Split, Truncation::Error] {
        let data = data(DataFormat::Chat, truncation);
        let (found, lines) = checked(&file, &data, 1);
        assert!(found.n_rows > 2_900 && found.report.n_errors > 50);
        assert!(lines.0.is_sorted());
        assert_eq!(checked(&file, &data, 3), (found, lines));
    }
}

#[test]
fn what_cannot_be_rendered_is_named_where_the_row_says_it() {
    let long = "so ".repeat(200);
    for (format, row, pointer) in [
        (
            DataFormat::Alpaca,
            format!(r#"{{"instruction":"{long}","output":"a"}}"#),
            "",
        ),
        (
            DataFormat::ShareGpt,
            format!(r#"{{"conversation":[{{"human":"{long}","assistant":"a"}}]}}"#),
            "/conversation",
        ),
        (
            DataFormat::PromptCompletion,
            format!(r#"{{"prompt":"{long}","completion":"a"}}"#),
            "/completion",
        ),
        (
            DataFormat::Chat,
            format!(
                r#"{{"messages":[{{"role":"user","content":"{long}"}},{{"role":"assistant","content":"a"}}]}}"#
            ),
            "/messages",
        ),
    ] {
        let (found, _) = checked(&format!("\n{row}\n"), &data(format, Truncation::Error), 2);
        let DatasetReport {
            errors, n_examples, ..
        } = found.report;
        let [error] = &errors[..] else {
            panic!("{row}: {errors:?}");
        };
        assert_eq!(
            (error.line, error.example, error.byte_offset, n_examples),
            (2, 1, 1, 0)
        );
        assert_eq!(
            (error.pointer.as_str(), error.kind),
            (pointer, LineErrorKind::TooLong)
        );
    }
}

/// Some rows, then a failure.
struct Broken(Cursor<String>);

impl Read for Broken {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl BufRead for Broken {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.0.fill_buf()? {
            [] => Err(io::Error::other("the line is cut")),
            chunk => Ok(chunk),
        }
    }

    fn consume(&mut self, n_bytes: usize) {
        self.0.consume(n_bytes);
    }
}

#[test]
fn a_body_that_breaks_off_is_no_report() {
    let data = data(DataFormat::Chat, Truncation::Right);
    let reader = Broken(Cursor::new(mixed(2_000)));
    let expected = Expected::of(None, &data);
    let failed = check(reader, expected, &model(), &data, threads(2), &mut ());
    assert_eq!(failed.unwrap_err().to_string(), "the line is cut");
}
