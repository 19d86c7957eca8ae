//! What went wrong when a connection was to be made safe.

use std::{error::Error, io, iter::successors, sync::Arc};

/// What the Redis library wraps causes in.
type Shared = Arc<dyn Error + Send + Sync>;

/// Whether it was TLS that failed, a certificate that is not trusted for example. Libraries tell of that as of any other fault of a connection.
pub(super) fn is_tls(error: &(dyn Error + 'static)) -> bool {
    successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source()).any(|error| {
        let error = error.downcast_ref::<Shared>().map_or(error, |shared| &**shared);
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        inner.map_or(error, |inner| inner).is::<rustls::Error>()
    })
}
