#![doc = include_str!("../README.md")]

pub mod board;
pub mod bridge;
pub mod domain;
pub mod kit;
pub mod ports;
pub mod queue;
#[cfg(feature = "testing")]
pub mod testing;
