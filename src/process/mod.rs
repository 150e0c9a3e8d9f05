//! Child processes, for the server and for `lazystore run`.
//!
//! | module | what it does |
//! |---|---|
//! | `role` | forks a process that runs one function and exits, so that it never returns into the caller |
//! | `child` | exit status, signals, termination within a bounded time |
//! | `signals` | receives signals through a descriptor |
//! | `sealed` | memory that one process writes to and its relatives only read |
//! | `shared` | memory shared between a process and its children |
//!
//! Only a process with one thread may fork. Children get a signal when their parent dies.

mod child;
mod error;
mod role;
mod sealed;
mod shared;
mod signals;

pub use child::{Child, End, stop_all};
pub use error::ProcessError;
pub use role::{exit_now, spawn};
pub use sealed::{ReadMap, WriteMap, sealed};
pub use shared::Shared;
pub use signals::{ENDING, EndRequest, ReceivedSignal, Signals, WaitEnd};
