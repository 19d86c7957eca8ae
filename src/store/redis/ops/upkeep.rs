//! What time brings: scheduled tasks become pending, old ones are deleted, clocks are set.

use comfyd_actors::{
    domain::{
        id::TaskId,
        moment::DATE_TRUSTED_AFTER,
        task::{Change, TaskState},
        time::Timestamp,
        webhook::Endpoint,
    },
    ports::store::Retention,
};

use super::{
    Operation,
    create::{request_field, request_member},
};
use crate::store::redis::{
    keys::{number_of, task_of, until},
    rows::{RequestRow, corrupt, from_json, json},
    tx::{Fault, Tx, words},
};

/// Members of an index that are looked at in one trip.
const PAGE: usize = 256;

/// `WorkSource::promote`.
pub(in crate::store::redis) struct Promote {
    pub(in crate::store::redis) limit: u32,
}

impl Operation for Promote {
    type Answer = u32;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<u32, Fault> {
        let limit = isize::try_from(self.limit).unwrap_or(isize::MAX);
        let mut pipe = redis::pipe();
        pipe.zrangebylex_limit(tx.keys().scheduled(), "-", until(tx.now), 0, limit);
        let (found,): (Vec<Vec<u8>>,) = tx.ask(&pipe).await?;
        let ids: Vec<TaskId> = found.iter().filter_map(|member| task_of(member)).collect();
        tx.find_many(&ids).await?;
        for id in &ids {
            // Somebody was faster.
            tx.change(*id, None, Change::Promote).await.map_err(|_| Fault::Conflict)?;
        }
        Ok(u32::try_from(ids.len()).unwrap_or(u32::MAX))
    }
}

/// `WorkSource::prune`: tasks first, then, as far as the limit allows, keys.
pub(in crate::store::redis) struct Prune {
    pub(in crate::store::redis) retention: Retention,
    pub(in crate::store::redis) limit: u32,
}

impl Operation for Prune {
    type Answer = u32;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<u32, Fault> {
        if !tx.moment.is_settled(DATE_TRUSTED_AFTER) {
            return Ok(0);
        }
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let due = self.due(tx, limit).await?;
        let mut requests = Vec::new();
        for id in &due {
            requests.extend(self.delete(tx, *id).await?);
        }
        let old = self.forget_requests(tx, limit.saturating_sub(due.len()), &requests).await?;
        Ok(u32::try_from(due.len() + old).unwrap_or(u32::MAX))
    }
}

impl Prune {
    /// Finished tasks past their time that have told what they had to tell, oldest first.
    async fn due(&self, tx: &mut Tx<'_>, limit: usize) -> Result<Vec<TaskId>, Fault> {
        let Retention { completed, failed, .. } = self.retention;
        let mut due = Vec::new();
        for (state, kept) in
            [(TaskState::Completed, completed), (TaskState::Cancelled, completed), (TaskState::Failed, failed)]
        {
            let (key, mut found, mut place) = (tx.keys().finished(state), Vec::new(), 0);
            while found.len() < limit {
                let mut pipe = redis::pipe();
                pipe.zrangebylex_limit(&key, "-", until(tx.now.before(kept)), place, PAGE.cast_signed());
                let (page,): (Vec<Vec<u8>>,) = tx.ask(&pipe).await?;
                let ids: Vec<TaskId> = page.iter().filter_map(|member| task_of(member)).collect();
                for task in tx.find_many(&ids).await? {
                    let at = task.finished_at.filter(|_| task.state == state).ok_or(Fault::Conflict)?;
                    if task.hook.is_none() || !self.has_to_tell(tx, task.id).await? {
                        found.push((at, task.id));
                    }
                }
                place += PAGE.cast_signed();
                if page.len() < PAGE {
                    break;
                }
            }
            due.append(&mut found);
        }
        due.sort_unstable();
        due.truncate(limit);
        Ok(due.into_iter().map(|(_, id)| id).collect())
    }

    async fn has_to_tell(&self, tx: &Tx<'_>, id: TaskId) -> Result<bool, Fault> {
        let (waiting,): (Vec<i64>,) = tx.ask(redis::pipe().zrange(tx.keys().waiting(id), 0, -1)).await?;
        let since = tx.now.before(self.retention.webhooks);
        Ok(tx.messages(&waiting).await?.iter().any(|message| message.delivery.at > since))
    }

    /// Deletes a task and all that is its own; returns the field of its idempotency key.
    async fn delete(&self, tx: &mut Tx<'_>, id: TaskId) -> Result<Option<String>, Fault> {
        let keys = tx.keys();
        let (events, messages): (Vec<String>, Vec<i64>) =
            tx.ask(redis::pipe().lrange(keys.events_of(id), 0, -1).zrange(keys.log_of_task(id), 0, -1)).await?;
        for message in tx.messages(&messages).await? {
            tx.save_message(&message, None)?;
        }
        let made_by = tx.row(id).and_then(|row| Some((row.task.tenant, row.request.clone()?)));
        tx.delete(id, &events);
        let Some((tenant, key)) = made_by else { return Ok(None) };
        let field = request_field(tenant, &key);
        let Some(text) = tx.field(keys.requests(), &field).await? else { return Ok(None) };
        let row: RequestRow = from_json(&text)?;
        // Its key may have been forgotten before it, and used again.
        if row.task != id {
            return Ok(None);
        }
        forget_request(tx, &row, &text, tenant, &key);
        Ok(Some(field))
    }

    /// Forgets idempotency keys past their time, but for those that are `gone` already.
    async fn forget_requests(&self, tx: &mut Tx<'_>, limit: usize, gone: &[String]) -> Result<usize, Fault> {
        let (keys, mut forgotten) = (tx.keys(), 0);
        let room = isize::try_from(limit.saturating_add(gone.len())).unwrap_or(isize::MAX);
        let mut pipe = redis::pipe();
        pipe.zrangebylex_limit(keys.request_ages(), "-", until(tx.now.before(self.retention.idempotency)), 0, room);
        let (found,): (Vec<Vec<u8>>,) = tx.ask(&pipe).await?;
        for member in found {
            let (tenant, key) = request_of(&member).ok_or_else(|| corrupt("an idempotency key is none"))?;
            let field = request_field(tenant, &key);
            if forgotten == limit || gone.contains(&field) {
                continue;
            }
            let text = tx.field(keys.requests(), &field).await?.ok_or(Fault::Conflict)?;
            forget_request(tx, &from_json(&text)?, &text, tenant, &key);
            forgotten += 1;
        }
        Ok(forgotten)
    }
}

fn forget_request(tx: &mut Tx<'_>, row: &RequestRow, text: &str, tenant: i64, key: &str) {
    let (keys, field) = (tx.keys(), request_field(tenant, key));
    tx.check(keys.requests(), field.clone(), Some(text));
    tx.write(words("HDEL").arg(keys.requests()).arg(field));
    tx.write(words("ZREM").arg(keys.request_ages()).arg(request_member(row, tenant, key).as_slice()));
}

/// The tenant and the key a member of the index of ages stands for.
fn request_of(member: &[u8]) -> Option<(i64, String)> {
    let key = String::from_utf8(member.get(16..)?.to_vec()).ok()?;
    Some((number_of(member.get(8..)?)?, key))
}

/// `TaskStore::note_swept`.
pub(in crate::store::redis) struct NoteSwept {
    pub(in crate::store::redis) state: TaskState,
    pub(in crate::store::redis) last: (Timestamp, TaskId),
}

impl Operation for NoteSwept {
    type Answer = ();

    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let (keys, state) = (tx.keys(), self.state.as_str());
        let noted = tx.field(keys.swept(), state).await?;
        let before: Option<(Timestamp, TaskId)> = noted.as_deref().map(from_json).transpose()?;
        if before.is_none_or(|before| before < self.last) {
            tx.check(keys.swept(), state, noted.as_deref());
            tx.write(words("HSET").arg(keys.swept()).arg(state).arg(json(&self.last)?));
        }
        Ok(())
    }
}

/// `TaskStore::check`. Only a write shows that a write is possible: a server without memory or disk answers everything else.
pub(in crate::store::redis) struct Check;

impl Operation for Check {
    type Answer = ();

    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        tx.write(words("HSET").arg(tx.keys().meta()).arg("checked_at").arg(tx.now.0));
        Ok(())
    }
}

/// Another process that saw the same step has acted within this time.
const SAME_STEP: i64 = 60_000;

/// The server's clock was set back: what shall happen after a time is brought back with it, by whichever process notices first. What a client
/// wants at a time of day is not, and what is over is history.
pub(in crate::store::redis) struct SetBack {
    /// Milliseconds, less than 0.
    pub(in crate::store::redis) step: i64,
    /// Whose this process is.
    pub(in crate::store::redis) origin: String,
}

impl Operation for SetBack {
    type Answer = ();

    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let keys = tx.keys();
        let marked = tx.field(keys.meta(), "set_back").await?;
        let others = marked.as_deref().and_then(|mark| mark.split_once(' ')).filter(|(who, _)| *who != self.origin);
        if others.and_then(|(_, at)| at.parse::<i64>().ok()).is_some_and(|at| (tx.now.0 - at).abs() < SAME_STEP) {
            return Ok(());
        }
        tx.check(keys.meta(), "set_back", marked.as_deref());
        tx.write(words("HSET").arg(keys.meta()).arg("set_back").arg(format!("{} {}", self.origin, tx.now.0)));
        self.tasks(tx).await?;
        self.messages(tx).await
    }
}

impl SetBack {
    async fn tasks(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let keys = tx.keys();
        let (held, scheduled): (Vec<Vec<u8>>, Vec<Vec<u8>>) =
            tx.ask(redis::pipe().zrange(keys.leases(), 0, -1).zrange(keys.scheduled(), 0, -1)).await?;
        let ids: Vec<TaskId> = held.iter().chain(&scheduled).filter_map(|member| task_of(member)).collect();
        for task in tx.find_many(&ids).await? {
            let Some(row) = tx.touch(task.id) else { continue };
            let waits_for_a_retry = row.task.error.is_some();
            let until = row.task.lease.as_mut().map(|lease| &mut lease.until);
            let run_at = row.task.run_at.as_mut().filter(|_| waits_for_a_retry);
            until.into_iter().chain(run_at).for_each(|at| *at = self.earlier(*at));
        }
        Ok(())
    }

    async fn messages(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let keys = tx.keys();
        let (called, endpoints): (Vec<String>, Vec<String>) =
            tx.ask(redis::pipe().zrange(keys.calls(), 0, -1).hvals(keys.endpoints())).await?;
        for endpoint in called {
            tx.write(words("ZINCRBY").arg(keys.calls()).arg(self.step).arg(endpoint));
        }
        for text in endpoints {
            let mut endpoint: Endpoint = from_json(&text)?;
            let (due, sending): (Vec<i64>, Vec<i64>) = tx
                .ask(redis::pipe().zrange(keys.due_of(endpoint.id), 0, -1).zrange(keys.sending(endpoint.id), 0, -1))
                .await?;
            for id in due {
                tx.write(words("ZINCRBY").arg(keys.due_of(endpoint.id)).arg(self.step).arg(id));
                tx.write(words("HINCRBY").arg(keys.due()).arg(id).arg(self.step));
            }
            for id in sending {
                tx.write(words("ZINCRBY").arg(keys.sending(endpoint.id)).arg(self.step).arg(id));
            }
            if let Some(at) = endpoint.not_before {
                endpoint.not_before = Some(self.earlier(at));
                tx.save_endpoint(&text, &endpoint)?;
            }
        }
        Ok(())
    }

    fn earlier(&self, at: Timestamp) -> Timestamp {
        Timestamp(at.0.saturating_add(self.step))
    }
}
