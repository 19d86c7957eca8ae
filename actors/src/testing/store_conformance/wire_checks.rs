//! The promises about notices.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{Subject, checks::fresh};
use crate::ports::{
    clock::Clock,
    wire::{Kind, Notice},
};

const KEEP: Duration = Duration::from_secs(10);

fn notice(kind: Kind, name: &str, body: &[u8]) -> Notice {
    Notice { kind, name: name.to_owned(), body: Bytes::copy_from_slice(body) }
}

/// A notice takes the place of the one before it, is seen and heard whatever its bytes, and goes when it is taken back.
pub async fn the_last_notice_counts<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (Subject { wire, guard: _guard, .. }, _) = fresh(open).await;
    let mut heard = wire.heard();
    let large = vec![7; 1 << 20];
    let (first, second) = (notice(Kind::Consumer, "b:1", b"old"), notice(Kind::Consumer, "b:1", &large));
    let (other, odd) = (notice(Kind::Consumer, "a", b""), notice(Kind::Glimpse, "a", b"\0\xff'"));
    for posted in [&first, &second, &other, &odd] {
        wire.post(posted.clone(), KEEP).await.unwrap();
        assert_eq!(*heard.recv().await.unwrap(), *posted);
    }
    assert_eq!(wire.notices(Kind::Consumer).await.unwrap(), [other, second.clone()]);
    assert_eq!(wire.notices(Kind::Glimpse).await.unwrap(), [odd]);
    assert_eq!(wire.notices(Kind::Watched).await.unwrap(), []);
    assert_eq!(wire.notice(Kind::Consumer, "b:1").await.unwrap().as_ref(), Some(&second));
    assert_eq!(wire.notice(Kind::Glimpse, "b:1").await.unwrap(), None);
    wire.withdraw(Kind::Consumer, "a").await.unwrap();
    wire.withdraw(Kind::Consumer, "a").await.unwrap();
    assert_eq!(wire.notices(Kind::Consumer).await.unwrap(), [second]);
}

/// After its time nobody sees a notice any more.
pub async fn a_notice_is_gone_after_its_time<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (Subject { wire, guard: _guard, .. }, clock) = fresh(open).await;
    let (short, long) = (notice(Kind::Watched, "short", b"1"), notice(Kind::Watched, "long", b"2"));
    wire.post(short, KEEP).await.unwrap();
    wire.post(long.clone(), 2 * KEEP).await.unwrap();
    clock.advance(KEEP);
    assert_eq!(wire.notices(Kind::Watched).await.unwrap(), std::slice::from_ref(&long));
    wire.post(long.clone(), 2 * KEEP).await.unwrap();
    clock.advance(KEEP);
    assert_eq!(wire.notices(Kind::Watched).await.unwrap(), [long], "posting it again gives it time");
    clock.advance(KEEP);
    assert_eq!(wire.notices(Kind::Watched).await.unwrap(), []);
    assert_eq!(wire.notice(Kind::Watched, "long").await.unwrap(), None);
}
