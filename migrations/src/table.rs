//! A table as data: columns with their meaning, so that no column is made without a comment.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

/// What a column holds. Times are integers: microseconds since the Unix epoch, UTC.
#[derive(Clone, Copy)]
pub enum Kind {
    Text,
    Int,
    Real,
    /// An integer the database counts up; the primary key.
    Identity,
}

/// One column and what it means.
pub struct Col {
    name: &'static str,
    kind: Kind,
    nullable: bool,
    default: Option<Value>,
    meaning: &'static str,
}

pub fn text(name: &'static str, meaning: &'static str) -> Col {
    Col {
        name,
        kind: Kind::Text,
        nullable: false,
        default: None,
        meaning,
    }
}

pub fn int(name: &'static str, meaning: &'static str) -> Col {
    Col {
        name,
        kind: Kind::Int,
        nullable: false,
        default: None,
        meaning,
    }
}

pub fn real(name: &'static str, meaning: &'static str) -> Col {
    Col {
        name,
        kind: Kind::Real,
        nullable: false,
        default: None,
        meaning,
    }
}

pub fn identity(name: &'static str, meaning: &'static str) -> Col {
    Col {
        name,
        kind: Kind::Identity,
        nullable: false,
        default: None,
        meaning,
    }
}

impl Col {
    pub fn or_null(self) -> Self {
        Self {
            nullable: true,
            ..self
        }
    }

    /// What rows have that were there before the column.
    pub fn or_default(self, value: impl Into<Value>) -> Self {
        Self {
            default: Some(value.into()),
            ..self
        }
    }

    fn definition(&self) -> ColumnDef {
        let mut column = ColumnDef::new(self.name);
        match self.kind {
            Kind::Text => column.text(),
            Kind::Int => column.big_integer(),
            Kind::Real => column.double(),
            Kind::Identity => column.big_integer().auto_increment().primary_key(),
        };
        if !self.nullable {
            column.not_null();
        }
        if let Some(value) = &self.default {
            column.default(value.clone());
        }
        column
    }
}

/// A table. `references` are (column, table, column).
pub struct TableSpec {
    pub name: &'static str,
    pub meaning: &'static str,
    pub columns: Vec<Col>,
    /// Empty when a column is the `Identity`.
    pub primary_key: &'static [&'static str],
    pub references: &'static [(&'static str, &'static str, &'static str)],
    pub unique: &'static [&'static [&'static str]],
    pub indexes: &'static [&'static [&'static str]],
}

impl TableSpec {
    /// Creates the table, its indexes and, on PostgreSQL, its comments.
    pub async fn create(&self, manager: &SchemaManager<'_>) -> Result<(), DbErr> {
        manager.create_table(self.table()).await?;
        for (columns, unique) in self.index_lists() {
            manager.create_index(self.index(columns, unique)).await?;
        }
        let db = manager.get_connection();
        if db.get_database_backend() == DbBackend::Postgres {
            db.execute_unprepared(&self.comments()).await?;
        }
        Ok(())
    }

    fn table(&self) -> TableCreateStatement {
        let mut table = Table::create();
        table.table(self.name);
        for column in &self.columns {
            table.col(column.definition());
        }
        if !self.primary_key.is_empty() {
            let mut key = Index::create();
            for column in self.primary_key {
                key.col(*column);
            }
            table.primary_key(&mut key);
        }
        for (column, other, other_column) in self.references {
            let mut reference = ForeignKey::create();
            reference.from(self.name, *column).to(*other, *other_column);
            table.foreign_key(&mut reference);
        }
        table
    }

    fn index_lists(&self) -> impl Iterator<Item = (&'static [&'static str], bool)> {
        let unique = self.unique.iter().map(|columns| (*columns, true));
        unique.chain(self.indexes.iter().map(|columns| (*columns, false)))
    }

    fn index(&self, columns: &[&'static str], unique: bool) -> IndexCreateStatement {
        let mut index = Index::create();
        index
            .name(format!("{}_{}", self.name, columns.join("_")))
            .table(self.name);
        for column in columns {
            index.col(*column);
        }
        if unique {
            index.unique();
        }
        index
    }

    fn comments(&self) -> String {
        let about_table = format!(
            "COMMENT ON TABLE {} IS '{}';",
            self.name,
            quoted(self.meaning)
        );
        about_table + &comments(self.name, &self.columns)
    }
}

/// Adds columns to a table that is there, with their comments on PostgreSQL.
pub async fn add_columns(
    manager: &SchemaManager<'_>,
    table: &'static str,
    columns: &[Col],
) -> Result<(), DbErr> {
    for column in columns {
        // SQLite takes one at a time.
        let alter = Table::alter()
            .table(table)
            .add_column(column.definition())
            .take();
        manager.alter_table(alter).await?;
    }
    let db = manager.get_connection();
    if db.get_database_backend() == DbBackend::Postgres {
        db.execute_unprepared(&comments(table, columns)).await?;
    }
    Ok(())
}

fn comments(table: &str, columns: &[Col]) -> String {
    let comment = |column: &Col| {
        let (name, meaning) = (column.name, quoted(column.meaning));
        format!("COMMENT ON COLUMN {table}.{name} IS '{meaning}';")
    };
    columns.iter().map(comment).collect()
}

fn quoted(text: &str) -> String {
    text.replace('\'', "''")
}
