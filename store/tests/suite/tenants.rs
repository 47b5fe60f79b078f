//! Organisations, projects, their keys; base models, which belong to everyone.

use domain::api_key::{ApiKey, OwnerAccess};
use domain::audit::AuditKind;
use domain::base_model::{BaseModel, ManifestFile};
use domain::project::{Caps, Organization, Project};
use store::{AccessFilter, FoundKey, OwnedKey, StoreError};

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    the_default_project_is_made_once,
    projects_are_found_by_name_and_id,
    a_key_opens_its_project_until_it_is_revoked,
    an_archived_project_s_keys_are_told_from_unknown_ones,
    a_base_model_is_replaced_under_its_name,
    trained_tokens_are_summed_over_a_project,
);

async fn the_default_project_is_made_once(db: Db) {
    let makers: Vec<_> = (0..4)
        .map(|_| {
            let store = db.store.clone();
            let entropy = [sample::entropy(), sample::entropy()];
            tokio::spawn(async move { store.projects().ensure_default(entropy, at(1)).await })
        })
        .collect();
    let mut made = Vec::new();
    for maker in makers {
        made.push(maker.await.unwrap().unwrap());
    }
    assert!(made.iter().all(|project| *project == made[0]), "{made:?}");
    assert_eq!(
        (made[0].name.as_str(), made[0].organization_slug.as_str()),
        ("default", "luthier")
    );
    assert_eq!(db.store.projects().list().await.unwrap(), made[..1]);
}

async fn projects_are_found_by_name_and_id(db: Db) {
    let projects = db.store.projects();
    let organization = Organization {
        id: sample::organization_id(),
        name: "Acme".into(),
        slug: "acme".into(),
        created_at: at(0),
    };
    projects.insert_organization(&organization).await.unwrap();
    let project = Project {
        id: domain::id::ProjectId::mint(sample::entropy()),
        organization_id: organization.id.clone(),
        organization_slug: "acme".into(),
        name: "search".into(),
        created_at: at(1),
        archived_at: None,
        model_permissions: None,
        caps: Caps::default(),
    };
    projects.insert(&project).await.unwrap();
    let found = async |name| projects.find_by_name(&organization.id, name).await.unwrap();
    assert_eq!(
        projects.find(&project.id).await.unwrap(),
        Some(project.clone())
    );
    assert_eq!(found("search").await, Some(project.clone()));
    assert_eq!(found("Search").await, None);
    let same_name = Project {
        id: domain::id::ProjectId::mint(sample::entropy()),
        ..project.clone()
    };
    let homeless = Project {
        organization_id: sample::organization_id(),
        ..same_name.clone()
    };
    let homeless = Project {
        name: "homeless".into(),
        ..homeless
    };
    for bad in [same_name, homeless] {
        let refused = projects.insert(&bad).await;
        assert!(
            matches!(refused, Err(StoreError::Conflict(_))),
            "{refused:?}"
        );
    }
    // Another organisation calls its own what it likes.
    let elsewhere = Organization {
        id: sample::organization_id(),
        slug: "elsewhere".into(),
        ..organization.clone()
    };
    projects.insert_organization(&elsewhere).await.unwrap();
    let of_another = Project {
        id: domain::id::ProjectId::mint(sample::entropy()),
        organization_id: elsewhere.id.clone(),
        organization_slug: "elsewhere".into(),
        ..project.clone()
    };
    projects.insert(&of_another).await.unwrap();
    assert_eq!(found("search").await, Some(project));
    let in_another = projects.find_by_name(&elsewhere.id, "search").await;
    assert_eq!(in_another.unwrap(), Some(of_another));
    let acme = projects.find_organization("acme").await.unwrap();
    assert_eq!(acme, Some(organization.clone()));
    let all = projects.list_organizations().await.unwrap();
    let slugs: Vec<_> = all.iter().map(|found| found.slug.as_str()).collect();
    assert_eq!(slugs, ["acme", "elsewhere"]);
    let same_slug = Organization {
        id: sample::organization_id(),
        ..organization
    };
    let refused = projects.insert_organization(&same_slug).await;
    assert!(
        matches!(refused, Err(StoreError::Conflict(_))),
        "{refused:?}"
    );
}

async fn a_key_opens_its_project_until_it_is_revoked(db: Db) {
    let keys = db.store.api_keys();
    let project = sample::project(&db.store).await;
    let key = sample::api_key(&project.id);
    let entry = |kind| sample::entry(&project.organization_id, kind, key.id.as_str());
    let made = entry(AuditKind::ApiKeyCreated);
    keys.insert(&key, &made).await.unwrap();
    let twice = keys.insert(&key, &entry(AuditKind::ApiKeyCreated)).await;
    assert!(matches!(twice, Err(StoreError::Conflict(_))), "{twice:?}");
    let found = keys.find_by_hmac(&key.hmac).await.unwrap();
    let opened = FoundKey {
        key: key.clone(),
        project: project.clone(),
        access: OwnerAccess::Active,
    };
    assert_eq!(found, Some(opened));
    assert_eq!(keys.find_by_hmac("another").await.unwrap(), None);
    keys.touch(&key.id, at(5)).await.unwrap();
    let used = ApiKey {
        last_used_at: Some(at(5)),
        ..key.clone()
    };
    let page = sample::page();
    let listed = keys.list(&project.id, AccessFilter::Any, &page).await;
    let owned = OwnedKey {
        key: used,
        owner: None,
    };
    assert_eq!(listed.unwrap().items, [owned]);
    let among = [key.id.clone(), sample::api_key(&project.id).id];
    assert_eq!(keys.closed_among(&among).await, Ok(Vec::new()));
    for is_revoked in [true, false] {
        let entry = entry(AuditKind::ApiKeyDeleted);
        let revoked = keys.revoke(&project.id, &key.id, &entry).await;
        assert_eq!(revoked, Ok(is_revoked));
    }
    let closed = keys.closed_among(&among).await;
    assert_eq!(closed, Ok(vec![key.id.clone()]));
    assert_eq!(keys.find_by_hmac(&key.hmac).await.unwrap(), None);
    let listed = keys.list(&project.id, AccessFilter::Any, &page).await;
    assert_eq!(listed.unwrap().items, []);
}

async fn an_archived_project_s_keys_are_told_from_unknown_ones(db: Db) {
    let live = sample::project(&db.store).await;
    let archived = Project {
        id: domain::id::ProjectId::mint(sample::entropy()),
        name: "old".into(),
        archived_at: Some(at(3)),
        ..live
    };
    let projects = db.store.projects();
    projects.insert(&archived).await.unwrap();
    let key = sample::api_key(&archived.id);
    sample::insert_key(&db.store, &archived, &key).await;
    let found = db.store.api_keys().find_by_hmac(&key.hmac).await.unwrap();
    assert_eq!(found.unwrap().project, archived);
    // Its name is free again.
    let found = async || {
        let found = projects.find_by_name(&archived.organization_id, "old");
        found.await.unwrap()
    };
    assert_eq!(found().await, None);
    let again = Project {
        id: domain::id::ProjectId::mint(sample::entropy()),
        archived_at: None,
        ..archived.clone()
    };
    projects.insert(&again).await.unwrap();
    assert_eq!(found().await, Some(again));
}

async fn a_base_model_is_replaced_under_its_name(db: Db) {
    let models = db.store.base_models();
    let first = BaseModel {
        name: "tiny".into(),
        sha256: "aa".into(),
        object_prefix: domain::object_key::base_model("tiny", "aa"),
        files: vec![ManifestFile {
            name: "config.json".into(),
            size_bytes: 5,
            sha256: "bb".into(),
        }],
        architecture: "LlamaForCausalLM".into(),
        hidden_size: 64,
        n_parameters: 123_456,
        context_length: 128,
        created_at: at(0),
    };
    let second = BaseModel {
        sha256: "cc".into(),
        files: Vec::new(),
        architecture: "Qwen2ForCausalLM".into(),
        hidden_size: 65,
        n_parameters: 7,
        context_length: 8,
        created_at: at(1),
        object_prefix: "elsewhere".into(),
        ..first.clone()
    };
    let other = BaseModel {
        name: "a".into(),
        ..first.clone()
    };
    models.upsert(&first).await.unwrap();
    models.upsert(&other).await.unwrap();
    assert_eq!(models.find("tiny").await.unwrap(), Some(first));
    models.upsert(&second).await.unwrap();
    assert_eq!(models.list().await.unwrap(), [other, second]);
    assert_eq!(models.find("no").await.unwrap(), None);
    assert_eq!(models.find("a\0b").await.unwrap(), None);
}

async fn trained_tokens_are_summed_over_a_project(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    assert_eq!(
        store
            .usage()
            .total_trained_tokens(&project.id)
            .await
            .unwrap(),
        0
    );
    sample::succeeded_job(store, &project, at(0)).await;
    sample::succeeded_job(store, &project, at(0)).await;
    assert_eq!(
        store
            .usage()
            .total_trained_tokens(&project.id)
            .await
            .unwrap(),
        2 * 5_070
    );
}
