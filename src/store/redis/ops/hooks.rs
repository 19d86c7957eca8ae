//! Messages to webhooks: taken, settled, asked for again.

use std::collections::BTreeMap;

use comfyd_actors::{
    domain::{
        time::Timestamp,
        webhook::{Delivery, Endpoint, EndpointId, Policy, Report},
    },
    ports::store::StoreError,
};

use super::Operation;
use crate::store::redis::{
    rows::{Message, from_json},
    tx::{Fault, Tx, words},
};

/// More than may ever be on their way to one endpoint.
const NO_BOUND: u32 = u32::MAX;

/// `HookStore::take`.
pub(in crate::store::redis) struct Take {
    pub(in crate::store::redis) limit: u32,
    pub(in crate::store::redis) policy: Policy,
}

impl Operation for Take {
    type Answer = Vec<Delivery>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<Delivery>, Fault> {
        let (now, limit) = (tx.now, isize::try_from(self.limit).unwrap_or(isize::MAX));
        let mut pipe = redis::pipe();
        pipe.zrangebyscore_limit(tx.keys().calls(), "-inf", now.0, 0, limit);
        let (called,): (Vec<i64>,) = tx.ask(&pipe).await?;
        let (mut ripe, mut endpoints) = (Vec::new(), BTreeMap::new());
        for id in called.into_iter().map(EndpointId) {
            let Some((endpoint, room)) = self.look(tx, id).await? else { continue };
            for message in self.ripe(tx, id, room).await? {
                // Somebody else is about to take it.
                let Some(at) = message.delivery.due_at.filter(|at| *at <= now) else { return Err(Fault::Conflict) };
                ripe.push((at, message.delivery.id, message));
            }
            endpoints.insert(id, endpoint);
        }
        ripe.sort_unstable_by_key(|(at, id, _)| (*at, *id));
        ripe.truncate(usize::try_from(self.limit).unwrap_or(usize::MAX));
        let mut taken = Vec::with_capacity(ripe.len());
        for (_, _, message) in ripe {
            let mut delivery = message.delivery.clone();
            delivery.take(&self.policy, now);
            tx.save_message(&message, Some(&delivery))?;
            taken.push(delivery);
        }
        for endpoint in endpoints.values() {
            refresh(tx, endpoint, endpoint.parallel(&self.policy));
        }
        Ok(taken)
    }
}

impl Take {
    /// An endpoint, and how many more it may be sent.
    async fn look(&self, tx: &mut Tx<'_>, id: EndpointId) -> Result<Option<(Endpoint, usize)>, Fault> {
        let (text, busy): (Option<String>, usize) = tx
            .ask(redis::pipe().hget(tx.keys().endpoints(), id.0).zcount(
                tx.keys().sending(id),
                format!("({}", tx.now.0),
                "+inf",
            ))
            .await?;
        let Some(text) = text else { return Ok(None) };
        let endpoint: Endpoint = from_json(&text)?;
        tx.check(tx.keys().endpoints(), id.0.to_string(), Some(&text));
        let most = usize::try_from(endpoint.parallel(&self.policy)).unwrap_or(usize::MAX);
        // Called too early, which is harmless.
        let most = if endpoint.not_before.is_some_and(|at| at > tx.now) { 0 } else { most };
        Ok(Some((endpoint, most.saturating_sub(busy))))
    }

    /// What is due of an endpoint, the longest due first.
    async fn ripe(&self, tx: &Tx<'_>, id: EndpointId, room: usize) -> Result<Vec<Message>, Fault> {
        if room == 0 {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        pipe.zrangebyscore_limit(tx.keys().due_of(id), "-inf", tx.now.0, 0, room.cast_signed());
        let (ids,): (Vec<i64>,) = tx.ask(&pipe).await?;
        Ok(tx.messages(&ids).await?)
    }
}

/// `HookStore::settle`.
pub(in crate::store::redis) struct Settle {
    pub(in crate::store::redis) id: i64,
    pub(in crate::store::redis) turn: i64,
    pub(in crate::store::redis) report: Report,
    pub(in crate::store::redis) policy: Policy,
}

impl Operation for Settle {
    type Answer = Option<Delivery>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Option<Delivery>, Fault> {
        let Some(message) = tx.messages(&[self.id]).await?.pop() else { return Ok(None) };
        let mut delivery = message.delivery.clone();
        if delivery.turn != self.turn {
            return Ok(None);
        }
        let (mut endpoint, text) = tx.endpoint(delivery.endpoint).await?.ok_or(Fault::Conflict)?;
        let before = endpoint.clone();
        delivery.settle(&mut endpoint, &self.report, &self.policy, tx.now);
        tx.save_message(&message, Some(&delivery))?;
        if endpoint == before {
            tx.check(tx.keys().endpoints(), endpoint.id.0.to_string(), Some(&text));
        } else {
            tx.save_endpoint(&text, &endpoint)?;
        }
        let open = words("@open").arg(delivery.task.0.simple().to_string()).arg(endpoint.id.0);
        tx.write(open.arg(tx.now.0));
        refresh(tx, &endpoint, endpoint.parallel(&self.policy));
        Ok(Some(delivery))
    }
}

/// `HookStore::redeliver`.
pub(in crate::store::redis) struct Redeliver(pub(in crate::store::redis) i64);

impl Operation for Redeliver {
    type Answer = (Delivery, Endpoint);

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer, Fault> {
        let message = tx.messages(&[self.0]).await?.pop().ok_or(StoreError::NotFound)?;
        let (endpoint, _) = tx.endpoint(message.delivery.endpoint).await?.ok_or(Fault::Conflict)?;
        let mut delivery = message.delivery.clone();
        delivery.ask_again(tx.now);
        tx.save_message(&message, Some(&delivery))?;
        if let Some(at) = delivery.due_at {
            tx.write(words("@call").arg(endpoint.id.0).arg(at.0));
        }
        Ok((delivery, endpoint))
    }
}

/// `HookStore::enable`.
pub(in crate::store::redis) struct Enable(pub(in crate::store::redis) EndpointId);

impl Operation for Enable {
    type Answer = Endpoint;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Endpoint, Fault> {
        let (mut endpoint, text) = tx.endpoint(self.0).await?.ok_or(StoreError::NotFound)?;
        endpoint.enable();
        tx.save_endpoint(&text, &endpoint)?;
        // How many may be on their way only who sends them knows.
        refresh(tx, &endpoint, NO_BOUND);
        Ok(endpoint)
    }
}

/// Notes when an endpoint is looked at next, once all else is written.
fn refresh(tx: &mut Tx<'_>, endpoint: &Endpoint, parallel: u32) {
    let parallel = if endpoint.disabled_at.is_some() { 0 } else { parallel };
    let not_before = endpoint.not_before.unwrap_or(Timestamp(0));
    tx.write(words("@refresh").arg(endpoint.id.0).arg(tx.now.0).arg(not_before.0).arg(parallel));
}
