//! Whose a new task is: what a gateway says in the header that the configuration names, and nothing else.

use axum::http::{HeaderMap, StatusCode};
use comfyd_actors::{
    bridge::TaskRequest,
    domain::{
        lane::{Lane, Needs},
        tenant::Tenant,
    },
};

use super::problem::Problem;
use crate::config::Tenants;

/// Whose a request is; `None` = nobody's.
///
/// # Errors
/// 400: it names none and must, or names it badly. A gateway that adds its header to the client's instead of replacing it is found out.
pub fn read(config: &Tenants, headers: &HeaderMap) -> Result<Option<Tenant>, Problem> {
    let Some(name) = &config.header else { return Ok(None) };
    let mut values = headers.get_all(name).iter();
    let bad = |code, detail: String| Err(Problem::new(StatusCode::BAD_REQUEST, code, detail));
    match (values.next(), values.next()) {
        (None, _) if config.required => bad(
            "tenant_missing",
            format!("the header `{name}` must name the tenant; nothing was stored. The gateway before comfyd sets it"),
        ),
        (None, _) => Ok(None),
        (Some(_), Some(_)) => bad(
            "tenant_invalid",
            format!(
                "the header `{name}` came more than once: the gateway must replace what clients send; nothing was stored"
            ),
        ),
        (Some(value), None) => match value.to_str().ok().and_then(|text| Tenant::parse(text).ok()) {
            Some(tenant) => Ok(Some(tenant)),
            None => bad(
                "tenant_invalid",
                format!("the header `{name}` must be 1 to 128 visible ASCII characters; nothing was stored"),
            ),
        },
    }
}

/// The same request, as this tenant's.
pub fn mark(request: TaskRequest, tenant: Option<Tenant>) -> TaskRequest {
    let Some(tenant) = tenant else { return request };
    let needs = Needs::clone(&request.lane.needs);
    TaskRequest { tenant: tenant.id(), lane: Lane::of(Needs { tenant: Some(tenant), ..needs }), ..request }
}
