//! The database: whether it can be used, by this program, and how fast its disk is.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use comfyd_actors::ports::clock::Clock;

use super::{postgres, redis, report::Section};
use crate::{
    clock::SystemClock,
    config::Config,
    store::{
        postgres::PgConfig,
        redis::RedisConfig,
        sqlite::{AtRest, OpenError, Schema, SqliteConfig, look, remote_file_system},
    },
};

/// A disk that takes longer to keep something is slow for a queue: each create waits for it once.
const SLOW: Duration = Duration::from_millis(50);
const WRITES: usize = 5;
/// A clock may be set by this much without anybody noticing.
const FUTURE: Duration = Duration::from_secs(60);

/// A workflow that was published through the API.
pub(super) type Kept = (String, String);

/// Looks at the database; returns the workflows it has, too.
pub(super) async fn examine(config: &Config) -> (Section, Vec<Kept>) {
    match PgConfig::of(&config.store) {
        Ok(Some(database)) => return postgres::examine(&database).await,
        Ok(None) => {}
        Err(error) => {
            let mut section = Section::new("Store  PostgreSQL");
            section.bad(error.to_string(), "");
            return (section, Vec::new());
        }
    }
    if let Some(server) = RedisConfig::of(&config.store) {
        return redis::examine(&server).await;
    }
    let url = config.store.database_url.expose();
    let mut section = Section::new("Store");
    let path = match SqliteConfig::parse(url) {
        Ok(config) => config.path,
        Err(error) => {
            section.bad(error.to_string(), "set DATABASE_URL to sqlite://<file>");
            return (section, Vec::new());
        }
    };
    section = Section::new(format!("Store  {}", path.display()));
    let folder = existing_folder(&path);
    if let Some(kind) = remote_file_system(&folder) {
        section.bad(
            format!("it lies on a {kind} file system, where SQLite loses data"),
            "put it on a disk of this machine",
        );
        return (section, Vec::new());
    }
    time_the_disk(&mut section, &folder);
    if !path.exists() {
        section.good("there is no database yet; it is made at the first start");
        return (section, Vec::new());
    }
    match look(&path).await {
        Ok(found) => (describe(section, &found), found.published),
        Err(OpenError::Sqlite(error)) => {
            section.bad(
                format!("it cannot be read: {error}"),
                "see that the file is a database of comfyd and that this user may read and write it and its folder",
            );
            (section, Vec::new())
        }
        Err(error) => {
            section.bad(error.to_string(), "");
            (section, Vec::new())
        }
    }
}

fn describe(mut section: Section, found: &AtRest) -> Section {
    match found.schema {
        Schema::Current => section.good("its schema is this program's"),
        Schema::Older { found, known } => {
            section.good(format!(
                "its schema {found} is brought to {known} at the next start; make a copy before you upgrade"
            ));
        }
        Schema::Newer { found, known } => section.bad(
            format!("a newer comfyd wrote it: its schema is {found}, this program knows {known}"),
            "use the newer program, or restore the copy from before the upgrade",
        ),
    }
    let ahead = found.newest.map(|newest| newest.since(SystemClock::start().now())).unwrap_or_default();
    if ahead > FUTURE {
        section.odd(
            format!(
                "its newest task was made {} from now",
                humantime::format_duration(Duration::from_secs(ahead.as_secs()))
            ),
            "the clock was set back, or is wrong: correct it",
        );
    }
    section
}

/// The folder the database lies in, or the deepest one above it that is there.
fn existing_folder(path: &Path) -> PathBuf {
    let above = path.ancestors().skip(1).find(|folder| folder.is_dir());
    above.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// How long the disk takes to keep a write, in the middle of a few.
fn time_the_disk(section: &mut Section, folder: &Path) {
    match durable_writes(folder) {
        Ok(took) => {
            let text = format!("the disk keeps a write in {:.1} ms", took.as_secs_f64() * 1e3);
            if took > SLOW {
                section.odd(
                    text,
                    "each new task waits for one: use a faster disk, or one with a cache that survives a power cut",
                );
            } else {
                section.good(text);
            }
        }
        Err(error) => section.bad(
            format!("nothing can be written to {}: {error}", folder.display()),
            "let this user write there, make room, or set DATABASE_URL to another place",
        ),
    }
}

fn durable_writes(folder: &Path) -> io::Result<Duration> {
    let path = folder.join(format!(".comfyd-doctor-{}", std::process::id()));
    let mut file = File::create_new(&path)?;
    let mut write = || {
        let began = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        Ok(began.elapsed())
    };
    let took: io::Result<Vec<Duration>> = (0..WRITES).map(|_| write()).collect();
    std::fs::remove_file(&path)?;
    let mut took = took?;
    took.sort_unstable();
    Ok(took[WRITES / 2])
}

#[cfg(test)]
mod tests {
    use super::{super::report::Health, *};

    #[test]
    fn the_folder_need_not_be_there_yet() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/tasks.db");
        assert_eq!(existing_folder(&path), folder.path());
        assert_eq!(existing_folder(Path::new("tasks.db")), Path::new("."));
        let mut section = Section::new("");
        time_the_disk(&mut section, folder.path());
        assert_ne!(section.worst(), Some(Health::Bad));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
        time_the_disk(&mut section, &path);
        assert_eq!(section.worst(), Some(Health::Bad));
    }

    #[test]
    fn a_newer_schema_and_a_task_from_the_future_are_told() {
        let at_rest = |schema, newest| AtRest { schema, newest, published: Vec::new() };
        let now = SystemClock::start().now();
        let found = describe(Section::new(""), &at_rest(Schema::Newer { found: 99, known: 14 }, Some(now)));
        assert_eq!(found.worst(), Some(Health::Bad));
        let found = describe(Section::new(""), &at_rest(Schema::Current, Some(now.after(Duration::from_secs(7_200)))));
        assert!(found.text().contains("from now"), "{}", found.text());
        let found = describe(Section::new(""), &at_rest(Schema::Older { found: 1, known: 14 }, None));
        assert_eq!(found.worst(), Some(Health::Good));
    }
}
