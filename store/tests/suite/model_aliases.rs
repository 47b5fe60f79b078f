//! Other names for models.

use domain::model_alias::ModelAlias;
use store::StoreError;

use crate::harness::{Db, on_both};
use crate::sample::{self, alias};

on_both!(a_projects_alias_goes_before_the_operators);

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
        aliases.insert(one).await.unwrap();
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
    assert_eq!(aliases.count(&project.id).await, Ok(1));

    assert_eq!(aliases.delete(&project.id, "gpt-4o").await, Ok(true));
    assert_eq!(aliases.delete(&project.id, "gpt-4o").await, Ok(false));
    assert_eq!(
        aliases.find(&project.id, "gpt-4o").await,
        Ok(Some(operators))
    );
    assert_eq!(aliases.delete_operators("gpt-4o").await, Ok(true));
    assert_eq!(aliases.find(&project.id, "gpt-4o").await, Ok(None));
}
