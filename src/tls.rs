//! TLS for every outgoing connection: one cryptography provider and one set of trusted roots, so that HTTP and WebSocket
//! connections to the same server agree on whom they trust.

use std::sync::{Arc, OnceLock};

use rustls::{ClientConfig, RootCertStore};

/// Installs ring as the process's cryptography provider. Call it before anything that may speak TLS; calling it again, or
/// after somebody else installed one, is harmless. Without it rustls panics at the first handshake, as our features name
/// no default.
pub fn install_crypto_provider() {
    // The error is "there is one already", which is all we want.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// What clients trust: the system's certificates (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured, so a private authority
/// works), or Mozilla's list when the system has none, as in a minimal container image.
#[must_use]
pub fn client_config() -> Arc<ClientConfig> {
    // Read once: parsing some 140 certificates costs milliseconds, and they do not change under a running process.
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    Arc::clone(CONFIG.get_or_init(|| {
        install_crypto_provider();
        Arc::new(ClientConfig::builder().with_root_certificates(roots()).with_no_client_auth())
    }))
}

fn roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let (_, unusable) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if unusable > 0 {
        tracing::debug!(unusable, "some of the system's certificates cannot be used");
    }
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn can_be_asked_for_again_and_again() {
        install_crypto_provider();
        install_crypto_provider();
        assert!(Arc::ptr_eq(&client_config(), &client_config()));
    }
}
