//! Other names for models.

use domain::model_alias::{MAX_ALIASES, ModelAlias};
use store::StoreError;

use crate::harness::{Db, on_both};
use crate::sample::{self, alias};

on_both!(
    a_projects_alias_goes_before_the_operators,
    of_two_that_want_the_last_alias_one_gets_it,
);

async fn a_projects_alias_goes_before_the_operators(db: Db) {
    let (project, other) = (
        sample::project(&db.store).await,
        sample::project(&db.store).await,
    );
    let aliases = db.store.model_aliases();
    let own = ModelAlias {
        model: "ft:x:y::z".into(),
        ..alias(Some(&project), "gpt-4o")
    };
    let (operators, second) = (alias(None, "gpt-4o"), alias(None, "gpt-3.5"));
    for one in [&own, &operators, &second] {
        assert_eq!(aliases.insert(one).await, Ok(true));
        let again = aliases.insert(one).await;
        assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
    }
    assert_eq!(
        aliases.find(&project.id, "gpt-4o").await,
        Ok(Some(own.clone()))
    );
    assert_eq!(
        aliases.find(&other.id, "gpt-4o").await,
        Ok(Some(operators.clone()))
    );
    assert_eq!(aliases.find(&project.id, "a\0").await, Ok(None));
    assert_eq!(
        aliases.list(&project.id).await,
        Ok(vec![second.clone(), own])
    );
    assert_eq!(
        aliases.list(&other.id).await,
        Ok(vec![second.clone(), operators.clone()])
    );
    assert_eq!(
        aliases.operators().await,
        Ok(vec![second.clone(), operators.clone()])
    );

    assert_eq!(aliases.delete(&project.id, "gpt-4o").await, Ok(true));
    assert_eq!(aliases.delete(&project.id, "gpt-4o").await, Ok(false));
    assert_eq!(
        aliases.find(&project.id, "gpt-4o").await,
        Ok(Some(operators))
    );
    assert_eq!(aliases.delete_operators("gpt-4o").await, Ok(true));
    assert_eq!(aliases.find(&project.id, "gpt-4o").await, Ok(None));
}

async fn of_two_that_want_the_last_alias_one_gets_it(db: Db) {
    let project = sample::project(&db.store).await;
    let aliases = db.store.model_aliases();
    for n in 1..MAX_ALIASES {
        let alias = alias(Some(&project), &format!("m{n}"));
        assert_eq!(aliases.insert(&alias).await, Ok(true));
    }
    let mut beside = db.other_program().await;
    beside.hold("model_aliases").await;
    let both = ["a", "b"].map(|name| {
        let (store, alias) = (db.store.clone(), alias(Some(&project), name));
        tokio::spawn(async move { store.model_aliases().insert(&alias).await.unwrap() })
    });
    beside.let_go().await;
    let mut n_made = 0;
    for made in both {
        n_made += u64::from(made.await.unwrap());
    }
    let listed = aliases.list(&project.id).await.unwrap().len() as u64;
    assert_eq!((n_made, listed), (1, MAX_ALIASES));
    // The operator's are not counted.
    assert_eq!(aliases.insert(&alias(None, "gpt-4o")).await, Ok(true));
}
