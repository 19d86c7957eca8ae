//! Where outputs go: every kind of target alone, and the service with one.

mod conformance;
mod faults;
mod service;
