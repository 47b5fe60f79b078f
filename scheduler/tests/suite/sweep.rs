//! What is swept, and what must never be.

use bytes::Bytes;
use domain::chat_completion::{ChatCompletion, StoredChatCompletion};
use domain::file::Purpose;
use domain::id::{ChatCompletionId, KeyId, PartId, UploadId};
use domain::job::JobState;
use domain::message::Desired;
use domain::object_key;
use domain::time::Timestamp;
use domain::upload::{LIFETIME_S, Upload, UploadPart, UploadState};
use domain::usage::TokenUsage;
use store::{AddedPart, IdempotencyEntry, PartLimits};

use crate::house::House;

/// Objects are as old as the disk says, so our clock must start from the real one.
fn set_clock_to_real_time(house: &House) {
    let real = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let now = Timestamp::from_unix_s(real.as_secs() as i64);
    house
        .clock
        .store(now.0, std::sync::atomic::Ordering::SeqCst);
}

const DAY_S: i64 = 24 * 3_600;

async fn exists(house: &House, key: &str) -> bool {
    house.objects.size(key).await.unwrap().is_some()
}

#[tokio::test]
async fn objects_without_a_row_go_after_a_day_and_the_others_stay() {
    let house = House::new().await;
    set_clock_to_real_time(&house);
    let id = house.create_queued_job().await;
    let worker = house.worker("a");
    let a = worker.claim(None, 0).await.unwrap();
    worker.beat(&a, 1..=3).await.unwrap();
    worker.checkpoint(&a, 3).await.unwrap();
    let kept = object_key::checkpoint_state(&a.object_prefix, 3);
    let orphan = worker.put_checkpoint(&a, 4).await.state.object_key;
    let half_uploaded = format!("projects/{}/files/file-nobody", house.project.id);
    let not_ours = format!("projects/{}/notes.txt", house.project.id);
    for key in [&half_uploaded, &not_ours] {
        house
            .objects
            .put_bytes(key, Bytes::from_static(b"x"))
            .await
            .unwrap();
    }
    let dataset = a.training_file.object_key.clone();

    house.advance_s(DAY_S - 60);
    assert_eq!(
        house.scheduler.sweep_pass().await.unwrap(),
        0,
        "it may still get its row"
    );
    house.advance_s(120);
    // The two adapter files and the state of step 4, and the upload.
    assert_eq!(house.scheduler.sweep_pass().await.unwrap(), 4);
    assert!(!exists(&house, &orphan).await && !exists(&house, &half_uploaded).await);
    for key in [&kept, &not_ours, &dataset] {
        assert!(exists(&house, key).await, "{key}");
    }
    assert_eq!(house.scheduler.sweep_pass().await.unwrap(), 0);
    assert_eq!(house.state(&id).await, JobState::Running);
}

#[tokio::test]
async fn a_deleted_files_object_goes_once_no_job_needs_it() {
    let house = House::new().await;
    let id = house.create_queued_job().await;
    let file = house.job(&id).await.spec.training_file.clone();
    let files = house.store.files();
    let key = files.find_for_job(&file).await.unwrap().unwrap().object_key;
    files
        .delete(&house.project.id, &file, house.now())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(house.scheduler.sweep_pass().await.unwrap(), 0);
    assert!(exists(&house, &key).await, "a job still trains on it");
    let worker = house.worker("a");
    let a = worker.claim(None, 0).await.unwrap();
    assert_eq!(worker.train(&a).await, Ok(Desired::GoOn));
    assert_eq!(house.scheduler.sweep_pass().await.unwrap(), 1);
    assert!(!exists(&house, &key).await);
    assert_eq!(files.find_for_job(&file).await.unwrap(), None);
}

#[tokio::test]
async fn superseded_checkpoints_go_and_those_to_resume_from_or_talk_to_stay() {
    let house = House::new().await;
    let id = house.create_queued_job().await;
    let worker = house.worker("a");
    let a = worker.claim(None, 0).await.unwrap();
    for step in 1..=6 {
        worker.beat(&a, step..=step).await.unwrap();
        worker.checkpoint(&a, step).await.unwrap();
    }
    let checkpoints = house.store.checkpoints().all(&id).await.unwrap();
    let steps: Vec<u64> = checkpoints.iter().map(|c| c.step).collect();
    // Epochs end at 3 and 6; 5 and 6 are the last two.
    assert_eq!(steps, [3, 5, 6]);
    for step in 1..=6 {
        let key = object_key::checkpoint_state(&a.object_prefix, step);
        assert_eq!(
            exists(&house, &key).await,
            steps.contains(&step),
            "step {step}"
        );
    }
}

#[tokio::test]
async fn stored_answers_go_when_their_time_is_over() {
    let house = House::new().await;
    let stored = StoredChatCompletion {
        project_id: house.project.id.clone(),
        completion: ChatCompletion {
            id: ChatCompletionId::mint([7; 24]),
            created_at: house.now(),
            model: "m".to_owned(),
            choices: Vec::new(),
            usage: TokenUsage::default(),
        },
        metadata: None,
    };
    let completions = house.store.chat_completions();
    completions.insert(&stored, &[]).await.unwrap();
    house.advance_s(30 * DAY_S);
    house.scheduler.sweep_pass().await.unwrap();
    let (project, id) = (&house.project.id, &stored.completion.id);
    let found = completions.find(project, id).await.unwrap();
    assert_eq!(found, Some(stored.clone()));
    house.advance_s(1);
    house.scheduler.sweep_pass().await.unwrap();
    assert_eq!(completions.find(project, id).await.unwrap(), None);
}

/// A pending upload and the key of its one part.
async fn upload_with_part(house: &House) -> (Upload, String) {
    let upload = Upload {
        id: UploadId::mint(rand::random()),
        project_id: house.project.id.clone(),
        filename: "big.jsonl".to_owned(),
        purpose: Purpose::FineTune,
        size_bytes: 1,
        file_lifetime_s: None,
        created_at: house.now(),
        expires_at: house.now().plus_s(LIFETIME_S),
        state: UploadState::Pending,
    };
    let request = IdempotencyEntry {
        endpoint: "POST /uploads".to_owned(),
        key: None,
        api_key_id: KeyId::mint(rand::random()),
        fingerprint: String::new(),
        began_at: house.now(),
        repeats_since: None,
        expires_at: house.now(),
    };
    let uploads = house.store.uploads();
    uploads.insert(&upload, &request).await.unwrap();
    let id = PartId::mint(rand::random());
    let key = object_key::upload_part(&house.project.id, &upload.id, &id);
    let bytes = Bytes::from_static(b"x");
    house.objects.put_bytes(&key, bytes).await.unwrap();
    let part = UploadPart {
        id,
        upload_id: upload.id.clone(),
        size_bytes: 1,
        object_key: key.clone(),
        created_at: house.now(),
    };
    let limits = PartLimits {
        upload_bytes: 1,
        stored_bytes: u64::MAX,
    };
    let added = uploads.add_part(&house.project.id, &part, limits).await;
    assert_eq!(added, Ok(AddedPart::Added));
    (upload, key)
}

#[tokio::test]
async fn parts_go_with_their_upload_and_those_of_a_pending_one_stay() {
    let house = House::new().await;
    set_clock_to_real_time(&house);
    let (pending, pending_key) = upload_with_part(&house).await;
    let (cancelled, cancelled_key) = upload_with_part(&house).await;
    let uploads = house.store.uploads();
    uploads
        .cancel(&house.project.id, &cancelled.id)
        .await
        .unwrap();
    assert_eq!(house.scheduler.sweep_pass().await.unwrap(), 1);
    assert!(exists(&house, &pending_key).await && !exists(&house, &cancelled_key).await);
    // Whoever completes it at its last moment still reads it.
    house.advance_s(2 * LIFETIME_S - 1);
    assert_eq!(house.scheduler.sweep_pass().await.unwrap(), 0);
    house.advance_s(1);
    assert_eq!(house.scheduler.sweep_pass().await.unwrap(), 1);
    assert!(!exists(&house, &pending_key).await);
    let parts = uploads.parts(&house.project.id, &pending.id).await;
    assert_eq!(parts, Ok(Vec::new()));
    let found = uploads.find(&house.project.id, &pending.id).await;
    assert!(
        found.unwrap().is_some(),
        "a late call hears what became of it"
    );
    house.advance_s(7 * DAY_S);
    house.scheduler.sweep_pass().await.unwrap();
    assert_eq!(uploads.find(&house.project.id, &pending.id).await, Ok(None));
}

#[tokio::test]
async fn a_part_without_a_row_is_an_orphan() {
    let house = House::new().await;
    set_clock_to_real_time(&house);
    let (upload, _key) = upload_with_part(&house).await;
    let orphan = object_key::upload_part(&house.project.id, &upload.id, &PartId::mint([9; 24]));
    let bytes = Bytes::from_static(b"x");
    house.objects.put_bytes(&orphan, bytes).await.unwrap();
    house.scheduler.sweep_pass().await.unwrap();
    assert!(exists(&house, &orphan).await, "it may still get its row");
    house.advance_s(DAY_S + 60);
    house.scheduler.sweep_pass().await.unwrap();
    assert!(!exists(&house, &orphan).await);
}
