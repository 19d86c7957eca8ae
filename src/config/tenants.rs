//! `[tenants]`: whose tasks those are, and how many each may have.

use std::str::FromStr;

use axum::http::{HeaderName, header};
use comfyd_actors::domain::tenant::{self, Limits, Tenant};
use toml::{Table, Value};

use super::{fault::nearest, reader::Reader};

/// Headers whose values are secrets: names of tenants are shown.
const SECRET: [HeaderName; 3] = [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION];
/// Most tasks a limit can allow.
const MOST: i64 = 100_000_000;
const FIELDS: [&str; 2] = ["max_waiting", "max_running"];

/// `[tenants]`
#[derive(Debug, Clone, Default)]
pub struct Tenants {
    /// The header in which a gateway names the tenant; `None` = there are no tenants.
    pub header: Option<HeaderName>,
    /// New tasks that name none are refused.
    pub required: bool,
    /// How many tasks tenants may have.
    pub limits: tenant::Tenants,
}

pub(super) fn tenants(r: &mut Reader) -> Tenants {
    let usual = Limits {
        max_waiting: limit(r.number("tenants.max_waiting", 0..=MOST)),
        max_running: limit(r.number("tenants.max_running", 0..=MOST)),
    };
    let named = r.tables("tenants.limits", |name, table| own(name, table, usual));
    Tenants {
        header: r.text("tenants.header", |text| if text.is_empty() { Ok(None) } else { header_name(text).map(Some) }),
        required: r.choice("tenants.required", &[("true", true), ("false", false)]),
        limits: tenant::Tenants { usual, named: named.into_values().collect() },
    }
}

/// 0 = no limit.
fn limit<T: TryFrom<i64>>(number: i64) -> Option<T> {
    T::try_from(number).ok().filter(|_| number > 0)
}

fn header_name(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_str(text).map_err(|_| "expected the name of a header, such as X-Tenant".to_owned())?;
    if SECRET.contains(&name) {
        return Err(format!(
            "`{name}` holds secrets, and names of tenants are shown: have the gateway set a header of its own"
        ));
    }
    Ok(name)
}

/// The limits of one tenant: what it does not say is as usual.
fn own(name: &str, table: &Table, usual: Limits) -> Result<(Tenant, Limits), String> {
    let tenant = Tenant::parse(name).map_err(|why| format!("`{name}`: {why}"))?;
    if let Some(unknown) = table.keys().find(|field| !FIELDS.contains(&field.as_str())) {
        let hint = nearest(unknown, FIELDS).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        return Err(format!("{unknown}: there is no such field{hint}"));
    }
    let number = |field: &str| match table.get(field) {
        None => Ok(None),
        Some(Value::Integer(number)) if (0..=MOST).contains(number) => Ok(Some(*number)),
        Some(_) => Err(format!("{field}: expected a whole number from 0 to {MOST}")),
    };
    let max_waiting = number("max_waiting")?.map_or(usual.max_waiting, limit);
    let max_running = number("max_running")?.map_or(usual.max_running, limit);
    Ok((tenant, Limits { max_waiting, max_running }))
}
