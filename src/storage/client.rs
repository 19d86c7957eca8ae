//! The HTTP client of all buckets: one set of trusted certificates, one pool, no proxies and no redirects but those we ask for.

use std::time::Duration;

use aws_sdk_s3::{
    config::{HttpClient, RuntimeComponents, http::HttpRequest, http::HttpResponse},
    primitives::SdkBody,
};
use aws_smithy_runtime_api::client::{
    http::{HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
    result::ConnectorError,
};
use reqwest::{Client, Request, redirect};

use super::causes;
use crate::tls;

/// A connection nobody has used for this long is closed. Services close theirs after a minute or so, and whoever uses one in that moment
/// has to try again.
const POOL_IDLE: Duration = Duration::from_secs(20);

/// Makes the client. `answer` is the longest wait for an answer, or for another piece of one.
///
/// # Errors
/// When there is no TLS.
pub fn client(connect: Duration, answer: Duration) -> reqwest::Result<Client> {
    Client::builder()
        .tls_backend_preconfigured((*tls::client_config()).clone())
        .connect_timeout(connect)
        .read_timeout(answer)
        .pool_idle_timeout(POOL_IDLE)
        .tcp_nodelay(true)
        .no_proxy()
        .redirect(redirect::Policy::none())
        .build()
}

/// An error of the client without the address, whose query may be a signature, and with its causes: the outermost says little.
#[must_use]
pub fn describe(error: reqwest::Error) -> String {
    causes(&error.without_url())
}

/// The same client for Amazon's SDK, which would bring its own otherwise.
#[derive(Debug, Clone)]
pub struct SdkClient(pub Client);

impl HttpClient for SdkClient {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for SdkClient {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.0.clone();
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            let request = Request::try_from(request.map(reqwest::Body::wrap));
            let request = request.map_err(|error| ConnectorError::user(error.into()))?;
            let response = client.execute(request).await.map_err(failed)?;
            let response = axum::http::Response::from(response).map(SdkBody::from_body_1_x);
            HttpResponse::try_from(response).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

/// Told apart, because the SDK tries some of them again.
fn failed(error: reqwest::Error) -> ConnectorError {
    let timeout = error.is_timeout();
    let error = describe(error).into();
    if timeout { ConnectorError::timeout(error) } else { ConnectorError::io(error) }
}
