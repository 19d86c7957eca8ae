//! Tasks come in and are taken from the head of the order.

use comfyd_actors::{
    domain::id::TaskId,
    ports::store::{Assignment, Claim, Created, Creation, Durable, Idempotency, NewTask},
};

use crate::store::postgres::{
    fault::Fault,
    rows::{get, text},
    tx::Tx,
    writer::Operation,
};

const FIND_KEY: &str = "SELECT body_sha256, task_id AS id FROM idempotency WHERE tenant = $1 AND key = $2";

/// `TaskStore::create`.
pub(in crate::store::postgres) struct Create {
    pub(in crate::store::postgres) new: NewTask,
    pub(in crate::store::postgres) claim: Option<Claim>,
}

impl Operation for Create {
    type Answer = Creation;

    fn is_promise(&self) -> bool {
        true
    }

    fn claim(&self) -> Option<&Claim> {
        self.claim.as_ref()
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Creation, Fault> {
        if let Some(idempotency) = &self.new.idempotency
            && let Some(created) = find_repeated(tx, self.new.tenant, idempotency).await?
        {
            return Ok(Creation { created, claimed: Vec::new(), durable: Durable::now() });
        }
        let created = Created::New(tx.add(&self.new)?);
        let claimed = match &self.claim {
            Some(claim) => tx.claim(claim).await?,
            None => Vec::new(),
        };
        Ok(Creation { created, claimed, durable: Durable::now() })
    }
}

/// `WorkSource::claim`.
pub(in crate::store::postgres) struct ClaimHeads(pub(in crate::store::postgres) Claim);

impl Operation for ClaimHeads {
    type Answer = Vec<Assignment>;

    /// A fence that was given must not be given again.
    fn is_promise(&self) -> bool {
        true
    }

    fn claim(&self) -> Option<&Claim> {
        Some(&self.0)
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<Assignment>, Fault> {
        tx.claim(&self.0).await
    }
}

async fn find_repeated(tx: &mut Tx<'_>, tenant: i64, asked: &Idempotency) -> Result<Option<Created>, Fault> {
    let found = tx.read(sqlx::query(FIND_KEY).bind(tenant).bind(text(&asked.key))).await?;
    let Some(row) = found.first() else { return Ok(None) };
    if get::<&[u8]>(row, "body_sha256")? != asked.body_sha256 {
        return Ok(Some(Created::KeyReused));
    }
    let task = tx.peek(TaskId(get(row, "id")?)).await?;
    Ok(task.map(Created::Replayed))
}
