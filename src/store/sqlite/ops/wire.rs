//! Notices of processes that share the file.

use std::time::Duration;

use comfyd_actors::ports::wire::{Kind, Notice};

use crate::store::sqlite::{fault::Fault, statement::query, tx::Tx, writer::Operation};

/// Those whose time is over go with the next one that comes.
const POST: &str = "DELETE FROM notices WHERE expires_at <= ?;
     INSERT INTO notices (kind, name, body, expires_at) VALUES (?, ?, ?, ?)
     ON CONFLICT (kind, name) DO UPDATE SET body = excluded.body, expires_at = excluded.expires_at";

const TAKE_BACK: &str = "DELETE FROM notices WHERE kind = ? AND name = ?";

/// `Wire::post`.
pub(in crate::store::sqlite) struct Post {
    pub(in crate::store::sqlite) notice: Notice,
    pub(in crate::store::sqlite) keep: Duration,
}

impl Operation for Post {
    type Answer = ();

    async fn run(self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let Self { notice: Notice { kind, name, body }, keep } = self;
        let (now, until) = (tx.now.0, tx.now.after(keep).0);
        tx.write(query(POST).bind(now).bind(kind.as_str()).bind(name).bind(Vec::from(body)).bind(until));
        Ok(())
    }
}

/// `Wire::withdraw`.
pub(in crate::store::sqlite) struct TakeBack {
    pub(in crate::store::sqlite) kind: Kind,
    pub(in crate::store::sqlite) name: String,
}

impl Operation for TakeBack {
    type Answer = ();

    async fn run(self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        tx.write(query(TAKE_BACK).bind(self.kind.as_str()).bind(self.name));
        Ok(())
    }
}
