//! Numbered migrations, compiled in, applied one after the other under a lock. A released one is never edited.

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{PgPool, SqlSafeStr as _};

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
    let migrations = MIGRATIONS.into_iter().map(|(version, name, sql)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.create_schema("arbees");
    migrator.dangerous_set_table_name("arbees.schema_migrations");
    migrator.run(pool).await
}
