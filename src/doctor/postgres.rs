//! The PostgreSQL database that keeps the tasks: whether it can be used, what it may lose, what slows it down.

use std::time::{Duration, Instant};

use comfyd_actors::{domain::time::Timestamp, ports::clock::Clock};
use humantime::format_duration;

use super::{report::Section, server, store::Kept};
use crate::{
    clock::SystemClock,
    store::postgres::{PgConfig, ServerReport, look},
};

/// Trips to the server that a look takes, the one to get in included.
const TRIPS: u32 = 10;
/// A transaction that is open for longer keeps dead rows in the way of every claim.
const LONG: Duration = Duration::from_secs(300);
/// Connections of one process besides those for reading.
const OTHERS: i64 = 3;

/// Looks at the database; returns the workflows it has, too.
pub(super) async fn examine(config: &PgConfig) -> (Section, Vec<Kept>) {
    let mut section = Section::new(format!("Store  PostgreSQL at {}", config.place()));
    let began = Instant::now();
    match look(config).await {
        Ok(found) => {
            let wanted = i64::from(config.readers) + OTHERS;
            describe(&mut section, &found, began.elapsed() / TRIPS, SystemClock::start().now(), wanted);
            (section, found.published)
        }
        Err(error) => {
            section.bad(error.to_string(), "");
            (section, Vec::new())
        }
    }
}

fn describe(section: &mut Section, found: &ServerReport, each: Duration, now: Timestamp, wanted: i64) {
    server::pace(section, &format!("PostgreSQL {}", found.version), each);
    schema(section, found.schema);
    found.unsafe_settings.iter().for_each(|setting| section.odd(*setting, "turn it on, unless this is a test"));
    server::time(section, found.now, now, Duration::ZERO);
    if found.oldest_transaction > LONG {
        section.odd(
            format!("a transaction has been open for {}", format_duration(found.oldest_transaction)),
            "end it (pg_stat_activity names it): as long as it lasts nothing is cleared away, and claims get slower",
        );
    }
    let (most, used) = found.connections;
    if most - used < wanted {
        section.odd(
            format!("{used} of its {most} connections are in use, and a process needs {wanted}"),
            "raise max_connections there, or lower store.postgres_readers",
        );
    }
}

fn schema(section: &mut Section, (found, known): (Option<i64>, i64)) {
    match found {
        None => section.good("there are no tables yet; they are made at the first start"),
        Some(found) if found > known => section.bad(
            format!("a newer comfyd wrote it: its schema is {found}, this program knows {known}"),
            "use the newer program, or restore the copy from before the upgrade",
        ),
        Some(found) if found < known => section.good(format!(
            "its schema {found} is brought to {known} at the next start; make a copy before you upgrade"
        )),
        Some(_) => section.good("its schema is this program's"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::report::Health, *};

    #[test]
    fn what_matters_about_a_server_is_told() {
        let now = Timestamp(1_800_000_000_000);
        let judged = |found: &ServerReport| {
            let mut section = Section::new("");
            describe(&mut section, found, Duration::from_millis(1), now, 7);
            (section.worst(), section.text())
        };
        let well = ServerReport {
            version: "15.8".into(),
            schema: (Some(1), 1),
            now,
            unsafe_settings: Vec::new(),
            oldest_transaction: Duration::ZERO,
            connections: (100, 93),
            published: Vec::new(),
        };
        assert_eq!(judged(&well).0, Some(Health::Good), "{}", judged(&well).1);
        for (found, word) in [
            (ServerReport { now: now.after(Duration::from_secs(70)), ..well.clone() }, "our clock is 1m 10s behind"),
            (ServerReport { unsafe_settings: vec!["fsync is off"], ..well.clone() }, "fsync is off"),
            (ServerReport { oldest_transaction: Duration::from_secs(3600), ..well.clone() }, "open for 1h"),
            (ServerReport { connections: (100, 94), ..well.clone() }, "94 of its 100"),
        ] {
            let (worst, text) = judged(&found);
            assert!(worst == Some(Health::Odd) && text.contains(word), "{text}");
        }
        assert_eq!(judged(&ServerReport { schema: (Some(2), 1), ..well }).0, Some(Health::Bad));
    }
}
