//! Numbered migrations, compiled in, applied one after the other under a lock. A released one is never edited.

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, PgPool, SqlSafeStr as _};

use super::SCHEMA;

/// All migrations, in their order.
const MIGRATIONS: [(i64, &str, &str); 4] = [
    (1, "arbees", include_str!("../../../migrations/0001_arbees.sql")),
    (2, "control_plane", include_str!("../../../migrations/0002_control_plane.sql")),
    (3, "alerts", include_str!("../../../migrations/0003_alerts.sql")),
    (4, "views", include_str!("../../../migrations/0004_views.sql")),
];

/// Brings the schema `arbees` up to date.
///
/// # Errors
/// When the database is away, or holds a migration that differs from the one in here.
pub async fn migrate(pool: &PgPool) -> Result<(), MigrateError> {
    migrate_in(pool, SCHEMA).await
}

/// The same for a schema of another name. Once it is renamed, it is as if it had been made under its new name.
///
/// # Errors
/// The same.
pub async fn migrate_in(pool: &PgPool, schema: &str) -> Result<(), MigrateError> {
    let migrations = MIGRATIONS.into_iter().map(|(version, name, released)| {
        let sql = in_schema(released, schema);
        let mut migration =
            Migration::new(version, name.into(), MigrationType::Simple, AssertSqlSafe(sql).into_sql_str(), false);
        migration.checksum = checksum(released).into();
        migration
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.create_schema(schema.to_owned());
    migrator.dangerous_set_table_name(format!("{schema}.schema_migrations"));
    migrator.run(pool).await
}

/// The released text with another schema's name in the two places where one stands.
fn in_schema(released: &str, schema: &str) -> String {
    let [dotted, named] = [format!("{schema}."), format!("SCHEMA {schema} ")];
    released.replace("arbees.", &dotted).replace("SCHEMA arbees ", &named)
}

fn checksum(released: &'static str) -> Vec<u8> {
    let as_released = Migration::new(0, "".into(), MigrationType::Simple, released.into_sql_str(), false);
    as_released.checksum.into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_migration_names_the_schema_in_a_way_that_would_be_missed() {
        for (_, name, released) in MIGRATIONS {
            let other = in_schema(released, "elsewhere");
            let left: Vec<&str> =
                other.lines().filter(|l| !l.trim_start().starts_with("--") && l.contains("arbees")).collect();
            assert!(left.iter().all(|l| l.contains("arbees_reader")), "{name}: {left:?}");
            assert_eq!(in_schema(released, SCHEMA), released);
        }
    }
}
