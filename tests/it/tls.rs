//! Stores that are reached over TLS, with certificates of an authority that only the test knows.

use std::process::Command;

use tempfile::TempDir;

use crate::{
    databases,
    place::{Place, free_address},
    redis_server,
    support::task,
};

/// What an authority signed for `localhost`, and its own certificate, in a folder.
struct Certificates(TempDir);

impl Certificates {
    fn make() -> Self {
        let made = Self(tempfile::tempdir().unwrap());
        let new = "req -newkey rsa:2048 -nodes -subj";
        made.openssl(&format!("{new} /CN=tests -x509 -days 9 -keyout ca.key -out ca.pem"));
        made.openssl(&format!(
            "{new} /CN=localhost -addext subjectAltName=DNS:localhost -keyout key.pem -out asked.pem"
        ));
        made.openssl("x509 -req -in asked.pem -copy_extensions copy -CA ca.pem -CAkey ca.key -CAcreateserial -days 9 -out cert.pem");
        made
    }

    fn openssl(&self, arguments: &str) {
        let mut command = Command::new("openssl");
        let done = command.current_dir(self.0.path()).args(arguments.split(' ')).output();
        let done = done.expect("tests/run installs openssl");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }
}

/// The service does its work with this store, whose authority it was told of.
async fn works(url: &str, more: &[(&str, &str)]) {
    let place = more.iter().fold(Place::new().await, |place, (name, value)| place.with(name, value));
    let place = place.with("DATABASE_URL", url);
    let process = place.start().await;
    let id = place.api.create(&task(1)).await;
    place.api.completed(&id).await;
    drop(process);
}

/// The service does not start with this store, and says why.
async fn refuses(url: &str, told: &[&str]) {
    let place = Place::new().await.with("DATABASE_URL", url);
    let mut process = place.launch(&[]);
    assert!(!process.ended().await.success());
    let said = process.output();
    assert!(told.iter().all(|told| said.contains(told)) && !said.contains("hunter2"), "{told:?} is not in:\n{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_is_reached_over_tls_and_only_if_it_is_trusted() {
    let certificates = Certificates::make();
    let [cert, key, authority] = ["cert.pem", "key.pem", "ca.pem"].map(|name| certificates.path(name));
    let port = free_address().port();
    let _server = redis_server::Server::start(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-auth-clients",
        "no",
        "--requirepass",
        "hunter2",
    ]);
    let url = |host: &str| format!("rediss://:hunter2@{host}:{port}/0");
    works(&url("localhost"), &[("SSL_CERT_FILE", &authority)]).await;
    refuses(&url("localhost"), &["UnknownIssuer", "SSL_CERT_FILE"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_is_reached_over_tls_and_only_if_it_is_trusted() {
    let certificates = Certificates::make();
    let server = databases::Server::start_with_tls(certificates.0.path());
    let database = server.database().await;
    let plain = server.url(&database, server.port());
    let url = |host: &str, more: &str| {
        plain.replace("127.0.0.1", host).replace("sslmode=disable", &format!("sslmode=verify-full{more}"))
    };
    let authority = format!("&sslrootcert={}", certificates.path("ca.pem"));
    works(&url("localhost", &authority), &[]).await;
    refuses(&url("localhost", ""), &["no safe connection", "UnknownIssuer", "sslrootcert"]).await;
    refuses(&url("127.0.0.1", &authority), &["no safe connection", "not valid for name"]).await;
}
