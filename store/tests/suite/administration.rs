//! What administrators decide, and the log of it.

use domain::api_key::{ApiKey, KeyOwner, OwnerAccess};
use domain::audit::{Actor, ActorUser, AuditEntry, AuditKind, AuditProject};
use domain::checkpoint_permission::CheckpointPermission;
use domain::id::{CheckpointPermissionId, InviteId, KeyId, ProjectId};
use domain::invite::{Invite, InvitedProject};
use domain::page::{Order, PageRequest};
use domain::project::{Caps, Project};
use domain::project_user::{ProjectRole, ProjectUser};
use domain::service_account::{ServiceAccount, ServiceAccountRole};
use domain::user::{OrganizationRole, User};
use store::{
    AccessFilter, AuditFilter, AuditPage, AuditPlace, AuditVerdict, KeyOwnerShown, ProjectChange,
    ServiceAccountChange, Store, StoreError, WhichProjects,
};

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    the_log_is_chained_and_a_lost_entry_is_noticed,
    entries_are_filtered_and_paged_both_ways,
    changes_at_once_are_one_after_another_in_the_log,
    a_change_that_fails_leaves_no_entry,
    an_organization_keeps_an_owner,
    of_two_owners_that_leave_at_once_one_stays,
    a_key_opens_while_its_user_is_a_member,
    a_service_account_s_keys_follow_its_role_and_go_with_it,
    changes_of_one_service_account_at_once_are_both_kept,
    projects_are_listed_renamed_and_archived,
    caps_of_a_project_are_changed_apart,
    an_invitation_is_kept_until_it_is_deleted,
    a_permitted_model_is_used_and_not_owned,
);

async fn organization(store: &Store) -> (Project, impl Fn(AuditKind) -> AuditEntry + Clone) {
    let project = sample::project(store).await;
    let id = project.organization_id.clone();
    (project, move |kind| sample::entry(&id, kind, "thing"))
}

async fn verdict(store: &Store, project: &Project) -> AuditVerdict {
    store
        .audit()
        .verify(&project.organization_id)
        .await
        .unwrap()
}

async fn listed(store: &Store, project: &Project, filter: &AuditFilter) -> Vec<AuditEntry> {
    let page = AuditPage {
        limit: 100,
        place: AuditPlace::First,
    };
    let list = store.audit().list(&project.organization_id, filter, &page);
    list.await.unwrap().items
}

async fn the_log_is_chained_and_a_lost_entry_is_noticed(db: Db) {
    let store = &db.store;
    let (project, _) = organization(store).await;
    let empty = AuditVerdict::Whole {
        n_entries: 0,
        hash: String::new(),
    };
    assert_eq!(verdict(store, &project).await, empty);
    for _ in 0..5 {
        sample::user(store, &project, OrganizationRole::Owner).await;
    }
    let whole = verdict(store, &project).await;
    assert!(
        matches!(whole, AuditVerdict::Whole { n_entries: 5, .. }),
        "{whole:?}"
    );
    let mut other = db.other_program().await;
    for (change, undo, seq) in [
        // Changed, in the middle.
        (
            "UPDATE audit_log SET resource_id = resource_id || 'x' WHERE seq = 3",
            "UPDATE audit_log SET resource_id = substr(resource_id, 1, length(resource_id) - 1) WHERE seq = 3",
            3,
        ),
        (
            "UPDATE audit_log SET seq = 9 WHERE seq = 2",
            "UPDATE audit_log SET seq = 2 WHERE seq = 9",
            2,
        ),
        // Taken off the end.
        (
            "UPDATE audit_log SET seq = 9 WHERE seq = 5",
            "UPDATE audit_log SET seq = 5 WHERE seq = 9",
            5,
        ),
    ] {
        other.execute(change).await;
        assert_eq!(verdict(store, &project).await, AuditVerdict::Broken { seq });
        other.execute(undo).await;
        assert_eq!(verdict(store, &project).await, whole);
    }
    other.execute("DELETE FROM audit_log WHERE seq = 4").await;
    assert_eq!(
        verdict(store, &project).await,
        AuditVerdict::Broken { seq: 4 }
    );
}

async fn entries_are_filtered_and_paged_both_ways(db: Db) {
    let store = &db.store;
    let (project, entry) = organization(store).await;
    let ada = sample::user(store, &project, OrganizationRole::Owner).await;
    let mut wanted = entry(AuditKind::ProjectUpdated);
    wanted.effective_at = at(400);
    wanted.event.resource_id = "proj_x".into();
    wanted.project = Some(AuditProject {
        id: project.id.clone(),
        name: "old name".into(),
    });
    wanted.actor = Some(Actor {
        key_id: KeyId::parse("key_1").unwrap(),
        user: Some(ActorUser {
            id: ada.id.clone(),
            email: ada.email.clone(),
        }),
        ip: "::1".into(),
    });
    assert!(
        store
            .projects()
            .modify(&project.id, &renaming("new name"), &wanted)
            .await
            .unwrap()
    );
    sample::user(store, &project, OrganizationRole::Reader).await;
    let all = listed(store, &project, &AuditFilter::default()).await;
    assert_eq!((all.len(), &all[1]), (3, &wanted));
    let text = |text: &str| vec![text.to_owned(), "another".to_owned()];
    let filter = AuditFilter::default;
    for filter in [
        AuditFilter {
            event_types: text("project.updated"),
            ..filter()
        },
        AuditFilter {
            project_ids: text(project.id.as_str()),
            ..filter()
        },
        AuditFilter {
            actor_ids: text(ada.id.as_str()),
            ..filter()
        },
        AuditFilter {
            actor_ids: text("key_1"),
            ..filter()
        },
        AuditFilter {
            actor_emails: text(&ada.email),
            ..filter()
        },
        AuditFilter {
            resource_ids: text("proj_x"),
            ..filter()
        },
        AuditFilter {
            since: Some(at(400)),
            until: Some(at(401)),
            ..filter()
        },
    ] {
        let found = listed(store, &project, &filter).await;
        assert_eq!(found, std::slice::from_ref(&wanted), "{filter:?}");
    }
    let none = AuditFilter {
        until: Some(at(300)),
        ..filter()
    };
    assert_eq!(listed(store, &project, &none).await, []);
    let place = |limit, place| {
        let (store, filter) = (store.clone(), filter());
        let organization = project.organization_id.clone();
        async move {
            let page = AuditPage { limit, place };
            store.audit().list(&organization, &filter, &page).await
        }
    };
    let id = |i: usize| all[i].id.to_string();
    let after = place(1, AuditPlace::After(id(0))).await.unwrap();
    assert_eq!((after.items, after.has_more), (vec![all[1].clone()], true));
    let before = place(1, AuditPlace::Before(id(2))).await.unwrap();
    assert_eq!(
        (before.items, before.has_more),
        (vec![all[1].clone()], true)
    );
    let before = place(9, AuditPlace::Before(id(2))).await.unwrap();
    assert_eq!((before.items, before.has_more), (all[..2].to_vec(), false));
    let unknown = place(1, AuditPlace::After("no\0ne".into())).await;
    assert_eq!(unknown, Err(StoreError::UnknownAfter("no\0ne".into())));
}

async fn changes_at_once_are_one_after_another_in_the_log(db: Db) {
    let (project, _) = organization(&db.store).await;
    let makers: Vec<_> = (0..8)
        .map(|_| {
            let (store, project) = (db.store.clone(), project.clone());
            tokio::spawn(
                async move { sample::user(&store, &project, OrganizationRole::Owner).await },
            )
        })
        .collect();
    for maker in makers {
        maker.await.unwrap();
    }
    let whole = verdict(&db.store, &project).await;
    assert!(
        matches!(whole, AuditVerdict::Whole { n_entries: 8, .. }),
        "{whole:?}"
    );
}

async fn a_change_that_fails_leaves_no_entry(db: Db) {
    let store = &db.store;
    let (project, entry) = organization(store).await;
    let ada = sample::user(store, &project, OrganizationRole::Owner).await;
    let same_address = User {
        id: domain::id::UserId::mint(sample::entropy()),
        ..ada.clone()
    };
    let twice = store
        .users()
        .insert(&same_address, &entry(AuditKind::UserAdded))
        .await;
    assert!(matches!(twice, Err(StoreError::Conflict(_))), "{twice:?}");
    let nobody = domain::id::UserId::mint(sample::entropy());
    let deleted = store
        .users()
        .delete(&nobody, &entry(AuditKind::UserDeleted))
        .await;
    assert_eq!(deleted, Ok(false));
    let last = store
        .users()
        .delete(&ada.id, &entry(AuditKind::UserDeleted))
        .await;
    assert_eq!(last, Err(StoreError::LastOwner));
    assert_eq!(
        listed(store, &project, &AuditFilter::default()).await.len(),
        1
    );
}

async fn an_organization_keeps_an_owner(db: Db) {
    let store = &db.store;
    let (project, entry) = organization(store).await;
    let organization = &project.organization_id;
    let ada = sample::user(store, &project, OrganizationRole::Owner).await;
    let ben = sample::user(store, &project, OrganizationRole::Reader).await;
    let users = store.users();
    let set = |user: &User, role| {
        let (store, id, entry) = (
            store.clone(),
            user.id.clone(),
            entry(AuditKind::UserUpdated),
        );
        async move { store.users().set_role(&id, role, &entry).await }
    };
    assert_eq!(
        set(&ada, OrganizationRole::Reader).await,
        Err(StoreError::LastOwner)
    );
    assert_eq!(set(&ada, OrganizationRole::Owner).await, Ok(true));
    assert_eq!(set(&ben, OrganizationRole::Reader).await, Ok(true));
    assert_eq!(set(&ben, OrganizationRole::Owner).await, Ok(true));
    let deleted = entry(AuditKind::UserDeleted);
    assert_eq!(users.delete(&ada.id, &deleted).await, Ok(true));
    assert_eq!(users.find(organization, &ada.id).await, Ok(None));
    let ben = User {
        role: OrganizationRole::Owner,
        ..ben
    };
    let page = sample::page();
    let all = users.list(organization, &[], &page).await.unwrap().items;
    assert_eq!(all, std::slice::from_ref(&ben));
    let some = |email: &str| vec![email.to_owned()];
    let found = users.list(organization, &some(&ben.email), &page).await;
    assert_eq!(found.unwrap().items, std::slice::from_ref(&ben));
    let found = users
        .list(organization, &some("no@example.com"), &page)
        .await;
    assert_eq!(found.unwrap().items, []);
    assert_eq!(
        users.find_by_email(organization, &ben.email).await,
        Ok(Some(ben))
    );
}

async fn of_two_owners_that_leave_at_once_one_stays(db: Db) {
    let (project, entry) = organization(&db.store).await;
    let mut leaving = Vec::new();
    for _ in 0..2 {
        let user = sample::user(&db.store, &project, OrganizationRole::Owner).await;
        let (store, entry) = (db.store.clone(), entry(AuditKind::UserDeleted));
        leaving.push(async move { store.users().delete(&user.id, &entry).await });
    }
    let mut ended = futures::future::join_all(leaving).await;
    ended.sort_by_key(Result::is_err);
    assert_eq!(ended, [Ok(true), Err(StoreError::LastOwner)]);
}

async fn owned(store: &Store, project: &Project, key: &ApiKey) -> (OwnerAccess, Vec<AccessFilter>) {
    let found = store.api_keys().find_by_hmac(&key.hmac).await.unwrap();
    let shown = store
        .api_keys()
        .find(&project.id, &key.id)
        .await
        .unwrap()
        .unwrap();
    let access = found.unwrap().access;
    assert_eq!(shown.access(), access, "both ways to tell agree");
    let closed = store
        .api_keys()
        .closed_among(std::slice::from_ref(&key.id))
        .await;
    assert_eq!(closed.unwrap().is_empty(), access == OwnerAccess::Active);
    let mut listed = Vec::new();
    for filter in [
        AccessFilter::Any,
        AccessFilter::Active,
        AccessFilter::Inactive,
    ] {
        let page = sample::page();
        let keys = store
            .api_keys()
            .list(&project.id, filter, &page)
            .await
            .unwrap();
        if keys.items.iter().any(|owned| owned.key.id == key.id) {
            listed.push(filter);
        }
    }
    (access, listed)
}

async fn a_key_opens_while_its_user_is_a_member(db: Db) {
    let store = &db.store;
    let (project, entry) = organization(store).await;
    let user = sample::user(store, &project, OrganizationRole::Reader).await;
    let key = ApiKey {
        owner: KeyOwner::User(user.id.clone()),
        ..sample::api_key(&project.id)
    };
    sample::insert_key(store, &project, &key).await;
    let inactive = (
        OwnerAccess::Removed,
        vec![AccessFilter::Any, AccessFilter::Inactive],
    );
    let active = (
        OwnerAccess::Active,
        vec![AccessFilter::Any, AccessFilter::Active],
    );
    assert_eq!(owned(store, &project, &key).await, inactive);
    let members = store.project_users();
    let member = ProjectUser {
        project_id: project.id.clone(),
        user: user.clone(),
        role: ProjectRole::Member,
        added_at: at(1),
    };
    members
        .insert(&member, &entry(AuditKind::UserAdded))
        .await
        .unwrap();
    let twice = members.insert(&member, &entry(AuditKind::UserAdded)).await;
    assert!(matches!(twice, Err(StoreError::Conflict(_))), "{twice:?}");
    assert_eq!(owned(store, &project, &key).await, active);
    let updated = entry(AuditKind::UserUpdated);
    let set = members.set_role(&project.id, &user.id, ProjectRole::Owner, &updated);
    assert_eq!(set.await, Ok(true));
    let shown = store.api_keys().find(&project.id, &key.id).await.unwrap();
    let as_owner = KeyOwnerShown::User(user.clone(), Some(ProjectRole::Owner));
    assert_eq!(shown.unwrap().owner, Some(as_owner));
    let deleted = members
        .delete(&project.id, &user.id, &entry(AuditKind::UserDeleted))
        .await;
    assert_eq!(deleted, Ok(true));
    assert_eq!(owned(store, &project, &key).await, inactive);
    // With the user its keys go.
    let deleted = store
        .users()
        .delete(&user.id, &entry(AuditKind::UserDeleted))
        .await;
    assert_eq!(deleted, Ok(true));
    assert_eq!(store.api_keys().find_by_hmac(&key.hmac).await, Ok(None));
}

async fn a_service_account_s_keys_follow_its_role_and_go_with_it(db: Db) {
    let store = &db.store;
    let (project, entry) = organization(store).await;
    let account = sample::service_account(&project.id);
    let key = ApiKey {
        owner: KeyOwner::ServiceAccount(account.id.clone()),
        ..sample::api_key(&project.id)
    };
    let accounts = store.service_accounts();
    let created = entry(AuditKind::ServiceAccountCreated);
    accounts
        .insert(&account, Some(&key), &created)
        .await
        .unwrap();
    assert_eq!(owned(store, &project, &key).await.0, OwnerAccess::Active);
    let closed = ServiceAccount {
        name: "old bot".into(),
        role: ServiceAccountRole::None,
        ..account.clone()
    };
    let wanted = ServiceAccountChange {
        name: Some(closed.name.clone()),
        role: Some(closed.role),
    };
    let updated = entry(AuditKind::ServiceAccountUpdated);
    let modified = accounts.modify(&project.id, &account.id, wanted, &updated);
    assert_eq!(modified.await, Ok(Some(closed.clone())));
    assert_eq!(
        accounts.find(&project.id, &account.id).await,
        Ok(Some(closed))
    );
    let inactive = (
        OwnerAccess::NoRole,
        vec![AccessFilter::Any, AccessFilter::Inactive],
    );
    assert_eq!(owned(store, &project, &key).await, inactive);
    let deleted = entry(AuditKind::ServiceAccountDeleted);
    assert_eq!(
        accounts.delete(&project.id, &account.id, &deleted).await,
        Ok(true)
    );
    assert_eq!(store.api_keys().find_by_hmac(&key.hmac).await, Ok(None));
    assert_eq!(accounts.find(&project.id, &account.id).await, Ok(None));
}

fn renaming(name: &str) -> ProjectChange {
    ProjectChange {
        name: Some(name.to_owned()),
        ..ProjectChange::default()
    }
}

async fn caps_of_a_project_are_changed_apart(db: Db) {
    let store = &db.store;
    let (project, entry) = organization(store).await;
    let projects = store.projects();
    let key = sample::api_key(&project.id);
    sample::insert_key(store, &project, &key).await;
    let none = Caps::default();
    assert_eq!(project.caps, none);
    let change = async |change: ProjectChange| {
        let updated = entry(AuditKind::ProjectUpdated);
        let changed = projects.modify(&project.id, &change, &updated).await;
        assert_eq!(changed, Ok(true));
    };
    let limit = async |cents| {
        let updated = entry(AuditKind::ProjectUpdated);
        let set = projects.set_spend_limit(&project.id, cents, &updated).await;
        assert_eq!(set, Ok(true));
    };
    // A key that is looked up brings the caps that hold.
    let caps = async || {
        let found = store.api_keys().find_by_hmac(&key.hmac).await.unwrap();
        let of_key = found.unwrap().project.caps;
        let found = projects.find(&project.id).await.unwrap().unwrap();
        assert_eq!(found.caps, of_key);
        of_key
    };
    limit(Some(2_500)).await;
    change(ProjectChange {
        stored_bytes: Some(Some(1 << 40)),
        running_jobs: Some(Some(1)),
        ..ProjectChange::default()
    })
    .await;
    let all = Caps {
        spend_limit_cents: Some(2_500),
        stored_bytes: Some(1 << 40),
        unfinished_jobs: None,
        running_jobs: Some(1),
    };
    assert_eq!(caps().await, all);
    change(ProjectChange {
        name: Some("capped".into()),
        stored_bytes: Some(None),
        unfinished_jobs: Some(Some(7)),
        ..ProjectChange::default()
    })
    .await;
    limit(None).await;
    let left = Caps {
        unfinished_jobs: Some(7),
        running_jobs: Some(1),
        ..none
    };
    assert_eq!(caps().await, left);
    let too_many = ProjectChange {
        running_jobs: Some(Some(u64::MAX)),
        ..ProjectChange::default()
    };
    let updated = entry(AuditKind::ProjectUpdated);
    let refused = projects.modify(&project.id, &too_many, &updated).await;
    assert!(
        matches!(refused, Err(StoreError::Invalid(_))),
        "{refused:?}"
    );
    let filter = AuditFilter::default();
    let log = listed(store, &project, &filter).await;
    assert_eq!(log.len(), 5, "the key, and four changes");
}

async fn changes_of_one_service_account_at_once_are_both_kept(db: Db) {
    let store = &db.store;
    let (project, entry) = organization(store).await;
    let account = sample::service_account(&project.id);
    let created = entry(AuditKind::ServiceAccountCreated);
    let accounts = store.service_accounts();
    accounts.insert(&account, None, &created).await.unwrap();
    let renamed = ServiceAccountChange {
        name: Some("old bot".into()),
        role: None,
    };
    let promoted = ServiceAccountChange {
        name: None,
        role: Some(ServiceAccountRole::Owner),
    };
    let mut beside = db.other_program().await;
    beside.hold("service_accounts").await;
    let changes = [renamed, promoted].map(|wanted| {
        let (store, account) = (store.clone(), account.clone());
        let updated = entry(AuditKind::ServiceAccountUpdated);
        tokio::spawn(async move {
            let accounts = store.service_accounts();
            let modified = accounts.modify(&account.project_id, &account.id, wanted, &updated);
            modified.await.unwrap()
        })
    });
    beside.let_go().await;
    for change in changes {
        assert!(change.await.unwrap().is_some());
    }
    let both = ServiceAccount {
        name: "old bot".into(),
        role: ServiceAccountRole::Owner,
        ..account
    };
    let found = accounts.find(&project.id, &both.id).await;
    assert_eq!(found, Ok(Some(both)));
}

async fn projects_are_listed_renamed_and_archived(db: Db) {
    let store = &db.store;
    let (project, entry) = organization(store).await;
    let (projects, organization) = (store.projects(), &project.organization_id);
    let archived = entry(AuditKind::ProjectArchived);
    let among = [project.id.clone(), ProjectId::mint(sample::entropy())];
    assert_eq!(projects.archived_among(&among).await, Ok(Vec::new()));
    assert_eq!(projects.archive(&project.id, &archived).await, Ok(true));
    let found = projects.archived_among(&among).await;
    assert_eq!(found, Ok(vec![project.id.clone()]));
    let again = entry(AuditKind::ProjectArchived);
    assert_eq!(
        projects.archive(&project.id, &again).await,
        Ok(false),
        "once"
    );
    let renamed = entry(AuditKind::ProjectUpdated);
    let late = projects.modify(&project.id, &renaming("x"), &renamed).await;
    assert_eq!(late, Ok(false));
    let limited = entry(AuditKind::ProjectUpdated);
    let late = projects.set_spend_limit(&project.id, Some(1), &limited);
    assert_eq!(late.await, Ok(false));
    let expected = Project {
        archived_at: Some(archived.effective_at),
        ..project.clone()
    };
    assert_eq!(
        projects.find_in(organization, &project.id).await,
        Ok(Some(expected))
    );
    for (which, n) in [(WhichProjects::All, 2), (WhichProjects::Live, 1)] {
        let page = sample::page();
        let listed = projects.list_in(organization, which, &page).await.unwrap();
        assert_eq!(listed.items.len(), n, "{which:?}");
        let first = PageRequest {
            limit: 1,
            order: Order::OldestFirst,
            ..page
        };
        let listed = projects.list_in(organization, which, &first).await.unwrap();
        assert_eq!(listed.has_more, n > 1);
    }
    let elsewhere = sample::organization_id();
    let none = projects
        .list_in(&elsewhere, WhichProjects::All, &sample::page())
        .await;
    assert_eq!(none.unwrap().items, []);
}

async fn an_invitation_is_kept_until_it_is_deleted(db: Db) {
    let store = &db.store;
    let (project, entry) = organization(store).await;
    let organization = &project.organization_id;
    let invite = Invite {
        id: InviteId::mint(sample::entropy()),
        organization_id: organization.clone(),
        email: "ada@example.com".into(),
        role: OrganizationRole::Reader,
        projects: vec![InvitedProject {
            id: project.id.clone(),
            role: ProjectRole::Owner,
        }],
        created_at: at(0),
        expires_at: at(9),
    };
    let invites = store.invites();
    invites
        .insert(&invite, &entry(AuditKind::InviteSent))
        .await
        .unwrap();
    let listed = invites.list(organization, &sample::page()).await.unwrap();
    assert_eq!(listed.items, std::slice::from_ref(&invite));
    assert_eq!(
        invites.find(&sample::organization_id(), &invite.id).await,
        Ok(None)
    );
    assert_eq!(
        invites.find(organization, &invite.id).await,
        Ok(Some(invite.clone()))
    );
    let deleted = entry(AuditKind::InviteDeleted);
    assert_eq!(invites.delete(&invite.id, &deleted).await, Ok(true));
    assert_eq!(invites.find(organization, &invite.id).await, Ok(None));
}

async fn a_permitted_model_is_used_and_not_owned(db: Db) {
    let store = &db.store;
    let (owner, entry) = organization(store).await;
    let guest = sample::project(store).await;
    let model = sample::succeeded_job(store, &owner, at(0))
        .await
        .tuned_model_name();
    let (permissions, models) = (store.checkpoint_permissions(), store.models());
    let permission = CheckpointPermission {
        id: CheckpointPermissionId::mint(sample::entropy()),
        model: model.clone(),
        project_id: guest.id.clone(),
        created_at: at(1),
    };
    let wanted = [(
        permission.clone(),
        entry(AuditKind::CheckpointPermissionCreated),
    )];
    let organization = &owner.organization_id;
    for _ in 0..2 {
        let granted = permissions.grant(organization, &wanted).await.unwrap();
        assert_eq!(granted, std::slice::from_ref(&permission), "twice is once");
    }
    assert!(models.find(&guest.id, &model).await.unwrap().is_some());
    assert_eq!(models.list(&guest.id).await.unwrap().len(), 1);
    assert_eq!(models.list(&owner.id).await.unwrap().len(), 2);
    assert_eq!(
        models.delete(&guest.id, &model, at(2)).await,
        Ok(false),
        "not its own"
    );
    let listed = permissions
        .list(&model, Some(&guest.id), &sample::page())
        .await;
    assert_eq!(listed.unwrap().items, std::slice::from_ref(&permission));
    assert!(
        permissions
            .find_model(organization, &model)
            .await
            .unwrap()
            .is_some()
    );
    let elsewhere = sample::organization_id();
    assert_eq!(permissions.find_model(&elsewhere, &model).await, Ok(None));
    let deleted = entry(AuditKind::CheckpointPermissionDeleted);
    assert_eq!(
        permissions.delete(&model, &permission.id, &deleted).await,
        Ok(true)
    );
    assert_eq!(models.find(&guest.id, &model).await, Ok(None));
}
