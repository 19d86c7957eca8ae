//! The router over fakes: what clients get, word for word.

mod create;
mod fakes;
mod passthrough;
mod read;
mod shape;
