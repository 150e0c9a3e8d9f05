//! Tests of the modules that are compiled twice (see [`model`](super::model)) and therefore cannot contain their tests.

mod inflight;
mod pool;
mod ring;
