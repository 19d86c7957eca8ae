//! Tasks come in and are taken from the head of the order.

use std::collections::{BTreeMap, BTreeSet};

use comfyd_actors::{
    domain::{
        id::TaskId,
        lane::{ANYBODY, Head, Needs},
        task::{ArtifactEdit, Task},
        tenant::NOBODY,
        webhook::Endpoint,
    },
    ports::store::{Assignment, Claim, Created, Creation, Durable, Idempotency, NewTask},
};

use super::Operation;
use crate::store::redis::{
    keys::{number_of, ordered, task_of},
    rows::{RequestRow, Row, corrupt, from_json, json},
    tx::{Fault, Rest, Tx, words},
};

/// `TaskStore::create`.
pub(in crate::store::redis) struct Create {
    pub(in crate::store::redis) new: NewTask,
    pub(in crate::store::redis) claim: Option<Claim>,
}

impl Operation for Create {
    type Answer = Creation;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Creation, Fault> {
        if let Some(asked) = &self.new.idempotency
            && let Some(created) = find_repeated(tx, self.new.tenant, asked).await?
        {
            return Ok(Creation { created, claimed: Vec::new(), durable: Durable::now() });
        }
        if tx.find(self.new.id).await?.is_some() {
            return Err(corrupt(format!("task {} exists already", self.new.id)).into());
        }
        let task = insert(tx, &self.new)?;
        let claimed = match &self.claim {
            Some(claim) => claim_heads(tx, claim, Some(&self.new)).await?,
            None => Vec::new(),
        };
        // The server answers after it has done what its configuration says for durability.
        Ok(Creation { created: Created::New(task), claimed, durable: Durable::now() })
    }
}

/// `WorkSource::claim`.
pub(in crate::store::redis) struct ClaimHeads(pub(in crate::store::redis) Claim);

impl Operation for ClaimHeads {
    type Answer = Vec<Assignment>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<Assignment>, Fault> {
        claim_heads(tx, &self.0, None).await
    }
}

/// The field of an idempotency key.
pub(super) fn request_field(tenant: i64, key: &str) -> String {
    format!("{tenant}:{key}")
}

/// The member of an idempotency key in the index of their ages: sorted by age, tenant, key.
pub(super) fn request_member(row: &RequestRow, tenant: i64, key: &str) -> Vec<u8> {
    [&ordered(row.created_at.0)[..], &ordered(tenant), key.as_bytes()].concat()
}

async fn find_repeated(tx: &mut Tx<'_>, tenant: i64, asked: &Idempotency) -> Result<Option<Created>, Fault> {
    let (key, field) = (tx.keys().requests(), request_field(tenant, &asked.key));
    let Some(found) = tx.field(key.clone(), &field).await? else {
        tx.check(key, field, None);
        return Ok(None);
    };
    let found: RequestRow = from_json(&found)?;
    if found.body_sha256 != hex(&asked.body_sha256) {
        return Ok(Some(Created::KeyReused));
    }
    // A key goes with its task.
    let task = tx.find(found.task).await?.ok_or(Fault::Conflict)?;
    Ok(Some(Created::Replayed(task)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn insert(tx: &mut Tx<'_>, new: &NewTask) -> Result<Task, Fault> {
    let (task, keys) = (new.first_state(), tx.keys());
    tx.introduce_lane(&new.lane)?;
    if let Some(webhook) = &new.payload.options.webhook {
        let endpoint = Endpoint::new(webhook);
        tx.write(words("HSETNX").arg(keys.endpoints()).arg(endpoint.id.0).arg(json(&endpoint)?));
    }
    if let Some(asked) = &new.idempotency {
        let row = RequestRow { body_sha256: hex(&asked.body_sha256), task: task.id, created_at: task.created_at };
        let field = request_field(task.tenant, &asked.key);
        tx.write(words("HSET").arg(keys.requests()).arg(field).arg(json(&row)?));
        let member = request_member(&row, task.tenant, &asked.key);
        tx.write(words("ZADD").arg(keys.request_ages()).arg(0).arg(member.as_slice()));
    }
    let payload = words("HSET").arg(keys.task(task.id)).arg("graph").arg(&*new.payload.graph);
    let payload = payload.arg("inputs").arg(&*new.payload.inputs).arg("metadata").arg(&*new.payload.metadata);
    tx.write(payload.arg("options").arg(json(&*new.payload.options)?));
    let request = new.idempotency.as_ref().map(|asked| asked.key.clone());
    tx.insert(Row { task: task.clone(), files: new.payload.options.files.clone(), request });
    tx.write_down(&task, None, &ArtifactEdit::Keep)?;
    Ok(task)
}

/// `new`: what is created together with it.
async fn claim_heads(tx: &mut Tx<'_>, claim: &Claim, new: Option<&NewTask>) -> Result<Vec<Assignment>, Fault> {
    if claim.slots.is_empty() {
        return Ok(Vec::new());
    }
    let owners = owners(tx, claim).await?;
    let heads: Vec<Head> = heads(tx, claim, &owners).await?.into_values().collect();
    let taken = claim.take(&heads, &owners.running, tx.now);
    for head in heads.iter().filter(|head| taken.iter().any(|(id, _)| *id == head.task)) {
        if claim.caps.of(head.tenant).is_some() {
            let running = owners.running.get(&head.tenant).map(ToString::to_string);
            tx.check(tx.keys().tenant_running(), head.tenant.to_string(), running.as_deref());
        }
    }
    let stored: Vec<TaskId> =
        taken.iter().map(|(id, _)| *id).filter(|id| new.is_none_or(|new| new.id != *id)).collect();
    let mut rest = tx.load_whole(&stored).await?;
    if let Some(new) = new {
        let options = (*new.payload.options).clone();
        rest.insert(new.id, Rest { graph: new.payload.graph.to_string(), options, artifacts: Vec::new() });
    }
    let mut claimed = Vec::with_capacity(taken.len());
    for (id, change) in taken {
        let rest = rest.get(&id).ok_or(Fault::Conflict)?;
        // Somebody was faster.
        tx.change(id, None, change).await.map_err(|_| Fault::Conflict)?;
        claimed.extend(tx.assignment(id, rest));
    }
    Ok(claimed)
}

/// The lanes a claim looks into, and whose they are.
#[derive(Default)]
struct Owners {
    lanes: BTreeSet<i64>,
    /// The tenants of lanes, as far as anybody has a cap.
    tenants: BTreeMap<i64, i64>,
    /// How many tasks of theirs are held.
    running: BTreeMap<i64, u64>,
}

/// Without the lanes of tenants of whom as many tasks run as may.
async fn owners(tx: &Tx<'_>, claim: &Claim) -> Result<Owners, Fault> {
    let keys = tx.keys();
    let mut lanes = match claim.lanes() {
        Some(lanes) => lanes,
        None => {
            let (mut lanes,): (BTreeSet<i64>,) = tx.ask(redis::pipe().hkeys(keys.lane_unfinished())).await?;
            lanes.insert(ANYBODY);
            lanes
        }
    };
    if claim.caps.are_none() || lanes.is_empty() {
        return Ok(Owners { lanes, ..Owners::default() });
    }
    let ids: Vec<i64> = lanes.iter().copied().collect();
    let (needs, running): (Vec<Option<String>>, BTreeMap<i64, u64>) =
        tx.ask(redis::pipe().hmget(keys.lanes(), &ids).hgetall(keys.tenant_running())).await?;
    let mut tenants = BTreeMap::new();
    for (lane, needs) in ids.into_iter().zip(needs) {
        let needs: Option<Needs> = needs.as_deref().map(from_json).transpose()?;
        if let Some(tenant) = needs.and_then(|needs| needs.tenant) {
            tenants.insert(lane, tenant.id());
        }
    }
    let room = claim.caps.room(tenants.values().copied(), &running);
    lanes.retain(|lane| tenants.get(lane).is_none_or(|tenant| room.has(*tenant)));
    Ok(Owners { lanes, tenants, running })
}

/// The first tasks of each of these lanes, in the order of the queue: as many of each lane as there are slots. A seek per lane, whatever waits
/// behind.
async fn heads(tx: &Tx<'_>, claim: &Claim, owners: &Owners) -> Result<BTreeMap<(i64, TaskId), Head>, Fault> {
    let (keys, lanes) = (tx.keys(), &owners.lanes);
    if lanes.is_empty() {
        return Ok(BTreeMap::new());
    }
    let last = isize::try_from(claim.slots.len()).unwrap_or(isize::MAX) - 1;
    let mut pipe = redis::pipe();
    for lane in lanes {
        pipe.zrange(keys.queue(*lane), 0, last);
    }
    let found: Vec<Vec<Vec<u8>>> = tx.ask(&pipe).await?;
    let mut heads = BTreeMap::new();
    for (lane, members) in lanes.iter().zip(found) {
        for member in members {
            let place = number_of(&member).zip(task_of(&member));
            let place = place.ok_or_else(|| corrupt("a place in the queue is none"))?;
            let tenant = owners.tenants.get(lane).copied().unwrap_or(NOBODY);
            heads.insert(place, Head { task: place.1, lane: *lane, tenant });
        }
    }
    let new = tx.new_heads().filter(|task| claim.slots.iter().any(|slot| slot.lanes.contains(task.lane)));
    let head = |task: &Task| Head { task: task.id, lane: task.lane, tenant: task.tenant };
    heads.extend(new.map(|task| ((task.sort_key, task.id), head(task))));
    Ok(heads)
}
