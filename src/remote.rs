//! A consumer's way to its tasks over HTTP, for machines that reach no database: one outgoing connection is enough.
//!
//! [`protocol`] is what both sides say; [`ApiClient`] is the consumer's side, one adapter for each port that a consumer needs (`work` the
//! tasks, `goods` files in and outputs out, `notices` the rest). The API's side is `http::consumer`; `hearing` is how it passes on
//! what happens.
//!
//! Nothing is kept between two requests but a place in what is passed on, so any API will do, and each may be started again at any
//! moment: a request that fails is answered as a store that is away is, and leases hold until their deadline.

mod client;
mod goods;
mod hearing;
mod notices;
pub mod protocol;
mod work;

pub use self::{client::ApiClient, hearing::Hearing};
