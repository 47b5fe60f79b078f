//! Reports on jobs that are never made.

use domain::dry_run::{Answer, DryRun, Lengths, Repeat, Report};
use domain::hyperparameters::Hyperparameters;
use domain::id::DryRunId;
use domain::job::{JobSpec, JobState};
use domain::method::Method;
use domain::preference::{Preference, PreferenceLoss};
use serde_json::json;

use crate::house::{House, conversation, conversations, spec};

pub async fn report(house: &House, spec: JobSpec) -> Report {
    let dry_run = DryRun {
        id: DryRunId::mint(rand::random()),
        project_id: house.project.id.clone(),
        spec,
        created_at: house.now(),
        report: None,
    };
    assert_eq!(house.store.dry_runs().insert(&dry_run).await, Ok(true));
    assert_eq!(house.scheduler.validate_pass().await.unwrap(), 1);
    let dry_runs = house.store.dry_runs();
    let found = dry_runs.find(&house.project.id, &dry_run.id).await;
    found.unwrap().unwrap().report.expect("a report")
}

/// Of a job that learns from these rows by preference.
async fn report_by_preference(house: &House, rows: &str, preference: Preference) -> Report {
    let method = Method::Dpo {
        preference,
        hyperparameters: Hyperparameters::default(),
    };
    let spec = spec(house.upload(rows).await);
    report(house, JobSpec { method, ..spec }).await
}

/// A row of `question` with a better and a worse answer.
fn pair(question: &str, preferred: &str, non_preferred: &str) -> String {
    let answer = |content: &str| json!([{"role": "assistant", "content": content}]);
    let row = json!({
        "input": {"messages": [{"role": "user", "content": question}]},
        "preferred_output": answer(preferred), "non_preferred_output": answer(non_preferred),
    });
    format!("{row}\n")
}

/// What a job of the same order becomes: its resolved hyperparameters and steps, or its error.
async fn validated(house: &House, spec: JobSpec) -> domain::job::Progress {
    let id = house.create(spec).await;
    house.scheduler.validate_pass().await.unwrap();
    house.job(&id).await.progress().clone()
}

#[tokio::test]
async fn a_report_says_what_the_job_then_is() {
    let house = House::new().await;
    let training_file = house.upload(&conversations(50)).await;
    let method = Method::Supervised {
        hyperparameters: Hyperparameters::default(),
    };
    let spec = JobSpec {
        method,
        ..spec(training_file)
    };
    let report = report(&house, spec.clone()).await;
    assert_eq!(
        (&report.error, &report.validation, &report.leaked),
        (&None, &None, &None)
    );
    let (plan, training) = (report.plan.unwrap(), report.training.unwrap());
    assert_eq!(
        (training.n_rows, training.n_examples, training.n_bad_rows),
        (50, 50, 0)
    );
    assert_eq!(plan.trained_tokens, 3 * training.n_tokens);
    let job = validated(&house, spec).await;
    assert_eq!(job.state, JobState::Queued);
    assert_eq!(job.hyperparameters, Some(plan.hyperparameters));
    assert_eq!(job.total_steps, Some(plan.total_steps));
    assert_eq!(house.store.jobs().n_active(&house.project.id).await, Ok(1));
}

#[tokio::test]
async fn a_report_names_every_bad_row_and_what_to_do() {
    let house = House::new().await;
    let mut rows: Vec<String> = conversations(12).lines().map(str::to_owned).collect();
    rows[4] = r#"{"messages": [{"role": "user", "content": "?"}, {"content": "!"}]}"#.to_owned();
    rows[8] = "{not json".to_owned();
    let text = rows.join("\n");
    let spec = spec(house.upload(&text).await);
    let report = report(&house, spec.clone()).await;
    assert_eq!(report.plan, None);
    assert_eq!(report.error, validated(&house, spec).await.error);
    let training = report.training.unwrap();
    assert_eq!(
        (training.n_rows, training.n_examples, training.n_bad_rows),
        (12, 10, 2)
    );
    let [role, json] = &training.bad_rows[..] else {
        panic!("{:?}", training.bad_rows);
    };
    assert_eq!((role.line, role.pointer.as_str()), (5, "/messages/1/role"));
    assert!(role.suggested_fix.contains("'assistant'"), "{role:?}");
    assert_eq!((json.line, json.pointer.as_str()), (9, ""));
    let start = text.find("{not json").unwrap() as u64;
    assert!((start..start + 9).contains(&json.byte_offset), "{json:?}");
    assert!(json.suggested_fix.contains("JSON library"), "{json:?}");
}

#[tokio::test]
async fn a_row_that_the_template_refuses_has_its_place_too() {
    let house = House::new().await;
    let template = "{% for m in messages %}{% if 'forbidden' in m.content %}\
         {{ raise_exception('this word is not for me') }}{% endif %}\
         <|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    house.install("picky", Some(template)).await;
    let good = conversations(11);
    let file = house
        .upload(&(good.clone() + &conversation("forbidden")))
        .await;
    let model = "picky".to_owned();
    let report = report(
        &house,
        JobSpec {
            model,
            ..spec(file)
        },
    )
    .await;
    let row = &report.training.unwrap().bad_rows[0];
    assert_eq!((row.line, row.byte_offset), (12, good.len() as u64));
    assert!(row.suggested_fix.contains("chat template"), "{row:?}");
}

#[tokio::test]
async fn rows_that_repeat_and_rows_that_leak_are_found() {
    let house = House::new().await;
    let again = conversation("question 3");
    // The line break of Windows does not make it another row.
    let training = format!("{}{again}\r\n{again}\n", conversations(12));
    let validation = format!("{}\n{again}\n", conversation("a new one"));
    let training_file = house.upload(&training).await;
    let validation_file = Some(house.upload(&validation).await);
    let report = report(
        &house,
        JobSpec {
            validation_file,
            ..spec(training_file)
        },
    )
    .await;
    let duplicates = report.training.unwrap().duplicates;
    let repeat = |line| Repeat {
        line,
        first_line: 4,
    };
    assert_eq!((duplicates.n_rows, duplicates.is_complete), (2, true));
    assert_eq!(duplicates.rows, [repeat(13), repeat(14)]);
    let validation = report.validation.unwrap();
    assert_eq!((validation.n_rows, validation.duplicates.n_rows), (2, 0));
    let leaked = report.leaked.unwrap();
    assert_eq!((leaked.n_rows, leaked.rows), (1, vec![repeat(2)]));
}

#[tokio::test]
async fn what_is_learned_is_counted_by_class() {
    let house = House::new().await;
    let row = |i: usize| {
        let answer = if i < 9 { "yes" } else { "no, not at all" };
        json!({"messages": [{"role": "user", "content": format!("{i}?")}, {"role": "assistant", "content": answer}]})
    };
    let rows: String = (0..12).map(|i| format!("{}\n", row(i))).collect();
    let report = report(&house, spec(house.upload(&rows).await)).await;
    let labels = report.training.unwrap().labels;
    let answer = |text: &str, n_rows| Answer {
        text: text.to_owned(),
        n_rows,
    };
    let expected = vec![answer("yes", 9), answer("no, not at all", 3)];
    assert_eq!(labels.answers, Some(expected));
    let n_rows: Vec<u64> = labels.lengths.iter().map(|l: &Lengths| l.n_rows).collect();
    assert_eq!(n_rows, [9, 3]);
    assert!(labels.lengths[0].at_most < labels.lengths[1].at_most);
    let bound: u64 = labels.lengths.iter().map(|l| l.at_most * l.n_rows).sum();
    assert!(
        labels.n_tokens <= bound && labels.n_tokens > bound / 2,
        "{labels:?}"
    );
}

#[tokio::test]
async fn pairs_are_counted_with_both_answers() {
    let house = House::new().await;
    let rows: String = (0..12)
        .map(|i| pair(&format!("{i}?"), "Yes.", "No."))
        .collect();
    let report = report_by_preference(&house, &rows, Preference::default()).await;
    let (plan, training) = (report.plan.unwrap(), report.training.unwrap());
    assert_eq!(training.n_examples, 12);
    let n_epochs = u64::from(plan.hyperparameters.n_epochs);
    assert_eq!(plan.trained_tokens, n_epochs * training.n_tokens);
    assert_eq!(training.labels.answers.unwrap()[0].text, "Yes.");
}

#[tokio::test]
async fn judged_answers_are_counted_and_so_is_what_they_are_compared_with() {
    let house = House::new().await;
    let row = |i: usize| {
        let (question, answer) = match i {
            0 => ("? ".repeat(40), "Yes.".to_owned()),
            1 => ("?".to_owned(), "No. ".repeat(40)),
            _ => (format!("{i}?"), "Yes.".to_owned()),
        };
        let messages = json!([
            {"role": "user", "content": question}, {"role": "assistant", "content": answer},
        ]);
        json!({"messages": messages, "label": i != 1})
    };
    let rows: String = (0..12).map(|i| format!("{}\n", row(i))).collect();
    let preference = Preference {
        loss_type: PreferenceLoss::Kto,
        ..Preference::default()
    };
    let report = report_by_preference(&house, &rows, preference).await;
    let training = report.training.unwrap();
    assert_eq!((report.error, training.n_examples), (None, 12));
    assert_eq!(training.n_desirable, Some(11));
    // The long question may meet the long answer.
    let longest = training.longest;
    assert!(
        training.longest_together > longest + longest / 2,
        "{training:?}"
    );
    assert!(training.longest_together < 2 * longest, "{training:?}");
    assert_eq!(training.labels.answers.unwrap()[0].n_rows, 11);
}

#[tokio::test]
async fn both_answers_of_a_pair_share_a_pass_and_conversations_do_not() {
    let house = House::new().await;
    let counted = async |rows: &str| {
        let report = report_by_preference(&house, rows, Preference::default()).await;
        report.training.unwrap()
    };
    let (short, long) = (
        pair("?", "Yes.", "No."),
        pair("?", "Yes, all of it.", "No, nothing of it at all."),
    );
    let (of_short, of_long) = (counted(&short).await, counted(&long).await);
    for of_one in [&of_short, &of_long] {
        assert_eq!(of_one.longest_together, of_one.n_tokens);
        assert!(of_one.longest < of_one.longest_together, "{of_one:?}");
    }
    let of_both = counted(&(long + &short)).await;
    assert_eq!(of_both.n_tokens, of_long.n_tokens + of_short.n_tokens);
    assert_eq!(of_both.longest, of_long.longest);
    assert_eq!(of_both.longest_together, of_long.n_tokens);

    let training_file = house.upload(&conversations(12)).await;
    let alone = report(&house, spec(training_file)).await.training.unwrap();
    assert_eq!(alone.longest_together, alone.longest);
    assert!(alone.longest < alone.n_tokens);
}

#[tokio::test]
async fn a_file_that_is_gone_and_a_model_that_is_gone_are_reported() {
    let house = House::new().await;
    let file = house.upload(&conversations(12)).await;
    let model = "gone".to_owned();
    let no_model = JobSpec {
        model,
        ..spec(file.clone())
    };
    let error = report(&house, no_model).await.error.unwrap();
    assert_eq!(error.code, "model_not_available");
    let (files, project) = (house.store.files(), &house.project.id);
    files.delete(project, &file, house.now()).await.unwrap();
    house.scheduler.sweep_pass().await.unwrap();
    let error = report(&house, spec(file)).await.error.unwrap();
    assert_eq!(error.param.as_deref(), Some("training_file"));
    assert!(error.message.contains("was deleted"), "{}", error.message);
}
