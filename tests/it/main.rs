//! Tests of the whole, one binary: linking is what costs.

mod stores;
