//! The address we listen on.

use std::net::{SocketAddr, TcpListener};

use super::report::Section;
use crate::{
    config::{self, Config},
    healthcheck,
};

pub(super) async fn examine(config: &Config) -> Section {
    let (port, name) = if config.consumer.remote {
        (config.consumer.port, "COMFYD_CONSUMER__PORT")
    } else {
        (config.server.port, "PORT")
    };
    let address = SocketAddr::new(config.server.host, port);
    let mut section = Section::new(format!("Service  {address}"));
    match TcpListener::bind(address) {
        Ok(_) => section.good("the address is free: comfyd can listen on it"),
        Err(_) if healthcheck::run(config).await.is_ok() => section.good("a comfyd is running there"),
        Err(error) => section.bad(
            format!("comfyd cannot listen there: {error}"),
            format!(
                "end the program that has the port (`ss -ltnp`), or set HOST and {name} to an address that is free"
            ),
        ),
    }
    if let Some(warning) = config::public_address_warning(&config.server) {
        section.odd(warning, "");
    }
    section
}
