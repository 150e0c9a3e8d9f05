//! Tests of the modules that are compiled twice (see [`model`](super::model)), which therefore cannot hold their own.

mod inflight;
mod pool;
mod ring;
